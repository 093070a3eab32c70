package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/stage"
)

func TestRestart(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, running := m.made()
		config := containerConfig()
		config.Metadata.Name = "created"
		created, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
		must(t, err)
		config.Metadata.Name = "exits meanwhile"
		ended, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
		must(t, err)
		must(t, m.s.StartContainer(t.Context(), ended))
		before, started := *m.status(running), m.status(running).StartedAt
		process := m.process(ended)
		m.crash()
		process.exits(ociruntime.Exit{Code: 7})
		time.Sleep(time.Minute)
		m.start(nil)
		want(t, "listed", len(m.s.ListPods())+len(m.s.ListContainers()), 4)

		st, err := m.s.PodStatus(pod)
		must(t, err)
		want(t, "pod", st.State, PodReady)
		want(t, "address", st.IPs[0].String(), "10.0.0.7")
		want(t, "pod config", proto.Equal(st.Config(), podConfig()), true)
		after := m.status(running)
		want(t, "running", after.State, ContainerRunning)
		want(t, "pid", after.Pid, 43)
		want(t, "started", after.StartedAt.Equal(started), true)
		want(t, "config", proto.Equal(after.Config(), before.Config()), true)
		want(t, "created", m.status(created).State, ContainerCreated)
		want(t, "exited", m.status(ended).State, ContainerExited)
		want(t, "code", m.status(ended).ExitCode, int32(7))
		want(t, "finished before the restart", time.Since(m.status(ended).FinishedAt) >= time.Minute, true)

		again, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		want(t, "a retry joins what was before", again, pod)
		config.Metadata.Name = "created"
		retried, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
		must(t, err)
		want(t, "a retry of a create joins", retried, created)
		must(t, m.s.StartContainer(t.Context(), created))
		m.process(created).exits(ociruntime.Exit{Code: 0})
		synctest.Wait()
		want(t, "exit after the restart", m.status(created).Reason, ReasonCompleted)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

// The containers of a pod come in the order in which they were made, before a restart and after it.
func TestRestartKeepsTheOrderOfContainers(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, first := m.made()
		order := []ContainerID{first}
		for attempt := range uint32(8) {
			time.Sleep(time.Second)
			config := containerConfig()
			config.Metadata.Attempt = attempt + 1
			id, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
			must(t, err)
			order = append(order, id)
		}
		for _, when := range []string{"before", "after"} {
			view, err := m.s.PodView(pod)
			must(t, err)
			var got []ContainerID
			for _, c := range view.Containers {
				got = append(got, c.ID)
			}
			want(t, when, slices.Equal(got, order), true)
			m.restart()
		}
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

// A criserver that is killed between a start and its record leaves a container that ran, and whose caller may ask again.
func TestRestartFindsAnUnrecordedStart(t *testing.T) {
	for _, ends := range []bool{false, true} {
		in(t, func(t *testing.T, m *machine) {
			pod, _ := m.made()
			config := containerConfig()
			config.Metadata.Name = "started"
			id, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
			must(t, err)
			process := m.process(id)
			m.crash()
			must(t, process.Start(t.Context()))
			state := ContainerRunning
			if ends {
				process.exits(ociruntime.Exit{Code: 7})
				state = ContainerExited
			}
			time.Sleep(time.Minute)
			m.start(nil)
			st := m.status(id)
			want(t, "state", st.State, state)
			want(t, "start is known", st.StartedAt.IsZero(), false)
			want(t, "started before it finished", ends && st.StartedAt.After(st.FinishedAt), false)
			must(t, m.s.StartContainer(t.Context(), id))
			must(t, m.s.RemovePod(t.Context(), pod))
			m.clean()
		})
	}
}

func TestRestartFinds(t *testing.T) {
	for _, test := range []struct {
		name      string
		meanwhile func(m *machine, pod ID)
		code      int32
		reason    string
		message   string
	}{
		{"a reboot", func(m *machine, pod ID) {
			m.boot = "boot-2"
			m.mu.Lock()
			defer m.mu.Unlock()
			clear(m.pods)
			clear(m.pins)
			clear(m.leaves)
		}, 255, ReasonUnknown, "the node was restarted"},
		{"a dead pause", func(m *machine, pod ID) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.pods[string(pod)].die()
		}, 137, ReasonError, "the pod's pause is gone"},
		{"a pause that was killed for memory", func(m *machine, pod ID) {
			m.mu.Lock()
			m.pods[string(pod)].die()
			m.mu.Unlock()
			m.failing("AdoptPod", fmt.Errorf("%w: limit", ociruntime.ErrPodStarved))
		}, 137, ReasonOOMKilled, "pause of the pod is gone: killed for want of memory: limit"},
		{"a pause that does not answer", func(m *machine, pod ID) {
			m.failing("AdoptPod", errors.New("timeout"))
		}, 137, ReasonError, "the pod's pause is gone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				pod, id := m.made()
				m.crash()
				test.meanwhile(m, pod)
				m.start(nil)
				st, err := m.s.PodStatus(pod)
				must(t, err)
				want(t, "pod", st.State, PodNotReady)
				want(t, "container", m.status(id).State, ContainerExited)
				want(t, "code", m.status(id).ExitCode, test.code)
				want(t, "reason", m.status(id).Reason, test.reason)
				want(t, "message", m.status(id).Message, test.message)
				<-m.s.Recovered()
				synctest.Wait()
				want(t, "address is given back", len(m.attached), 0)
				must(t, m.s.RemovePod(t.Context(), pod))
				m.clean()
			})
		})
	}
}

func TestRestartOfStoppedPod(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		must(t, m.s.StopPod(t.Context(), pod))
		m.restart()
		synctest.Wait()
		st, err := m.s.PodStatus(pod)
		must(t, err)
		want(t, "pod", st.State, PodNotReady)
		want(t, "container", m.status(id).State, ContainerExited)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

// A criserver that is stopped while it starts knows nothing of the pods that it has not adopted, and must not end them.
func TestStopDuringAdoption(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		m.crash()
		m.failing("AdoptPod", errors.New("busy"))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		m.s = m.service(nil)
		want(t, "gave up", errors.Is(m.s.recover(ctx), context.DeadlineExceeded), true)
		m.s.Close(ctx)
		m.failing("AdoptPod", nil)
		m.start(nil)
		st, err := m.s.PodStatus(pod)
		must(t, err)
		want(t, "pod", st.State, PodReady)
		want(t, "container", m.status(id).State, ContainerRunning)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

// Who asked for another pod under the same identity will not ask for the removal of the older one again.
func TestRestartGoesOnRemoving(t *testing.T) {
	for _, where := range []string{"before undo namespaces", "before undo plan network", "before undo create", "before undo directory"} {
		in(t, func(t *testing.T, m *machine) {
			pod, _ := m.made()
			ctx, cancel := context.WithCancel(t.Context())
			killer := &killer{at: -1, kill: func() { cancel(); m.s.halt() }}
			m.s.boundary = func(name string) {
				if strings.HasPrefix(name, where) {
					killer.mu.Lock()
					killer.at = 0
					killer.mu.Unlock()
				}
				killer.boundary(name)
			}
			m.at = m.s.boundary
			other := podConfig()
			other.Hostname = "other"
			go func() { _, _ = m.s.RunPod(ctx, other, "") }()
			synctest.Wait()
			time.Sleep(time.Hour)
			m.crash()
			m.s.Close(ctx) // ends those that wait for what was killed
			m.behind.Wait()
			want(t, "killed", killer.where != "", true)
			m.at = nil
			m.start(nil)
			<-m.s.Recovered()
			time.Sleep(time.Hour)
			want(t, "pods besides "+string(pod), len(m.s.ListPods()), 0)
			m.clean()
		})
	}
}

func TestLostStateDirectory(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		m.made()
		m.crash()
		must(t, os.RemoveAll(filepath.Join(m.dir, "state")))
		m.boot = "boot-2"
		m.mu.Lock()
		clear(m.pods)
		clear(m.pins)
		clear(m.leaves)
		m.mu.Unlock()
		m.start(nil)
		<-m.s.Recovered()
		synctest.Wait()
		m.clean()
	})
}

func TestOwedDel(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, _ := m.made()
		m.failing("Del", errors.New("plugin is missing"))
		must(t, m.s.RemovePod(t.Context(), pod))
		want(t, "pods", len(m.s.ListPods()), 0)
		want(t, "address is kept", len(m.attached), 1)
		time.Sleep(time.Hour)
		m.restart()
		want(t, "address is kept over a restart and the collection of garbage", len(m.attached), 1)
		m.failing("Del", nil)
		time.Sleep(stage.LastPause)
		synctest.Wait()
		m.clean()
	})
}

func TestOwedDelIsNotRepeatedInAStorm(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, _ := m.made()
		m.failing("Del", errors.New("plugin is missing"))
		must(t, m.s.RemovePod(t.Context(), pod))
		time.Sleep(time.Hour)
		dels := 0
		m.mu.Lock()
		for _, call := range m.calls {
			if call == "Del" {
				dels++
			}
		}
		m.mu.Unlock()
		if dels < 10 || dels > 25 {
			t.Errorf("DEL was tried %d times in an hour", dels)
		}
		m.failing("Del", nil)
		time.Sleep(stage.LastPause)
		synctest.Wait()
		m.clean()
	})
}

func TestHostNetworkOwesNothing(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		config := podConfig()
		config.Linux.SecurityContext.NamespaceOptions.Network = runtimev1.NamespaceMode_NODE
		pod, err := m.s.RunPod(t.Context(), config, "")
		must(t, err)
		want(t, "addresses, pins", len(m.attached)+len(m.pins), 0)
		st, err := m.s.PodStatus(pod)
		must(t, err)
		want(t, "shown addresses", len(st.IPs), 0)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

func TestLayersAreKeptByOneContainer(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		other, otherID := m.another()
		keeps := func(pod ID) int { return len(m.pods[string(pod)].KeptNames()) }
		want(t, "kept by the first", keeps(pod), 1)
		want(t, "kept by the second", keeps(other), 0)
		m.restart()
		want(t, "adopted", len(m.adopted) == 1 && m.adopted[0] == testLayer, true)
		must(t, m.s.RemoveContainer(t.Context(), id))
		want(t, "kept when the container is gone", keeps(pod), 0)
		must(t, m.s.RemoveContainer(t.Context(), otherID))
		_, err := m.s.CreateContainer(t.Context(), other, containerConfig(), podConfig())
		must(t, err)
		want(t, "kept by the next", keeps(other), 1)
		must(t, m.s.StopPod(t.Context(), other))
		_, err = m.s.CreateContainer(t.Context(), pod, containerConfig(), podConfig())
		must(t, err)
		want(t, "kept when the other pod was stopped", keeps(pod), 1)
		must(t, m.s.RemovePod(t.Context(), pod))
		must(t, m.s.RemovePod(t.Context(), other))
		m.clean()
	})
}

func TestLayersAreOnlyForSpeed(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		m.failing("Keep", errors.New("no room"))
		m.failing("Drop", errors.New("no room"))
		m.failing("Adopt", errors.New("not that one"))
		pod, _ := m.made()
		m.restart()
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}
