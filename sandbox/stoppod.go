package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/criserver/criserver/stage"
)

// quiesceBound is how long a pod's stop waits for operations on containers that it has cancelled.
const quiesceBound = 2 * time.Minute

// StopPod kills a pod's containers, ends its pause and gives its network back. It can be repeated.
func (s *Service) StopPod(ctx context.Context, id ID) error {
	p, err := s.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return join(ctx, s.podStops, p.id, p.stop)
}

// stop is the operation behind StopPod, and so never runs twice at a time.
func (p *pod) stop(ctx context.Context) error {
	if phase := p.look(); phase == podStopped || phase == podRemoved {
		return nil
	}
	if err := p.advance(podStopping); err != nil {
		return err
	}
	if rt := p.runtime(); rt != nil {
		if err := rt.Thaw(); err != nil { // what is under way waits for pause
			return err
		}
	}
	quiet, cancel := context.WithTimeout(ctx, quiesceBound)
	defer cancel()
	if err := p.quiesce(quiet); err != nil {
		return err
	}
	if err := p.killContainers(ctx); err != nil {
		return err
	}
	err := processSteps.Undo(ctx, p)
	if err == nil {
		p.loseContainers()
		p.informStopped(ctx)
	}
	if err := errors.Join(err, networkSteps.Undo(ctx, p)); err != nil {
		p.takeSoil()
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
	running := p.containers(live)
	errs := make([]error, len(running))
	var wg sync.WaitGroup
	for i, c := range running {
		wg.Go(func() { errs[i] = c.terminate(ctx, 0) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// loseContainers ends those that nobody saw end, now that their cgroups are gone.
func (p *pod) loseContainers() {
	p.mu.Lock()
	starved := p.starved
	p.mu.Unlock()
	reason, message := ReasonError, "the pod's pause is gone"
	if starved != nil {
		reason, message = ReasonOOMKilled, starved.Error()
	}
	for _, c := range p.containers(live) {
		_ = c.end(codeKilled, reason, message, time.Now()) // it has ended meanwhile
	}
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
	return join(ctx, s.podRemovals, p.id, p.remove)
}

// remove is the operation behind RemovePod.
func (p *pod) remove(ctx context.Context) error {
	if p.look() == podRemoved {
		return nil
	}
	p.doom()
	if err := join(ctx, p.s.podStops, p.id, p.stop); err != nil {
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
	p.informRemoved(ctx)
	return p.advance(podRemoved)
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
func (p *pod) stopLater() { p.later(p.s.podStops, p.stop) }

// removeLater removes a pod in the background, however often that must be tried.
func (p *pod) removeLater() { p.later(p.s.podRemovals, p.remove) }

func (p *pod) later(changes *stage.Group[struct{}], change func(context.Context) error) {
	p.s.spawn(func(ctx context.Context) {
		stage.Persist(ctx, stage.FirstPause, stage.LastPause, func(ctx context.Context) bool {
			err := join(ctx, changes, p.id, change)
			if err != nil {
				p.s.log.Warn("cannot end a pod, trying again", "pod", p.id, "error", err)
			}
			return err == nil
		})
	})
}

// removeLater removes a container in the background, however often that must be tried.
func (c *container) removeLater() {
	c.p.s.spawn(func(ctx context.Context) {
		stage.Persist(ctx, stage.FirstPause, stage.LastPause, func(ctx context.Context) bool {
			err := c.p.s.removeContainer(ctx, c)
			if err != nil {
				c.p.s.log.Warn("cannot remove what is left of a container, trying again", "container", c.id, "error", err)
			}
			return err == nil
		})
	})
}
