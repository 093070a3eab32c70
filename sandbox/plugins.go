package sandbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/sandbox/nri"
)

// informBound is how long an event may take: several plugins that do not answer.
const informBound = time.Minute

// known is what plugins have been told of a pod or container. Whoever comes new is told the same at once.
type known uint8

const (
	knownNothing known = iota
	knownMade          // of a container
	knownRunning
	knownStopped
	knownGone
)

// ask is one event, which plugins may refuse. due says whether it has still to be told, and takes note that it is.
func (s *Service) ask(due func() bool, event func(*nri.Plugins) error) error {
	hold := s.config.Plugins.Hold()
	defer hold.Release()
	if !due() || !hold.Any {
		return nil
	}
	return event(s.config.Plugins)
}

// inform is one event that nobody may refuse.
func (s *Service) inform(ctx context.Context, name, id string, due func() bool, event func(context.Context, *nri.Plugins) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), informBound)
	defer cancel()
	if err := s.ask(due, func(p *nri.Plugins) error { return event(ctx, p) }); err != nil {
		s.log.Warn("a plugin did not take an event", "event", name, "id", id, "error", err)
	}
}

// learn is the due of an event that makes known to, after one of from.
func (p *pod) learn(to known, from ...known) func() bool {
	return func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		due := slices.Contains(from, p.known)
		if due {
			p.known = to
		}
		return due
	}
}

func (p *pod) askRun(ctx context.Context) error {
	return p.s.ask(p.learn(knownRunning, knownNothing), func(plugins *nri.Plugins) error { return plugins.RunPod(ctx, p.described()) })
}

// informStopped is called when no process of the pod is left. Its containers come first.
func (p *pod) informStopped(ctx context.Context) {
	for _, c := range p.containers(func(containerPhase) bool { return true }) {
		c.informStopped(ctx)
	}
	p.s.inform(ctx, "StopPodSandbox", string(p.id), p.learn(knownStopped, knownRunning), func(ctx context.Context, plugins *nri.Plugins) error {
		return plugins.StopPod(ctx, p.described())
	})
}

func (p *pod) informRemoved(ctx context.Context) {
	p.s.inform(ctx, "RemovePodSandbox", string(p.id), p.learn(knownGone, knownStopped), func(ctx context.Context, plugins *nri.Plugins) error {
		return plugins.RemovePod(ctx, p.described())
	})
}

// learn is like that of a pod.
func (c *container) learn(to known, from ...known) func() bool {
	return func() bool {
		c.p.mu.Lock()
		defer c.p.mu.Unlock()
		due := slices.Contains(from, c.known)
		if due {
			c.known = to
		}
		return due
	}
}

// still is the due of an event that changes nothing of what is known.
func (c *container) still(of ...known) func() bool {
	return func() bool {
		c.p.mu.Lock()
		defer c.p.mu.Unlock()
		return slices.Contains(of, c.known)
	}
}

// inform is that of Service, of a container.
func (c *container) inform(ctx context.Context, name string, due func() bool, event func(context.Context, *nri.Plugins, *nri.Pod, *nri.Container) error) {
	c.p.s.inform(ctx, name, string(c.id), due, func(ctx context.Context, plugins *nri.Plugins) error {
		return event(ctx, plugins, c.p.described(), c.described(c.oci()))
	})
}

// adjust asks what is to be changed of the container that is made, and of others for its sake.
func (b *building) adjust(ctx context.Context) error {
	var adjustment *nri.Adjustment
	var updates []nri.Update
	err := b.p.s.ask(b.learn(knownMade, knownNothing), func(plugins *nri.Plugins) (err error) {
		adjustment, updates, err = plugins.Create(ctx, b.p.described(), b.described(b.spec))
		return err
	})
	if err != nil {
		return err
	}
	b.p.s.updateFor(ctx, updates)
	if adjustment == nil {
		return nil
	}
	host := nri.Host{BlockIO: b.p.s.blockIOOf, Sysctls: func(asked map[string]string) error { return specgen.CheckSysctls(b.pod, asked) }}
	if devices := b.p.s.config.CDI; devices != nil {
		host.CDI = devices.Inject
	}
	if err := adjustment.Apply(b.spec, host); err != nil {
		return fmt.Errorf("adjustment by plugins: %v", err) // whatever it is, the caller's request is not invalid
	}
	return nil
}

// unmade takes back adjust. Nobody else knows the container, or the caller has the turn.
func (b *building) unmade(ctx context.Context) error {
	b.informEnd(ctx)
	b.informRemoved(ctx)
	return nil
}

// informCreated has the turn.
func (c *container) informCreated(ctx context.Context) {
	c.inform(ctx, "PostCreateContainer", c.still(knownMade), func(ctx context.Context, plugins *nri.Plugins, pod *nri.Pod, d *nri.Container) error {
		return plugins.PostCreate(ctx, pod, d)
	})
}

// askStart has the turn.
func (c *container) askStart(ctx context.Context) error {
	return c.p.s.ask(c.learn(knownRunning, knownMade), func(plugins *nri.Plugins) error {
		return plugins.Start(ctx, c.p.described(), c.described(c.oci()))
	})
}

// informStarted has the turn.
func (c *container) informStarted(ctx context.Context) {
	c.inform(ctx, "PostStartContainer", c.still(knownRunning), func(ctx context.Context, plugins *nri.Plugins, pod *nri.Pod, d *nri.Container) error {
		return plugins.PostStart(ctx, pod, d)
	})
}

// informStopped is called when the container has ended or can never start. When it returns, that was told, by whomever.
func (c *container) informStopped(ctx context.Context) {
	done, err := c.turns.take(ctx)
	if err != nil {
		return // whoever has the turn, or tries again, will
	}
	updates := c.informEnd(ctx)
	done()
	c.p.s.updateFor(ctx, updates)
}

// informEnd has the turn. It returns what plugins want changed of others now.
func (c *container) informEnd(ctx context.Context) (updates []nri.Update) {
	c.inform(ctx, "StopContainer", c.learn(knownStopped, knownMade, knownRunning),
		func(ctx context.Context, plugins *nri.Plugins, pod *nri.Pod, d *nri.Container) (err error) {
			updates, err = plugins.Stop(ctx, pod, d)
			return err
		})
	return updates
}

// informRemoved has the turn.
func (c *container) informRemoved(ctx context.Context) {
	c.inform(ctx, "RemoveContainer", c.learn(knownGone, knownStopped), func(ctx context.Context, plugins *nri.Plugins, pod *nri.Pod, d *nri.Container) error {
		return plugins.Remove(ctx, pod, d)
	})
}
