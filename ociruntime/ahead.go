package ociruntime

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/mount"
)

const (
	aheadBound = 10 * time.Second // how long what was made ahead waits for the start
	maxAhead   = 32               // of a Runtime: each holds some 30 descriptors
)

// ahead is a start that began when its container was created, in the background, because it nearly always follows at once: it has
// made what nothing can change meanwhile.
type ahead struct {
	start   *start
	made    chan struct{} // closed when start is the taker's
	expires *time.Timer
}

// startAhead begins the start of a container, unless many wait for theirs already.
func (c *Container) startAhead() {
	r := c.pod.runtime
	if r.aheads.Add(1) > maxAhead {
		r.aheads.Add(-1)
		return
	}
	a := &ahead{start: c.newStart(c.spec), made: make(chan struct{})}
	c.mu.Lock()
	c.ahead = a
	a.expires = time.AfterFunc(aheadBound, c.dropAhead)
	c.mu.Unlock()
	go func() {
		defer close(a.made)
		a.start.makeAhead()
	}()
}

// makeAhead opens the leaf and makes the file systems that are the container's alone. What fails is tried again by the start.
func (s *start) makeAhead() {
	s.ahead = map[int][]compile.Mount{}
	for i, m := range s.spec.Mounts {
		if !ownAlone(m) {
			continue
		}
		if made, err := s.mount(context.Background(), m); err == nil {
			s.ahead[i] = made
		}
	}
	if s.openPlace() == nil {
		_ = s.openMonitors()
	}
}

// ownAlone says whether a mount is a file system that is the container's alone. Another has a source, which may never answer.
func ownAlone(m specs.Mount) bool {
	return (m.Type == "tmpfs" || m.Type == "devpts" || m.Type == "cgroup") && !mount.ParseOptions(m.Options).Bind
}

// takeAhead gives the start that began with the creation, or a new one.
func (c *Container) takeAhead() *start {
	c.mu.Lock()
	a := c.ahead
	c.ahead = nil
	c.mu.Unlock()
	if a == nil {
		return c.newStart(nil)
	}
	a.expires.Stop()
	<-a.made
	c.pod.runtime.aheads.Add(-1)
	return a.start
}

// dropAhead gives up what was made ahead.
func (c *Container) dropAhead() { c.takeAhead().close() }
