package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/stage"
)

const (
	// killBound is how long after SIGKILL a stop says that a process does not die. The killing goes on.
	killBound = 10 * time.Second
	// killTry is how long one kill waits for the cgroup to become empty.
	killTry = 4 * time.Second
	// lastKillPause is the longest pause between two kills.
	lastKillPause = 30 * time.Second
)

// stopping is the end of a running container that somebody asked for. Guarded by the pod's mu.
type stopping struct {
	deadline time.Time     // when SIGKILL follows; only ever moved forward
	sooner   chan struct{} // tells that deadline has moved
	trouble  error         // of the last kill
}

// StopContainer ends a container: its stop signal, then after grace SIGKILL to all of it. Calls join, and the earliest
// end of grace holds for all. It returns when the cgroup is empty, or with an error killBound after grace.
func (s *Service) StopContainer(ctx context.Context, id ContainerID, grace time.Duration) error {
	c, err := s.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.terminate(ctx, grace); err != nil {
		return err
	}
	if phase, _ := c.look(); phase == containerExited {
		c.informStopped(ctx)
	}
	return nil
}

// terminate stops c if it runs or is about to.
func (c *container) terminate(ctx context.Context, grace time.Duration) error {
	for {
		st, settled := c.stopBy(time.Now().Add(max(grace, 0)))
		switch {
		case settled != nil:
			select {
			case <-settled:
				continue
			case <-ctx.Done():
				return fmt.Errorf("wait for the start of container %s: %w", c.id, ctx.Err())
			}
		case st == nil:
			return nil
		}
		return stage.Run(ctx, "stop", 0, func(ctx context.Context) error { return c.stopped(ctx, st) })
	}
}

// stopBy sees to it that c is killed at deadline. It returns nil if nothing runs, and what to wait for if c is starting.
func (c *container) stopBy(deadline time.Time) (st *stopping, settled chan struct{}) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	switch {
	case c.phase == containerStarting:
		return nil, c.settled
	case c.phase != containerRunning:
		return nil, nil
	case c.stop == nil:
		c.stop = &stopping{deadline: deadline, sooner: make(chan struct{}, 1)}
		rt, st, politely := c.rt, c.stop, time.Until(deadline) > 0
		c.p.s.spawn(func(ctx context.Context) { c.expire(ctx, rt, st, politely) })
	case deadline.Before(c.stop.deadline):
		c.stop.deadline = deadline
		select {
		case c.stop.sooner <- struct{}{}:
		default:
		}
	}
	return c.stop, nil
}

// stopped waits for the end that was asked for.
func (c *container) stopped(ctx context.Context, st *stopping) error {
	c.p.mu.Lock()
	left := time.Until(st.deadline)
	c.p.mu.Unlock()
	timer := time.NewTimer(max(left, 0) + killBound)
	defer timer.Stop()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop container %s: %w", c.id, ctx.Err())
	case <-timer.C:
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	trouble := st.trouble
	if trouble == nil {
		trouble = errors.New("its end was not reported")
	}
	return fmt.Errorf("container %s still has processes %s after SIGKILL, which is repeated: %w", c.id, killBound, trouble)
}

// expire signals the container, waits for the deadline and kills until it has exited.
func (c *container) expire(ctx context.Context, rt RuntimeContainer, st *stopping, politely bool) {
	if politely {
		c.politely(ctx, rt, st)
	}
	stage.Persist(ctx, 100*time.Millisecond, lastKillPause, func(ctx context.Context) bool {
		select {
		case <-c.exited:
			return true
		default:
		}
		kill, cancel := context.WithTimeout(ctx, killTry)
		defer cancel()
		err := rt.Kill(kill)
		c.p.mu.Lock()
		st.trouble = err
		c.p.mu.Unlock()
		if err != nil {
			c.p.s.log.Warn("a container does not die, killing it again", "container", c.id, "error", err)
			return false
		}
		select {
		case <-rt.Exited(): // and nothing is left: that is all that it takes to be exited
			exit, _ := rt.Exit()
			c.p.s.ended(c, exit)
			return true
		case <-c.exited:
			return true
		case <-kill.Done():
			return false
		}
	})
}

// politely sends the stop signal and waits until the deadline or the exit.
func (c *container) politely(ctx context.Context, rt RuntimeContainer, st *stopping) {
	sig, known := specgen.ParseSignal(c.status.Load().StopSignal)
	if !known { // a record of another version
		sig = unix.SIGTERM
	}
	if err := rt.Signal(sig); err != nil && !errors.Is(err, ociruntime.ErrNotRunning) {
		c.p.s.log.Warn("cannot send the stop signal", "container", c.id, "error", err)
	}
	for {
		c.p.mu.Lock()
		left := time.Until(st.deadline)
		c.p.mu.Unlock()
		if left <= 0 {
			return
		}
		timer := time.NewTimer(left)
		select {
		case <-c.exited:
		case <-ctx.Done():
		case <-timer.C:
			continue
		case <-st.sooner:
			timer.Stop()
			continue
		}
		timer.Stop()
		return
	}
}

// stopSignal is the name of the signal that stops a container: "SIGTERM", "SIGRTMIN+3".
func stopSignal(config *runtimev1.ContainerConfig, image ocispec.Image) (string, error) {
	sig, err := specgen.StopSignal(config, image)
	var field *specgen.InvalidError
	switch {
	case errors.As(err, &field):
		return "", fmt.Errorf("%w: container config: %w", ErrInvalid, err)
	case err != nil:
		return "", err
	}
	name := unix.SignalName(sig)
	switch { // CRI has names for the real-time signals that count from the nearer end
	case name != "":
	case sig == sigRTMin:
		name = "SIGRTMIN"
	case sig == sigRTMax:
		name = "SIGRTMAX"
	case sig < sigRTMin+16:
		name = fmt.Sprintf("SIGRTMIN+%d", sig-sigRTMin)
	default:
		name = fmt.Sprintf("SIGRTMAX-%d", sigRTMax-sig)
	}
	return name, nil
}

// The real-time signals that are not the C library's own.
const (
	sigRTMin = unix.Signal(34)
	sigRTMax = unix.Signal(64)
)
