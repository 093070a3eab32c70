package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/stage"
)

// slowly makes one call of the node take a minute.
func (m *machine) slowly(call string) {
	m.be(func(n *node) {
		n.at = func(boundary string) {
			if boundary == "before "+call {
				time.Sleep(time.Minute)
			}
		}
	})
}

func TestRetriesJoin(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		m.slowly("StartPod")
		ids := make([]ID, 4)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				var err error
				if ids[i], err = m.s.RunPod(t.Context(), podConfig(), ""); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, id := range ids {
			want(t, "id", id, ids[0])
		}
		m.slowly("Create")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.s.CreateContainer(ctx, ids[0], containerConfig(), podConfig())
		want(t, "deadline", errors.Is(err, context.DeadlineExceeded), true)
		want(t, "error says where it is", strings.Contains(err.Error(), "stage create for 1.0 s"), true)
		want(t, "half made is not listed", len(m.s.ListContainers()), 0)
		first, err := m.s.CreateContainer(t.Context(), ids[0], containerConfig(), podConfig())
		must(t, err)
		again, err := m.s.CreateContainer(t.Context(), ids[0], containerConfig(), podConfig())
		must(t, err)
		want(t, "retry of a created one", again, first)
		want(t, "containers", len(m.s.ListContainers()), 1)
		must(t, m.s.RemovePod(t.Context(), ids[0]))
		m.clean()
	})
}

func TestAnotherRequestUndoesTheOlder(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		first, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		other := podConfig()
		other.Hostname = "h"
		second, err := m.s.RunPod(t.Context(), other, "")
		must(t, err)
		want(t, "another pod", first != second, true)
		_, err = m.s.PodStatus(first)
		want(t, "the first is gone", errors.Is(err, ErrNotFound), true)
		must(t, m.s.StopPod(t.Context(), second))
		third, err := m.s.RunPod(t.Context(), other, "")
		must(t, err)
		want(t, "a stopped pod does not answer", third != second, true)
		must(t, m.s.RemovePod(t.Context(), second))
		must(t, m.s.RemovePod(t.Context(), third))
		m.clean()
	})
}

func TestUnclaimedPodIsUndone(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		m.slowly("StartPod")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.s.RunPod(ctx, podConfig(), ""); err == nil {
			t.Fatal("it took no time")
		}
		time.Sleep(4 * time.Minute)
		want(t, "pods", len(m.s.ListPods()), 1)
		time.Sleep(10 * time.Minute)
		m.clean()
	})
}

// A start takes a minute. Who gives up before, at or so shortly after its end that no answer reaches them asks again.
func TestStartIsToldOnce(t *testing.T) {
	for _, patience := range []time.Duration{time.Second, time.Minute, time.Minute + answerTime/2} {
		for _, exits := range []bool{false, true} {
			in(t, func(t *testing.T, m *machine) {
				pod, err := m.s.RunPod(t.Context(), podConfig(), "")
				must(t, err)
				id, err := m.s.CreateContainer(t.Context(), pod, containerConfig(), podConfig())
				must(t, err)
				m.slowly("Start")
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				err = m.s.StartContainer(ctx, id)
				if patience < time.Minute {
					want(t, "deadline", errors.Is(err, context.DeadlineExceeded), true)
					want(t, "state while starting", m.status(id).State, ContainerCreated)
				}
				time.Sleep(time.Hour)
				want(t, "state", m.status(id).State, ContainerRunning)
				if exits {
					m.process(id).exits(ociruntime.Exit{})
					synctest.Wait()
				}
				must(t, m.s.StartContainer(t.Context(), id)) // the retry is told
				want(t, "second start", errors.Is(m.s.StartContainer(t.Context(), id), ErrState), true)
				must(t, m.s.RemovePod(t.Context(), pod))
			})
		}
	}
}

func TestStartThatWasCancelledAsItSucceededIsTold(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		id, err := m.s.CreateContainer(t.Context(), pod, containerConfig(), podConfig())
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		m.be(func(n *node) {
			n.at = func(boundary string) {
				if boundary == "after Start" {
					cancel()
				}
			}
		})
		_ = m.s.StartContainer(ctx, id) // whatever it says, nobody hears it
		synctest.Wait()
		must(t, m.s.StartContainer(t.Context(), id))
		must(t, m.s.RemovePod(t.Context(), pod))
	})
}

// A restart must neither make a container of which somebody knows that it has run startable, nor forget a retry.
func TestWhoWasToldSurvivesARestart(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, told := m.made()
		config := containerConfig()
		config.Metadata.Name = "untold"
		untold, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), answerTime/2)
		defer cancel()
		must(t, m.s.StartContainer(ctx, untold))
		for _, id := range []ContainerID{told, untold} {
			m.process(id).exits(ociruntime.Exit{})
		}
		synctest.Wait()
		m.restart()
		want(t, "start of one that has run", errors.Is(m.s.StartContainer(t.Context(), told), ErrState), true)
		must(t, m.s.StartContainer(t.Context(), untold))
		must(t, m.s.RemovePod(t.Context(), pod))
	})
}

// The flight recorder calls operations by the RPC that they answer.
func TestOperationsAreNamed(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		recorder := stage.NewRecorder(100)
		m.recorder = recorder
		m.restart()
		pod, id := m.made()
		_, other := m.another()
		must(t, m.s.RemoveContainer(t.Context(), id))
		must(t, m.s.StopPod(t.Context(), pod))
		must(t, m.s.RemovePod(t.Context(), pod))
		ctx, op := recorder.Start(t.Context(), "StopContainer", string(other)) // as package cri does
		must(t, m.s.StopContainer(ctx, other, 0))
		op.End(nil)
		var names []string
		for _, r := range recorder.Records() {
			names = append(names, r.Name)
		}
		slices.Sort(names)
		want(t, "operations", strings.Join(slices.Compact(names), " "),
			"CreateContainer RemoveContainer RemovePodSandbox RunPodSandbox StartContainer StopContainer StopPodSandbox")
		for _, p := range m.s.ListPods() {
			must(t, m.s.RemovePod(t.Context(), p.ID))
		}
	})
}

func TestStopPodEndsWhatIsUnderWay(t *testing.T) {
	for _, call := range []string{"Rootfs", "Create", "Start"} {
		t.Run(call, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				pod, err := m.s.RunPod(t.Context(), podConfig(), "")
				must(t, err)
				m.slowly(call)
				go func() {
					id, err := m.s.CreateContainer(t.Context(), pod, containerConfig(), podConfig())
					if err == nil {
						_ = m.s.StartContainer(t.Context(), id)
					}
				}()
				synctest.Wait()
				must(t, m.s.StopPod(t.Context(), pod))
				for _, st := range m.s.ListContainers() {
					want(t, "runs in a stopped pod", st.State == ContainerRunning, false)
				}
				must(t, m.s.RemovePod(t.Context(), pod))
				m.clean()
			})
		})
	}
}

func TestPodsDoNotWaitForEachOther(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		_, id := m.made()
		m.be(func(n *node) { n.ignoresTerm = true })
		go func() { _ = m.s.StopContainer(t.Context(), id, time.Hour) }()
		m.slowly("Add")
		slow := podConfig()
		slow.Metadata.Name = "slow"
		go func() { _, _ = m.s.RunPod(t.Context(), slow, "") }()
		synctest.Wait()
		began := time.Now()
		host := podConfig()
		host.Metadata.Name = "host"
		host.Linux.SecurityContext.NamespaceOptions.Network = runtimev1.NamespaceMode_NODE
		third, err := m.s.RunPod(t.Context(), host, "")
		must(t, err)
		must(t, m.s.RemovePod(t.Context(), third))
		want(t, "waited", time.Since(began), time.Duration(0))
		time.Sleep(2 * time.Hour)
		for _, p := range m.s.ListPods() {
			must(t, m.s.RemovePod(t.Context(), p.ID))
		}
		m.clean()
	})
}

func TestShortIDs(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, _ := m.made()
		other, _ := m.another()
		n := 0
		for pod[n] == other[n] {
			n++
		}
		st, err := m.s.PodStatus(pod[:n+1])
		must(t, err)
		want(t, "found", st.ID, pod)
		if n > 0 {
			_, err = m.s.PodStatus(pod[:n])
			want(t, "ambiguous", errors.Is(err, ErrInvalid), true)
		}
		_, err = m.s.PodStatus(pod + "0")
		want(t, "too long", errors.Is(err, ErrNotFound), true)
		list := m.s.ListPods()
		want(t, "listed", len(list), 2)
		want(t, "sorted", list[0].ID < list[1].ID, true)
		must(t, m.s.RemovePod(t.Context(), pod))
		must(t, m.s.RemovePod(t.Context(), other))
	})
}

func TestAmbiguousPrefix(t *testing.T) {
	all := []*pod{{id: "aa1"}, {id: "aa2"}, {id: "ab"}}
	for prefix, expect := range map[string]error{"a": ErrInvalid, "aa": ErrInvalid, "ac": ErrNotFound, "": ErrInvalid, "aa1": nil, "ab": nil} {
		_, err := lookup(all, "pod", prefix)
		if !errors.Is(err, expect) {
			t.Errorf("%q: got %v, want %v", prefix, err, expect)
		}
	}
}
