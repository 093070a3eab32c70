package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// quiesceBound is how long a pod's stop waits for operations on containers that it has cancelled.
	quiesceBound = 2 * time.Minute
	// firstPause and lastPause are between tries of what nobody waits for.
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// StopPod kills a pod's containers, ends its pause and gives its network back. It can be repeated.
func (s *Service) StopPod(ctx context.Context, id ID) error {
	p, err := s.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.join(ctx, "stop pod "+string(p.id), p.stop)
}

// stop is the operation behind StopPod; s.join keeps it from running twice at a time.
func (p *pod) stop(ctx context.Context) error {
	if err := p.await(ctx); err != nil {
		return err
	}
	if p.look() == podStopped {
		return nil
	}
	if err := p.advance(podStopping); err != nil {
		return err
	}
	quiet, cancel := context.WithTimeout(ctx, quiesceBound)
	defer cancel()
	if err := p.quiesce(quiet); err != nil {
		return err
	}
	if err := p.killContainers(ctx); err != nil {
		return err
	}
	if err := stopSteps.Undo(ctx, p); err != nil {
		p.takeSoil()
		return err
	}
	if err := p.loseContainers(codeKilled, ReasonError, "the pod's pause is gone"); err != nil {
		return err
	}
	return p.advance(podStopped)
}

func (p *pod) look() podPhase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.phase
}

// killContainers kills all that run at the same time and waits until their cgroups are empty.
func (p *pod) killContainers(ctx context.Context) error {
	if p.runtime() == nil {
		return nil // CleanPod will
	}
	running := p.containers(func(phase containerPhase) bool { return phase == containerRunning || phase == containerStarting })
	errs := make([]error, len(running))
	var wg sync.WaitGroup
	for i, c := range running {
		wg.Go(func() { errs[i] = c.terminate(ctx, 0) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// loseContainers ends those that nobody saw end, now that their cgroups are gone.
func (p *pod) loseContainers(code int32, reason, message string) error {
	var errs []error
	for _, c := range p.containers(func(phase containerPhase) bool { return phase == containerRunning || phase == containerStarting }) {
		errs = append(errs, c.end(code, reason, message, time.Now()))
	}
	return errors.Join(errs...)
}

// RemovePod stops a pod and removes it and its containers. It can be repeated.
func (s *Service) RemovePod(ctx context.Context, id ID) error {
	p, err := s.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.join(ctx, "remove pod "+string(p.id), p.remove)
}

// remove is the operation behind RemovePod.
func (p *pod) remove(ctx context.Context) error {
	if err := p.await(ctx); err != nil {
		return err
	}
	if p.look() == podRemoved {
		return nil
	}
	p.doom()
	if err := p.s.join(ctx, "stop pod "+string(p.id), p.stop); err != nil {
		return err
	}
	all := p.containers(func(containerPhase) bool { return true })
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() { errs[i] = p.s.removeContainer(ctx, c) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := podSteps.Undo(ctx, p); err != nil {
		p.takeSoil()
		return fmt.Errorf("remove pod %s: %w", p.id, err)
	}
	if err := p.advance(podRemoved); err != nil {
		return err
	}
	p.s.change(func(t *table) { t.pods = without(t.pods, p) })
	return nil
}

// endLater goes on with what an earlier criserver began.
func (p *pod) endLater() {
	p.mu.Lock()
	doomed, phase := p.doomed, p.phase
	p.mu.Unlock()
	switch {
	case doomed:
		p.removeLater()
	case phase != podStopped:
		p.stopLater()
	}
}

// stopLater stops a pod in the background, however often that must be tried.
func (p *pod) stopLater() { p.later("stop pod ", p.stop) }

// removeLater removes a pod in the background, however often that must be tried.
func (p *pod) removeLater() { p.later("remove pod ", p.remove) }

func (p *pod) later(what string, change func(context.Context) error) {
	p.s.spawn(func(ctx context.Context) {
		persist(ctx, firstPause, lastPause, func(ctx context.Context) bool {
			err := p.s.join(ctx, what+string(p.id), change)
			if err != nil {
				p.s.log.Warn("trying again", "to", what+string(p.id), "error", err)
			}
			return err == nil
		})
	})
}

// removeLater removes a container in the background, however often that must be tried.
func (c *container) removeLater() {
	c.p.s.spawn(func(ctx context.Context) {
		persist(ctx, firstPause, lastPause, func(ctx context.Context) bool {
			err := c.p.s.removeContainer(ctx, c)
			if err != nil {
				c.p.s.log.Warn("cannot remove what is left of a container, trying again", "container", c.id, "error", err)
			}
			return err == nil
		})
	})
}
