package sandbox

import (
	"cmp"
	"context"
	"maps"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/stage"
)

// followed begins to follow the processes of a pod that has become ready or was adopted.
func (p *pod) followed() {
	p.mu.Lock()
	rt := p.rt
	p.wake = make(chan struct{}, 1)
	p.mu.Unlock()
	if rt != nil {
		p.s.beside(func() { p.follow(rt) })
	}
}

// nudge tells follow that a container was started.
func (p *pod) nudge() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default: // it has not seen the last one yet
	}
}

// Places in the list that follow waits on; containers come after them.
const (
	onClosed = iota
	onWake
	onPause
	onContainers
)

// follow waits for the end of all processes of a pod in one goroutine: memory counts, once for every idle pod.
// It ends with pause, with which everything ends, or with the Service.
func (p *pod) follow(rt RuntimePod) {
	var ending map[*container]bool // their ends are being dealt with
	for {
		running := p.containers(func(phase containerPhase) bool { return phase == containerRunning })
		maps.DeleteFunc(ending, func(c *container, _ bool) bool { return !slices.Contains(running, c) })
		running = slices.DeleteFunc(running, func(c *container) bool { return ending[c] })
		cases := []reflect.SelectCase{onClosed: receive(p.s.closed), onWake: receive(p.wake), onPause: receive(rt.Exited())}
		for _, c := range running {
			cases = append(cases, receive(c.rt.Exited()))
		}
		chosen, _, _ := reflect.Select(cases)
		switch chosen {
		case onClosed:
			return
		case onWake:
		case onPause:
			for _, c := range running {
				p.s.reap(c)
			}
			p.bereaved(rt)
			return
		default:
			c := running[chosen-onContainers]
			if exit, _ := c.rt.Exit(); exit.Signal != unix.SIGKILL {
				p.s.ended(c, exit)
				break
			}
			// It may be pause that died: then nobody has killed what else was in the container.
			if ending == nil {
				ending = map[*container]bool{}
			}
			ending[c] = true
			p.s.reap(c)
		}
	}
}

func receive[T any](ch <-chan T) reflect.SelectCase {
	return reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ch)}
}

// reap ends a container that may have processes left, because it was SIGKILL, perhaps of a dying pause, that ended it.
// As long as they live it is not ended.
func (s *Service) reap(c *container) {
	s.spawn(func(ctx context.Context) {
		stage.Persist(ctx, 100*time.Millisecond, lastKillPause, func(ctx context.Context) bool {
			kill, cancel := context.WithTimeout(ctx, killTry)
			defer cancel()
			if err := c.rt.Kill(kill); err != nil {
				s.log.Warn("what a container left does not die, killing it again", "container", c.id, "error", err)
				return false
			}
			exit, known := c.rt.Exit()
			if !known {
				exit = ociruntime.Exit{Code: codeKilled, Signal: unix.SIGKILL, At: time.Now()}
			}
			s.ended(c, exit)
			return true
		})
	})
}

// ended publishes the end of a container.
func (s *Service) ended(c *container, exit ociruntime.Exit) {
	if err := c.end(exit.Code, reasonOf(exit), exit.Message, exit.At); err != nil {
		s.log.Debug("a container had ended already", "container", c.id, "error", err)
	}
}

func reasonOf(e ociruntime.Exit) string {
	switch {
	case e.OOMKilled:
		return ReasonOOMKilled
	case e.Code == 0:
		return ReasonCompleted
	}
	return ReasonError
}

// bereaved stops the rest of a pod whose pause died by itself. If it was stopped, that goes on already.
func (p *pod) bereaved(rt RuntimePod) {
	starved := rt.Starved()
	p.mu.Lock()
	ready := p.phase == podReady
	if ready {
		p.starved = starved
	}
	p.mu.Unlock()
	if !ready {
		return
	}
	p.s.log.Error("pause of a pod died, its containers died with it", "pod", p.id, "error", cmp.Or(starved, ociruntime.ErrPodGone))
	if err := p.advance(podStopping); err != nil {
		return // it is being stopped
	}
	p.stopLater()
}
