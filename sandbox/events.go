package sandbox

import (
	"slices"
	"time"

	"github.com/criserver/criserver/sandbox/events"
)

// EventType says what became of a pod or container.
type EventType uint8

// Types of events, in the order in which they happen to one object.
const (
	EventCreated EventType = iota // it is listed
	EventStarted                  // a pod is ready, a container runs
	EventStopped                  // it and everything in it has ended, or it failed to start
	EventDeleted                  // it is not listed any more
)

// Event tells of one transition. It and everything it refers to is immutable.
type Event struct {
	ID         string // of the container, or of the pod
	Type       EventType
	At         time.Time          // later than those before it of the same pod
	Pod        *PodStatus         // after the transition; of a deleted one the last
	Containers []*ContainerStatus // after the transition: those listed in all pods with the same uid
}

// Events are the transitions from now on, those of one pod in their order. The error of Next is events.ErrSlow when some were lost.
func (s *Service) Events() *events.Subscription[*Event] { return s.news.Subscribe() }

// tell publishes a transition of the pod or of one of its containers, which has been published otherwise. mu is held.
func (p *pod) tell(id string, what EventType) {
	p.s.news.Publish(func() *Event {
		p.lastEvent = max(time.Now().UnixNano(), p.lastEvent+1)
		return &Event{ID: id, Type: what, At: time.Unix(0, p.lastEvent), Pod: p.status.Load(), Containers: p.family()}
	})
}

// tellStopped publishes the end of a pod that was listed, once.
func (p *pod) tellStopped() {
	if p.over || !p.isListed() {
		return
	}
	p.over = true
	p.tell(string(p.id), EventStopped)
}

// family is the containers of the pod and of what came before it under the same uid, which the kubelet takes for one pod.
func (p *pod) family() []*ContainerStatus {
	var all []*ContainerStatus
	for _, other := range p.s.table.Load().pods {
		if other != p && other.spec.Metadata.Uid == p.spec.Metadata.Uid {
			all = append(all, other.containerStatuses()...)
		}
	}
	return append(all, p.containerStatuses()...)
}

// containerStatuses are those of the containers that are listed, the oldest first.
func (p *pod) containerStatuses() []*ContainerStatus {
	listed := p.listed.Load()
	if listed == nil {
		return nil
	}
	all := make([]*ContainerStatus, len(*listed))
	for i, c := range *listed {
		all[i] = c.status.Load()
	}
	return all
}

// list shows the pod. mu is held.
func (p *pod) list() { p.s.change(func(t *table) { t.pods = with(t.pods, p) }) }

// unlist hides the pod and reports whether it was shown. mu is held.
func (p *pod) unlist() bool {
	shown := p.isListed()
	p.s.change(func(t *table) { t.pods = without(t.pods, p) })
	return shown
}

func (p *pod) isListed() bool {
	_, shown := position(p.s.table.Load().pods, string(p.id))
	return shown
}

// list shows the container. The pod's mu is held.
func (c *container) list() {
	c.p.relist(func(all []*container) []*container { return append(all, c) })
	c.p.s.change(func(t *table) { t.containers = with(t.containers, c) })
}

// unlist hides the container and reports whether it was shown. The pod's mu is held.
func (c *container) unlist() bool {
	_, shown := position(c.p.s.table.Load().containers, string(c.id))
	c.p.relist(func(all []*container) []*container {
		return slices.DeleteFunc(all, func(other *container) bool { return other == c })
	})
	c.p.s.change(func(t *table) { t.containers = without(t.containers, c) })
	return shown
}

// relist replaces the list of the pod's containers by what edit makes of a copy. mu is held.
func (p *pod) relist(edit func([]*container) []*container) {
	var all []*container
	if listed := p.listed.Load(); listed != nil {
		all = slices.Clone(*listed)
	}
	all = edit(all)
	p.listed.Store(&all)
}

// PodView is a pod with those of its containers that are listed.
type PodView struct {
	At         time.Time // what happened before is in it
	Pod        *PodStatus
	Containers []*ContainerStatus
}

// PodView finds a pod; see PodStatus for errors. What an event tells that is not in the view is later than the view.
func (s *Service) PodView(id ID) (*PodView, error) {
	p, err := s.pod(id)
	if err != nil {
		return nil, err
	}
	v := &PodView{At: time.Now()} // before anything is looked at
	v.Pod, v.Containers = p.status.Load(), p.containerStatuses()
	return v, nil
}
