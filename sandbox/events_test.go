package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/sandbox/events"
)

// told is what a subscriber gets in a test.
type told struct {
	t     *testing.T
	from  *events.Subscription[*Event]
	names map[string]string // of objects
	last  time.Time
}

func listen(t *testing.T, m *machine) *told {
	return &told{t: t, from: m.s.Events(), names: map[string]string{}}
}

// want waits until nothing happens any more, and compares what was told since the last time: one line an event with the
// states of the pod and of its containers.
func (l *told) want(lines ...string) {
	l.t.Helper()
	synctest.Wait()
	ended, cancel := context.WithCancel(l.t.Context())
	cancel()
	var got []string
	for {
		e, err := l.from.Next(ended)
		if err != nil {
			break
		}
		if !e.At.After(l.last) {
			l.t.Errorf("an event at %v after one at %v", e.At, l.last)
		}
		l.last = e.At
		line := fmt.Sprintf("%s %s: %s", []string{"created", "started", "stopped", "deleted"}[e.Type], l.names[e.ID], []string{"creating", "ready", "not ready"}[e.Pod.State])
		for _, c := range e.Containers {
			line += fmt.Sprintf(", %s %s", c.Metadata.Name, []string{"creating", "created", "running", "exited"}[c.State])
			if c.State == ContainerExited {
				line += fmt.Sprintf(" %d", c.ExitCode)
			}
		}
		got = append(got, line)
	}
	if !slices.Equal(got, lines) {
		l.t.Errorf("told:\n%s\nwanted:\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

func TestEvents(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		l := listen(t, m)
		defer l.from.Close()
		pod, id := m.made()
		l.names[string(pod)], l.names[string(id)] = "pod", "main"
		l.want("created pod: ready", "started pod: ready", "created main: ready, main created", "started main: ready, main running")

		config := containerConfig()
		config.Metadata.Name = "second"
		second, err := m.s.CreateContainer(t.Context(), pod, config, nil)
		must(t, err)
		l.names[string(second)] = "second"
		m.failing("Start", errors.New("no such file"))
		want(t, "start fails", m.s.StartContainer(t.Context(), second) != nil, true)
		l.want("created second: ready, main running, second created", "stopped second: ready, main running, second exited 128")

		m.process(id).exits(ociruntime.Exit{Code: 3})
		l.want("stopped main: ready, main exited 3, second exited 128")
		must(t, m.s.RemoveContainer(t.Context(), id))
		must(t, m.s.RemoveContainer(t.Context(), id))
		l.want("deleted main: ready, second exited 128")
		must(t, m.s.StopPod(t.Context(), pod))
		must(t, m.s.StopPod(t.Context(), pod))
		l.want("stopped pod: not ready, second exited 128")
		must(t, m.s.RemovePod(t.Context(), pod))
		must(t, m.s.RemovePod(t.Context(), pod))
		l.want("deleted second: not ready", "deleted pod: not ready")
		m.clean()
	})
}

// A subscriber may ask for what it was told of.
func TestEventsFollowTheLists(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		from := m.s.Events()
		defer from.Close()
		seen := make(chan error)
		go func() {
			for range 4 {
				e, err := from.Next(t.Context())
				if err != nil {
					seen <- err
					return
				}
				if e.ID == string(e.Pod.ID) {
					_, err = m.s.PodStatus(e.Pod.ID)
				} else {
					_, err = m.s.ContainerStatus(ContainerID(e.ID))
				}
				seen <- err
			}
		}()
		done := make(chan struct{})
		go func() { defer close(done); m.made() }()
		for range 4 {
			must(t, <-seen)
		}
		<-done
		must(t, m.s.RemovePod(t.Context(), m.s.ListPods()[0].ID))
	})
}

func TestEventsOfARunningPodsEnd(t *testing.T) {
	for name, end := range map[string]func(*machine, ID){
		"stop":       func(m *machine, pod ID) { must(m.t, m.s.StopPod(m.t.Context(), pod)) },
		"pause died": func(m *machine, pod ID) { m.be(func(n *node) { n.pods[string(pod)].die() }) },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				pod, id := m.made()
				l := listen(t, m)
				defer l.from.Close()
				l.names[string(pod)], l.names[string(id)] = "pod", "main"
				if name == "stop" { // from the inside to the outside
					end(m, pod)
					l.want("stopped main: not ready, main exited 137", "stopped pod: not ready, main exited 137")
				} else { // at once, while there is still something to be killed
					m.failing("Kill", errors.New("in the middle of a write"))
					end(m, pod)
					l.want("stopped pod: not ready, main running")
					m.failing("Kill", nil)
					time.Sleep(time.Hour)
					l.want("stopped main: not ready, main exited 137")
				}
				must(t, m.s.RemovePod(t.Context(), pod))
				l.want("deleted main: not ready", "deleted pod: not ready")
				m.clean()
			})
		})
	}
}

// What never was listed is never told of, unless it cannot be undone: then it is listed as a pod that has stopped.
func TestEventsOfFailures(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		l := listen(t, m)
		defer l.from.Close()
		m.failing("StartPod", errors.New("no memory"))
		_, err := m.s.RunPod(t.Context(), podConfig(), "")
		want(t, "fails", err != nil, true)
		l.want()
		m.failing("StartPod", nil)

		m.failing("Add", errors.New("no address"))
		m.failing("Stop", errors.New("does not die"))
		_, err = m.s.RunPod(t.Context(), podConfig(), "")
		want(t, "fails", err != nil, true)
		synctest.Wait()
		left := m.s.ListPods()
		if len(left) != 1 {
			t.Fatalf("%d pods are listed, want the one that could not be undone", len(left))
		}
		l.names[string(left[0].ID)] = "pod"
		l.want("created pod: not ready")
		m.failing("Stop", nil)
		time.Sleep(time.Hour)
		l.want("stopped pod: not ready", "deleted pod: not ready")
		m.failing("Add", nil)

		pod, id := m.made()
		l.names[string(pod)], l.names[string(id)] = "pod", "main"
		l.want("created pod: ready", "started pod: ready", "created main: ready, main created", "started main: ready, main running")
		m.failing("Create", errors.New("no slot"))
		config := containerConfig()
		config.Metadata.Name = "second"
		_, err = m.s.CreateContainer(t.Context(), pod, config, nil)
		want(t, "fails", err != nil, true)
		l.want()
		must(t, m.s.RemovePod(t.Context(), pod))
		l.want("stopped main: not ready, main exited 137", "stopped pod: not ready, main exited 137", "deleted main: not ready", "deleted pod: not ready")
		m.clean()
	})
}

// The kubelet takes all that has one uid for one pod, and replaces what it knew of that by what an event says.
func TestEventsHaveTheContainersOfEarlierAttempts(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		first, id := m.made()
		must(t, m.s.StopPod(t.Context(), first))
		other := podConfig()
		other.Metadata.Uid = "another"
		_, err := m.s.RunPod(t.Context(), other, "")
		must(t, err)
		l := listen(t, m)
		defer l.from.Close()
		again := podConfig()
		again.Metadata.Attempt++
		second, err := m.s.RunPod(t.Context(), again, "")
		must(t, err)
		l.names[string(second)], l.names[string(id)] = "second", "main"
		l.want("created second: ready, main exited 137", "started second: ready, main exited 137")
		v, err := m.s.PodView(second)
		must(t, err)
		want(t, "containers of the pod itself", len(v.Containers), 0)
	})
}

func TestEventsAfterARestart(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		m.restart()
		l := listen(t, m)
		defer l.from.Close()
		l.names[string(pod)], l.names[string(id)] = "pod", "main"
		m.process(id).exits(ociruntime.Exit{Code: 9, Signal: unix.SIGKILL})
		l.want("stopped main: ready, main exited 9")
		v, err := m.s.PodView(pod)
		must(t, err)
		want(t, "containers", len(v.Containers), 1)
		must(t, m.s.RemovePod(t.Context(), pod))
		l.want("stopped pod: not ready, main exited 9", "deleted main: not ready", "deleted pod: not ready")
	})
}

// What a view does not have is told by an event that is later than the view.
func TestPodViewIsNotNewerThanItSays(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		before, err := m.s.PodView(pod[:7])
		must(t, err)
		want(t, "state", before.Containers[0].State, ContainerRunning)
		from := m.s.Events()
		defer from.Close()
		time.Sleep(time.Second)
		m.process(id).exits(ociruntime.Exit{})
		e, err := from.Next(t.Context())
		must(t, err)
		want(t, "event is later", e.At.After(before.At), true)
		after, err := m.s.PodView(pod)
		must(t, err)
		want(t, "state", after.Containers[0].State, ContainerExited)
		_, err = m.s.PodView("00")
		want(t, "unknown", errors.Is(err, ErrNotFound), true)
		must(t, m.s.RemovePod(t.Context(), pod))
	})
}
