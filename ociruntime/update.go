package ociruntime

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/limits"
)

// Limits is a change of what a container may use; see package limits.
type Limits struct {
	Resources   *specs.LinuxResources // without devices; nil: unchanged
	OOMScoreAdj *int                  // nil: unchanged
}

// Update changes the limits of a container that was not deleted: of its leaf, and of the spec if it was not started. An OOM
// score holds for the first process, for execs, and for those processes that have the one that they were given.
// On error nothing has changed; undo puts everything back. Calls must not overlap with each other, Start or Delete.
func (c *Container) Update(change Limits) (undo func() error, err error) {
	todo := change.Resources
	if todo == nil {
		todo = &specs.LinuxResources{}
	}
	leaf, err := c.group.Update(todo)
	if err != nil {
		return nil, err
	}
	before := c.planned()
	after, err := before.with(change)
	if err == nil {
		err = c.adopted(after)
	}
	if err != nil {
		return nil, errors.Join(err, leaf.Undo())
	}
	was, is := before.record.Process.OOMScoreAdj, after.record.Process.OOMScoreAdj
	score := func(from, to *int) error {
		if change.OOMScoreAdj == nil || from == nil || to == nil {
			return nil
		}
		return c.rescore(*from, *to)
	}
	if err := score(was, is); err != nil {
		return nil, errors.Join(err, c.adopted(before), leaf.Undo())
	}
	return func() error { return errors.Join(score(is, was), c.adopted(before), leaf.Undo()) }, nil
}

// planned is what a start or an exec goes by. What it refers to is not changed.
type planned struct {
	record record
	spec   *specs.Spec // nil after Start
	onDisk *specs.Spec // of the record after Start
}

func (c *Container) planned() planned {
	c.mu.Lock()
	p := planned{record: c.record, spec: c.spec}
	c.mu.Unlock()
	if p.record.Spec == nil {
		p.onDisk, _ = c.Spec() // without it an update goes on: nothing but Spec needs it
	}
	return p
}

func (c *Container) processSpec() *specs.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record.Process
}

// with is p after a change.
func (p planned) with(change Limits) (planned, error) {
	if change.OOMScoreAdj != nil {
		process := *p.record.Process
		process.OOMScoreAdj = change.OOMScoreAdj
		p.record.Process = &process
	}
	var err error
	if p.spec != nil {
		p.spec, err = limited(p.spec, change)
	}
	for _, s := range []**specs.Spec{&p.record.Spec, &p.onDisk} {
		if *s != nil && err == nil {
			*s, err = limited(*s, change)
		}
	}
	return p, err
}

// limited is spec after a change.
func limited(spec *specs.Spec, change Limits) (*specs.Spec, error) {
	next, linux := *spec, *spec.Linux
	next.Linux = &linux
	if change.Resources != nil {
		_, all, err := limits.Plan(linux.Resources, change.Resources)
		if err != nil {
			return nil, err
		}
		if linux.Resources != nil {
			all.Devices = linux.Resources.Devices
		}
		linux.Resources = all
	}
	if change.OOMScoreAdj != nil && spec.Process != nil {
		process := *spec.Process
		process.OOMScoreAdj = change.OOMScoreAdj
		next.Process = &process
	}
	return &next, nil
}

// adopted makes p what starts and execs go by, also after a restart.
func (c *Container) adopted(p planned) error {
	stored := p.record
	if stored.Spec == nil && p.onDisk != nil {
		rest := *p.onDisk
		stored.Spec, rest.Process = &rest, nil
	}
	if err := writeRecord(c.pod.recordPath(c.record.ID), stored); err != nil {
		return fmt.Errorf("record the limits of container %s: %w", c.record.ID, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Process, c.record.Spec, c.spec = p.record.Process, p.record.Spec, p.spec // the rest is read without mu
	return nil
}
