package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/blockio"
	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/limits"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/stage"
)

// Limits are what a container may use.
type Limits struct {
	Resources   *specs.LinuxResources `json:"resources,omitempty"` // without devices; see package limits
	OOMScoreAdj int                   `json:"oomScoreAdj,omitempty"`
}

// Resources are the limits of the container at present, in CRI's terms.
func (st *ContainerStatus) Resources() *runtimev1.LinuxContainerResources {
	return specgen.FromOCI(st.Limits.Resources, st.Limits.OOMScoreAdj)
}

// specLimits are the limits in a spec.
func specLimits(spec *specs.Spec) Limits {
	l := Limits{}
	if r := spec.Linux.Resources; r != nil {
		own := *r
		own.Devices = nil
		l.Resources = &own
	}
	if score := spec.Process.OOMScoreAdj; score != nil {
		l.OOMScoreAdj = *score
	}
	return l
}

// UpdateContainer changes the limits of a container that is created or running: now, in its record and, if it has not
// started, in what it will start with; all of it or nothing. Zero and empty fields stay as they are; see package limits.
// Annotations are those of the request; the one of package blockio for containers is heeded.
func (s *Service) UpdateContainer(ctx context.Context, id ContainerID, change *runtimev1.LinuxContainerResources, annotations map[string]string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	todo := ociruntime.Limits{}
	if todo.Resources, err = specgen.Change(change, s.host.CgroupV2); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if todo.Resources.BlockIO, err = s.blockIOOf(annotations[blockio.ContainerAnnotation]); err != nil {
		return err
	}
	if score := int(change.GetOomScoreAdj()); score != 0 {
		todo.OOMScoreAdj = &score
	}
	key := string(c.id) + " update " + strconv.FormatUint(s.lastUpdate.Add(1), 10) // each is one of its own; they take turns
	return join(ctx, s.updates, key, func(ctx context.Context) error {
		return c.updateAsked(ctx, todo)
	})
}

// update is the one way to change the limits of a container: it decides, changes, records and publishes. Updates of one
// container take turns with each other, its start and its removal. undo takes this one back, unless the container has gone.
func (c *container) update(ctx context.Context, change ociruntime.Limits) (undo func(context.Context) error, err error) {
	ctx, _, leave, err := c.p.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	done, err := c.turns.take(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for another change of container %s: %w", c.id, err)
	}
	defer done()
	rt, err := c.changeable()
	if err != nil {
		return nil, err
	}
	before := c.status.Load().Limits
	var back func() error
	err = stage.Run(ctx, "limits", 0, func(context.Context) (err error) {
		back, err = c.change(rt, change)
		return err
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return c.takeBack(ctx, back, before) }, nil
}

// change takes limits from what they are to what is asked for, all of it or nothing.
func (c *container) change(rt RuntimeContainer, change ociruntime.Limits) (back func() error, err error) {
	before := c.status.Load().Limits
	todo, after, err := planLimits(before, change)
	if err != nil {
		return nil, err
	}
	if err := c.intend(change); err != nil {
		return nil, err
	}
	c.p.s.at("before update")
	back, err = rt.Update(todo)
	c.p.s.at("after update")
	if err != nil {
		return nil, errors.Join(ofLimits(err), c.desist())
	}
	if err := c.limit(after); err != nil {
		return nil, errors.Join(err, back(), c.desist())
	}
	return back, nil
}

// planLimits says what is to be done to get from before to what change asks for, and what the limits are then.
func planLimits(before Limits, change ociruntime.Limits) (todo ociruntime.Limits, after Limits, err error) {
	todo, after = change, before
	if change.Resources != nil {
		todo.Resources, after.Resources, err = limits.Plan(before.Resources, change.Resources)
		if err != nil {
			return todo, after, fmt.Errorf("%w: linux.memory_swap_limit_in_bytes: %w", ErrInvalid, err)
		}
	}
	if change.OOMScoreAdj != nil {
		after.OOMScoreAdj = *change.OOMScoreAdj
	}
	return todo, after, nil
}

// intend records what is about to be changed: killed within that, criserver ends it when it is there again. Otherwise the
// cgroup could say something else than the status.
func (c *container) intend(change ociruntime.Limits) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.pending = &Limits{Resources: change.Resources}
	if change.OOMScoreAdj != nil {
		c.pending.OOMScoreAdj = *change.OOMScoreAdj
	}
	err := c.write(c.status.Load())
	if err != nil {
		c.pending = nil
	}
	return err
}

// desist records that nothing is about to be changed any more.
func (c *container) desist() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.pending = nil
	return c.write(c.status.Load())
}

// endUpdate ends the update in which an earlier criserver was killed.
func (c *container) endUpdate(rt RuntimeContainer) {
	c.p.mu.Lock()
	pending := c.pending
	c.p.mu.Unlock()
	if pending == nil {
		return
	}
	change := ociruntime.Limits{Resources: pending.Resources}
	if score := pending.OOMScoreAdj; score != 0 {
		change.OOMScoreAdj = &score
	}
	if _, err := c.change(rt, change); err != nil {
		c.p.s.log.Warn("cannot end an update of limits that was interrupted", "container", c.id, "error", err)
	}
}

// takeBack ends an update whose caller could not do what belongs to it.
func (c *container) takeBack(ctx context.Context, back func() error, before Limits) error {
	done, err := c.turns.take(ctx)
	if err != nil {
		return fmt.Errorf("take back the limits of container %s: %w", c.id, err)
	}
	defer done()
	if _, err := c.changeable(); err != nil {
		return nil
	}
	return errors.Join(back(), c.limit(before))
}

// changeable returns the runtime's container if its limits can be changed.
func (c *container) changeable() (RuntimeContainer, error) {
	switch phase, rt := c.look(); {
	case phase == containerRemoved:
		return nil, fmt.Errorf("container %s: %w", c.id, ErrNotFound)
	case phase != containerCreated && phase != containerRunning || rt == nil:
		return nil, fmt.Errorf("%w: container %s is %s", ErrState, c.id, phase)
	default:
		return rt, nil
	}
}

// limit records and publishes limits, which ends an update. It is the door of advance for what is no change of phase.
func (c *container) limit(to Limits) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	next := *c.status.Load()
	next.Limits, c.pending = to, nil
	if err := c.write(&next); err != nil {
		return err
	}
	c.status.Store(&next)
	return nil
}

// ofLimits tells refusals of limits by what they are.
func ofLimits(err error) error {
	switch {
	case errors.Is(err, cgroup.ErrUnfit):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case errors.Is(err, cgroup.ErrInUse):
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return err
}

// turns let one change at a time through.
type turns chan struct{}

func newTurns() turns { return make(turns, 1) }

// take waits for its turn, which done ends.
func (t turns) take(ctx context.Context) (done func(), err error) {
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
