package sandbox

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/criserver/criserver/sandbox/stats"
)

// containerPhase is where a container is in its life. It is stored in records: a value may be added, none renamed.
type containerPhase string

const (
	containerCreating containerPhase = "creating" // not listed
	containerCreated  containerPhase = "created"
	containerStarting containerPhase = "starting" // listed as created
	containerRunning  containerPhase = "running"
	containerExited   containerPhase = "exited"
	containerRemoving containerPhase = "removing" // listed as it was before
	containerRemoved  containerPhase = "removed"  // not listed
)

// containerNext are the allowed transitions.
var containerNext = map[containerPhase][]containerPhase{
	containerCreating: {containerCreated, containerRemoving},
	containerCreated:  {containerStarting, containerRunning, containerExited, containerRemoving}, // running and exited: found so after a restart
	containerStarting: {containerRunning, containerExited},
	containerRunning:  {containerExited},
	containerExited:   {containerRemoving},
	containerRemoving: {containerRemoving, containerRemoved},
}

// exit codes of containers whose own is not known, as the peers have them.
const (
	codeStartError = 128
	codeKilled     = 137
	codeUnknown    = 255
)

// live is the phase of a container that may have processes.
func live(phase containerPhase) bool { return phase == containerStarting || phase == containerRunning }

// container is one container of a pod. What is not immutable or atomic is guarded by the pod's mu.
type container struct {
	p           *pod
	id          ContainerID
	fingerprint string                          // of the request
	status      atomic.Pointer[ContainerStatus] // replaced by advance
	exited      chan struct{}                   // closed by advance on entering containerExited
	turns       turns                           // of starts, updates and removals, and of what plugins are told

	phase   containerPhase
	rt      RuntimeContainer // nil before there is one, or if its pause is gone
	stop    *stopping        // of the running process; nil: nobody wants it stopped
	settled chan struct{}    // while starting; closed when that is over
	pending *Limits          // the change of an update that goes on; recorded, so that a later criserver ends it
	told    bool             // a caller knows that the start succeeded
	known   known            // to plugins
	dirty   bool             // an undo failed: the record must stay

	meter  stats.Meter // of CPU time
	idle   stats.Idle  // what metrics need not read again
	atRest stats.Idle  // what statistics of the pod need not read again
	layer  stats.Layer // the writable one
}

func (c *container) service() *Service { return c.p.s }

// recordPath lies in the pod's directory: it goes with it.
func (c *container) recordPath() string {
	return filepath.Join(c.p.dir(), containerPrefix+string(c.id))
}

// advance is the one door of a container's phase: it checks the transition, lets change edit the new status, records,
// publishes, lists and tells. change may be nil. A failure to record keeps a container from becoming created and nothing else.
func (c *container) advance(to containerPhase, change func(*ContainerStatus)) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if !slices.Contains(containerNext[c.phase], to) {
		return fmt.Errorf("%w: container %s is %s", ErrState, c.id, c.phase)
	}
	from, next := c.phase, *c.status.Load()
	switch to {
	case containerCreated:
		next.State = ContainerCreated
	case containerRunning:
		next.State = ContainerRunning
	case containerExited:
		next.State, next.Pid = ContainerExited, 0
	}
	if change != nil {
		change(&next)
	}
	c.phase = to
	if to != containerStarting && to != containerRemoved { // whether it started is asked of the runtime; the record is gone
		if err := c.write(&next); err != nil && to == containerCreated {
			c.phase = from
			return err
		} else if err != nil {
			c.p.s.log.Warn("cannot record the phase of a container", "container", c.id, "phase", to, "error", err)
		}
	}
	c.status.Store(&next)
	c.announce(to)
	c.signal(from, to)
	return nil
}

// announce lists the container or not and tells of a transition. The pod's mu is held.
func (c *container) announce(to containerPhase) {
	switch to {
	case containerCreated:
		c.list()
		c.p.tell(string(c.id), EventCreated)
	case containerRunning:
		c.p.tell(string(c.id), EventStarted)
	case containerExited:
		c.p.tell(string(c.id), EventStopped)
	case containerRemoved:
		c.p.members = slices.DeleteFunc(c.p.members, func(m *container) bool { return m == c })
		if c.unlist() {
			c.p.tell(string(c.id), EventDeleted)
		}
	}
}

// signal wakes those who wait for a transition. The pod's mu is held.
func (c *container) signal(from, to containerPhase) {
	if to == containerStarting {
		c.settled = make(chan struct{})
	}
	if from == containerStarting {
		close(c.settled)
		c.settled = nil
	}
	if to == containerExited {
		close(c.exited)
		if c.p.s.config.Plugins != nil {
			c.p.s.spawn(c.informStopped)
		}
	}
}

// end says how a container ended.
func (c *container) end(code int32, reason, message string, at time.Time) error {
	err := c.advance(containerExited, func(st *ContainerStatus) {
		st.ExitCode, st.Reason, st.FinishedAt = code, reason, at
		st.Message = strings.ToValidUTF8(message, "\uFFFD") // hooks, for one, may say any bytes, and no answer could carry them
	})
	if err == nil {
		c.p.s.ends.WithLabelValues(reason).Inc()
	}
	return err
}

// look returns the phase and the runtime's container.
func (c *container) look() (containerPhase, RuntimeContainer) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.phase, c.rt
}
