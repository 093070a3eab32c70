package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/sandbox/stats"
)

// podPhase is where a pod is in its life. It is stored in records: a value may be added, none renamed.
type podPhase string

const (
	podCreating podPhase = "creating" // not listed
	podReady    podPhase = "ready"
	podStopping podPhase = "stopping" // something of it may still be there
	podStopped  podPhase = "stopped"  // only its records and files are left
	podRemoved  podPhase = "removed"  // not listed
)

// podNext are the allowed transitions.
var podNext = map[podPhase][]podPhase{
	podCreating: {podReady, podStopping, podRemoved},
	podReady:    {podStopping},
	podStopping: {podStopping, podStopped, podRemoved},
	podStopped:  {podRemoved},
}

// errStopping ends the operations on containers of a pod that is being stopped.
var errStopping = errors.New("the pod is being stopped")

// pod is one pod sandbox, the owner of its containers.
type pod struct {
	s           *Service
	id          ID
	spec        *podSpec
	handler     string           // as asked for
	gives       *specgen.Handler // what it was when the pod was made
	fingerprint string           // of the request
	createdAt   time.Time
	level       string // SELinux, shared by its containers; "": none
	bootID      string // of the boot in which it was made

	status atomic.Pointer[PodStatus]    // replaced by advance
	listed atomic.Pointer[[]*container] // those that are listed, the oldest first; replaced by their advance

	// mu is held while the pod is listed and its events are published. It is held while a record is written to tmpfs, by this pod alone.
	mu      sync.Mutex
	phase   podPhase
	ips     []netip.Addr
	rt      RuntimePod // nil before there is one and after it was stopped
	starved error      // an ociruntime.ErrPodStarved if that is how pause ended; not recorded
	members []*container
	users   map[*visit]struct{} // operations on containers that are under way
	idle    chan struct{}       // closed when users is empty; nil: nobody waits for that
	wake    chan struct{}       // tells follow that there is another process; nil until followed
	dirty   bool                // an undo failed: the record must stay
	updated *podResources       // nil: never
	doomed  bool                // it is being removed; recorded, so that a later criserver goes on
	known   known               // to plugins

	over      bool  // that it has stopped was told
	lastEvent int64 // when its last event was, in nanoseconds since 1970

	meter  stats.Meter // of CPU time
	atRest stats.Idle  // what statistics need not read again
}

// visit is one operation on a container.
type visit struct{ cancel context.CancelCauseFunc }

func (p *pod) service() *Service { return p.s }
func (p *pod) dir() string       { return filepath.Join(p.s.podsDir(), string(p.id)) }

// advance is the one door of a pod's phase: it checks the transition, records it and publishes it. A phase is
// recorded before it is published; a failure to record keeps the pod from becoming ready and nothing else.
func (p *pod) advance(to podPhase) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(podNext[p.phase], to) {
		return fmt.Errorf("%w: pod %s is %s", ErrState, p.id, p.phase)
	}
	from := p.phase
	p.phase = to
	if to != podRemoved { // whose record is gone
		if err := p.write(); err != nil && to == podReady {
			p.phase = from
			return err
		} else if err != nil {
			p.s.log.Warn("cannot record the phase of a pod", "pod", p.id, "phase", to, "error", err)
		}
	}
	p.publish()
	p.announce(from, to)
	return nil
}

// announce lists the pod or not and tells of a transition. A pod has stopped when nothing of it is left, or its pause died.
// mu is held.
func (p *pod) announce(from, to podPhase) {
	switch {
	case to == podReady:
		p.list()
		p.tell(string(p.id), EventCreated)
		p.tell(string(p.id), EventStarted)
	case to == podStopped, from == podReady && p.bereft():
		p.tellStopped()
	case to == podRemoved && p.unlist():
		p.tell(string(p.id), EventDeleted)
	}
}

// bereft says whether the pod's pause has ended. mu is held.
func (p *pod) bereft() bool {
	if p.rt == nil {
		return true
	}
	select {
	case <-p.rt.Exited():
		return true
	default:
		return false
	}
}

// doom records that the pod is being removed, which whoever asked for it may not be there to ask again: the one who
// made another pod in its place.
func (p *pod) doom() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doomed {
		return
	}
	p.doomed = true
	if err := p.write(); err != nil {
		p.s.log.Warn("cannot record that a pod is being removed", "pod", p.id, "error", err)
	}
}

// publish replaces the status. mu is held.
func (p *pod) publish() {
	st := &PodStatus{ID: p.id, State: PodNotReady, CreatedAt: p.createdAt, Handler: p.handler, updated: p.updated, podSpec: p.spec}
	if p.phase == podReady {
		st.State, st.IPs = PodReady, p.ips
		if p.rt != nil {
			st.Pid = p.rt.Pid()
		}
	}
	p.status.Store(st)
}

// enter begins an operation on a container, which needs the pod to be ready. The context that it returns ends when
// the pod is stopped; leave must be called.
func (p *pod) enter(ctx context.Context) (_ context.Context, rt RuntimePod, leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != podReady {
		return nil, nil, nil, p.because(fmt.Errorf("%w: pod %s is not ready", ErrState, p.id))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	u := &visit{cancel}
	if p.users == nil {
		p.users = map[*visit]struct{}{}
	}
	p.users[u] = struct{}{}
	return ctx, p.rt, func() { p.leave(u) }, nil
}

// because adds to the error of an operation that the pod is not ready for why it is not, if that is known. mu is held.
func (p *pod) because(err error) error {
	if p.starved == nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, p.starved)
}

func (p *pod) leave(u *visit) {
	u.cancel(nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.users, u)
	if len(p.users) > 0 {
		return
	}
	p.users = nil
	if p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// quiesce ends the operations on containers and waits for them. The pod must not be ready any more.
func (p *pod) quiesce(ctx context.Context) error {
	p.mu.Lock()
	for u := range p.users {
		u.cancel(p.because(errStopping))
	}
	n := len(p.users)
	if n > 0 && p.idle == nil {
		p.idle = make(chan struct{})
	}
	idle := p.idle
	p.mu.Unlock()
	if n == 0 {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %d operations on containers: %w", n, ctx.Err())
	}
}

// containers returns those that are in a phase that want accepts.
func (p *pod) containers(want func(containerPhase) bool) []*container {
	p.mu.Lock()
	defer p.mu.Unlock()
	var some []*container
	for _, c := range p.members {
		if want(c.phase) {
			some = append(some, c)
		}
	}
	return some
}

func (p *pod) addMember(c *container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members = append(p.members, c)
}

func (p *pod) dropMember(c *container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members = slices.DeleteFunc(p.members, func(m *container) bool { return m == c })
}

// runtime returns the pod's runtime, or nil if it has none.
func (p *pod) runtime() RuntimePod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rt
}
