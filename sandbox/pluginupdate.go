package sandbox

import (
	"context"
	"fmt"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/sandbox/nri"
)

// updateBound is how long one update that a plugin wants may take, turns of its container included.
const updateBound = 10 * time.Second

// Update does what a plugin wants by itself.
func (s source) Update(ctx context.Context, updates []nri.Update) []nri.Update {
	return s.updateFor(ctx, updates)
}

// updateFor changes the limits of containers as plugins want, one after the other, and returns those that failed and
// should not have. Nobody who calls it has a turn.
func (s *Service) updateFor(ctx context.Context, updates []nri.Update) (failed []nri.Update) {
	for _, u := range updates {
		err := s.updateOne(ctx, u)
		if err == nil {
			continue
		}
		s.log.Warn("cannot update a container as a plugin wants", "container", u.Container, "ignored", u.IgnoreFailure, "error", err)
		if !u.IgnoreFailure {
			failed = append(failed, u)
		}
	}
	return failed
}

func (s *Service) updateOne(ctx context.Context, u nri.Update) error {
	c, err := s.container(ContainerID(u.Container))
	if err != nil {
		return err
	}
	change, err := s.limitsFor(u)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), updateBound)
	defer cancel()
	_, err = c.update(ctx, change)
	return err
}

// limitsFor is what a plugin wants as a change.
func (s *Service) limitsFor(u nri.Update) (change ociruntime.Limits, err error) {
	if err := u.Check(); err != nil {
		return change, fmt.Errorf("%w: update by plugins: %w", ErrInvalid, err)
	}
	change.Resources = u.Resources
	if u.BlockIOClass != nil {
		if change.Resources.BlockIO, err = s.blockIOOf(*u.BlockIOClass); err != nil {
			return change, fmt.Errorf("update by plugins: linux.resources.blockio_class: %w", err)
		}
	}
	return change, nil
}

// updateAsked is an update that the kubelet asks for, as plugins want it, and what they want of others for its sake.
func (c *container) updateAsked(ctx context.Context, change ociruntime.Limits) error {
	change, others, err := c.askUpdate(ctx, change)
	if err != nil {
		return err
	}
	c.p.s.updateFor(ctx, others)
	if _, err := c.update(ctx, change); err != nil {
		return err
	}
	return c.informUpdated(ctx)
}

// askUpdate returns what to change instead, and of others.
func (c *container) askUpdate(ctx context.Context, change ociruntime.Limits) (_ ociruntime.Limits, others []nri.Update, err error) {
	done, err := c.turns.take(ctx)
	if err != nil {
		return change, nil, fmt.Errorf("wait for another change of container %s: %w", c.id, err)
	}
	defer done()
	if _, err := c.changeable(); err != nil {
		return change, nil, err
	}
	var own *nri.Update
	err = c.p.s.ask(c.still(knownMade, knownRunning), func(plugins *nri.Plugins) (err error) {
		own, others, err = plugins.Update(ctx, c.p.described(), c.described(c.oci()), change.Resources)
		return err
	})
	if err != nil || own == nil {
		return change, others, err
	}
	instead, err := c.p.s.limitsFor(*own)
	if own.BlockIOClass == nil && change.Resources != nil {
		instead.Resources.BlockIO = change.Resources.BlockIO // which plugins are not told
	}
	instead.OOMScoreAdj = change.OOMScoreAdj
	return instead, others, err
}

func (c *container) informUpdated(ctx context.Context) error {
	done, err := c.turns.take(ctx)
	if err != nil {
		return fmt.Errorf("wait for another change of container %s: %w", c.id, err)
	}
	defer done()
	c.inform(ctx, "PostUpdateContainer", c.still(knownMade, knownRunning), func(ctx context.Context, plugins *nri.Plugins, pod *nri.Pod, d *nri.Container) error {
		return plugins.PostUpdate(ctx, pod, d)
	})
	return nil
}

// askUpdate is told before the resources of the pod are noted.
func (p *pod) askUpdate(ctx context.Context, overhead, resources *runtimev1.LinuxContainerResources) error {
	return p.s.ask(p.learn(knownRunning, knownRunning), func(plugins *nri.Plugins) error {
		return plugins.UpdatePod(ctx, p.described(), ociResources(overhead), ociResources(resources))
	})
}

func (p *pod) informUpdated(ctx context.Context) {
	p.s.inform(ctx, "PostUpdatePodSandbox", string(p.id), p.learn(knownRunning, knownRunning), func(ctx context.Context, plugins *nri.Plugins) error {
		return plugins.PostUpdatePod(ctx, p.described())
	})
}
