package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/stage"
)

// startBound is for everything between a created container and a process of it: the slowest is opening volumes.
const startBound = 2 * time.Minute

// answerTime is how long an answer may take to its caller: one that leaves later before the caller's deadline may come
// too late, and then nobody knows what it says.
const answerTime = time.Second

// StartContainer starts a container that was created and never started. A failure is the container's end, with the
// reason StartError. Calls join; as long as no caller has surely heard of a success, the next one gets it.
func (s *Service) StartContainer(ctx context.Context, id ContainerID) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	if err := join(ctx, s.starts, c.id, c.start); err != nil {
		return err
	}
	if deadline, has := ctx.Deadline(); ctx.Err() != nil || has && time.Until(deadline) < answerTime {
		return nil
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.told = true
	return nil
}

// start is the operation behind StartContainer.
func (c *container) start(ctx context.Context) error {
	ctx, _, leave, err := c.p.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if c.startedUntold() {
		return nil
	}
	done, err := c.turns.take(ctx)
	if err != nil {
		return fmt.Errorf("wait for a change of container %s: %w", c.id, err)
	}
	defer done()
	if err := c.advance(containerStarting, nil); err != nil {
		return fmt.Errorf("%w; a container is started once, create another", err)
	}
	c.p.s.at("before start")
	began := time.Now() // a short process may have ended before Start returns, and must not end before it started
	err = stage.Run(ctx, "plugins", informBound, c.askStart)
	if err == nil {
		err = stage.Run(ctx, "start", startBound, c.rt.Start)
	}
	c.p.s.at("after start")
	if err != nil {
		return errors.Join(ofProcess(err), c.end(codeStartError, ReasonStartError, err.Error(), time.Now()))
	}
	err = c.advance(containerRunning, func(st *ContainerStatus) {
		st.StartedAt, st.Pid = began, c.rt.Pid()
	})
	if err != nil {
		return err
	}
	c.p.nudge()
	c.informStarted(ctx)
	return nil
}

// startedUntold says whether a start succeeded and perhaps no caller knows.
func (c *container) startedUntold() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	started := c.phase == containerRunning || c.phase == containerExited
	return started && !c.told && !c.status.Load().StartedAt.IsZero()
}

// RemoveContainer kills a container if it runs and removes it; its log stays. It can be repeated.
func (s *Service) RemoveContainer(ctx context.Context, id ContainerID) error {
	c, err := s.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.removeContainer(ctx, c)
}

func (s *Service) removeContainer(ctx context.Context, c *container) error {
	return join(ctx, s.removals, c.id, c.remove)
}

// remove is the operation behind RemoveContainer.
func (c *container) remove(ctx context.Context) error {
	if phase, _ := c.look(); phase == containerRemoved {
		return nil
	}
	for c.advance(containerRemoving, nil) != nil { // it runs, or has just been started
		if err := c.terminate(ctx, 0); err != nil {
			return err
		}
	}
	c.informStopped(ctx)
	done, err := c.turns.take(ctx) // of an update that began before
	if err != nil {
		return fmt.Errorf("wait for a change of container %s: %w", c.id, err)
	}
	defer done()
	c.informRemoved(ctx)
	if err := containerSteps.Undo(ctx, &building{container: c}); err != nil {
		c.takeSoil()
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	return c.advance(containerRemoved, nil)
}

// ReopenContainerLog makes a running container's log go on in a new file at its path, after somebody renamed the old.
func (s *Service) ReopenContainerLog(ctx context.Context, id ContainerID) error {
	c, rt, err := s.runningContainer(id)
	if err != nil {
		return err
	}
	st := c.status.Load()
	if st.LogPath == "" {
		return fmt.Errorf("%w: container %s has no log", ErrState, c.id)
	}
	return ofProcess(stage.Run(ctx, "reopen log", 30*time.Second, func(ctx context.Context) error { return rt.ReopenLog(ctx, st.LogPath) }))
}

// ofProcess is err, a wrong state if it says that a process that is needed has ended since somebody looked.
func ofProcess(err error) error {
	if errors.Is(err, ociruntime.ErrNotRunning) {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return err
}

// runningContainer finds a container that must be running.
func (s *Service) runningContainer(id ContainerID) (*container, RuntimeContainer, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	phase, rt := c.look()
	if phase != containerRunning || rt == nil {
		return nil, nil, fmt.Errorf("%w: container %s is not running", ErrState, c.id)
	}
	return c, rt, nil
}
