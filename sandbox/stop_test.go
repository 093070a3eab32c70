package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/specgen"
)

func TestStop(t *testing.T) {
	type call struct{ after, grace time.Duration }
	for _, test := range []struct {
		name        string
		ignoresTerm bool
		calls       []call
		took        time.Duration // of all calls
		code        int32
		signals     int
	}{
		{name: "heeds its signal", calls: []call{{0, time.Minute}}, code: 128 + int32(unix.SIGQUIT), signals: 1},
		{name: "ignores it", ignoresTerm: true, calls: []call{{0, time.Minute}}, took: time.Minute, code: 137, signals: 1},
		{name: "no grace", ignoresTerm: true, calls: []call{{0, 0}}, code: 137},
		{name: "negative grace", ignoresTerm: true, calls: []call{{0, -time.Second}}, code: 137},
		{name: "shorter grace later", ignoresTerm: true, calls: []call{{0, time.Hour}, {time.Minute, time.Second}}, took: time.Minute + time.Second, code: 137, signals: 1},
		{name: "longer grace later", ignoresTerm: true, calls: []call{{0, time.Minute}, {time.Second, time.Hour}}, took: time.Minute, code: 137, signals: 1},
		{name: "at the same time", ignoresTerm: true, calls: []call{{0, time.Minute}, {0, time.Minute}, {0, 0}}, code: 137, signals: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				pod, id := m.made()
				m.be(func(n *node) { n.ignoresTerm = test.ignoresTerm })
				process, began := m.process(id), time.Now()
				var wg sync.WaitGroup
				for _, c := range test.calls {
					synctest.Wait()
					wg.Go(func() {
						time.Sleep(c.after)
						if err := m.s.StopContainer(t.Context(), id, c.grace); err != nil {
							t.Error(err)
						}
						want(t, "state on return", m.status(id).State, ContainerExited)
					})
				}
				wg.Wait()
				want(t, "took", time.Since(began), test.took)
				want(t, "code", m.status(id).ExitCode, test.code)
				want(t, "signals", len(process.signals), test.signals)
				must(t, m.s.RemovePod(t.Context(), pod))
				m.clean()
			})
		})
	}
}

func TestUnkillable(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		m.be(func(n *node) { n.ignoresTerm, n.unkillable = true, true })
		began := time.Now()
		err := m.s.StopContainer(t.Context(), id, time.Minute)
		want(t, "gave up after", time.Since(began), time.Minute+killBound)
		if err == nil || !strings.Contains(err.Error(), string(id)+" still has processes") || !strings.Contains(err.Error(), "state D") {
			t.Errorf("got %v, want an error that names the container and the process", err)
		}
		want(t, "state", m.status(id).State, ContainerRunning)
		want(t, "stop of its pod fails", m.s.StopPod(t.Context(), pod) != nil, true)
		want(t, "state after it", m.status(id).State, ContainerRunning)
		m.be(func(n *node) { n.unkillable = false })
		time.Sleep(time.Minute)
		want(t, "state when it has died at last", m.status(id).State, ContainerExited)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

func TestDeadlineOfStopEndsOnlyTheWait(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		m.be(func(n *node) { n.ignoresTerm = true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := m.s.StopContainer(ctx, id, time.Minute)
		want(t, "error", errors.Is(err, context.DeadlineExceeded), true)
		time.Sleep(time.Minute)
		synctest.Wait()
		want(t, "state", m.status(id).State, ContainerExited)
		must(t, m.s.RemovePod(t.Context(), pod))
	})
}

func TestDeathOfPause(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		other, otherID := m.another()
		m.mu.Lock()
		m.pods[string(pod)].die()
		m.mu.Unlock()
		synctest.Wait()
		st, err := m.s.PodStatus(pod)
		must(t, err)
		want(t, "pod", st.State, PodNotReady)
		want(t, "container", m.status(id).State, ContainerExited)
		want(t, "code", m.status(id).ExitCode, int32(137))
		want(t, "other container", m.status(otherID).State, ContainerRunning)
		want(t, "address is given back", m.attached[string(pod)], false)
		must(t, m.s.RemovePod(t.Context(), pod))
		must(t, m.s.RemovePod(t.Context(), other))
		m.clean()
	})
}

// Whoever asks something of a pod whose pause was killed for memory, before or after, is told so.
func TestDeathOfPauseForMemory(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, _ := m.made()
		config := containerConfig()
		config.Metadata.Name = "another"
		m.slowly("Create")
		time.AfterFunc(time.Second, func() {
			m.be(func(n *node) {
				n.pods[string(pod)].starved = fmt.Errorf("%w: limit", ociruntime.ErrPodStarved)
				n.pods[string(pod)].die()
			})
		})
		for range 2 {
			_, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
			want(t, "cause", errors.Is(err, ociruntime.ErrPodStarved) && strings.Contains(err.Error(), ": killed for want of memory: limit"), true)
		}
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

// another runs another pod with a container that runs.
func (m *machine) another() (ID, ContainerID) {
	m.t.Helper()
	config := podConfig()
	config.Metadata.Name = "other"
	pod, err := m.s.RunPod(m.t.Context(), config, "")
	must(m.t, err)
	id, err := m.s.CreateContainer(m.t.Context(), pod, containerConfig(), config)
	must(m.t, err)
	must(m.t, m.s.StartContainer(m.t.Context(), id))
	return pod, id
}

func TestStopSignal(t *testing.T) {
	for _, test := range []struct {
		asked runtimev1.Signal
		image string
		want  string
		sig   unix.Signal
	}{
		{runtimev1.Signal_SIGNAL_RUNTIME_DEFAULT, "", "SIGTERM", unix.SIGTERM},
		{runtimev1.Signal_SIGNAL_RUNTIME_DEFAULT, "quit", "SIGQUIT", unix.SIGQUIT},
		{runtimev1.Signal_SIGNAL_RUNTIME_DEFAULT, "9", "SIGKILL", unix.SIGKILL},
		{runtimev1.Signal_SIGNAL_RUNTIME_DEFAULT, "RTMIN+3", "SIGRTMIN+3", 37},
		{runtimev1.Signal_SIGNAL_SIGHUP, "SIGQUIT", "SIGHUP", unix.SIGHUP},
		{runtimev1.Signal_SIGNAL_SIGRTMINPLUS3, "", "SIGRTMIN+3", 37},
		{runtimev1.Signal_SIGNAL_SIGRTMAXMINUS14, "", "SIGRTMAX-14", 50},
	} {
		got, err := stopSignal(&runtimev1.ContainerConfig{StopSignal: test.asked}, imageWith(test.image))
		must(t, err)
		want(t, "name of "+test.asked.String()+" or "+test.image, got, test.want)
		sig, known := specgen.ParseSignal(got)
		want(t, "known", known, true)
		want(t, "number of "+got, sig, test.sig)
	}
	_, err := stopSignal(&runtimev1.ContainerConfig{StopSignal: 1000}, imageWith(""))
	want(t, "unknown signal", errors.Is(err, ErrInvalid), true)
	_, err = stopSignal(&runtimev1.ContainerConfig{}, imageWith("SIGNOTHING"))
	want(t, "unknown signal of the image", err != nil, true)
}

func imageWith(stopSignal string) ocispec.Image {
	return ocispec.Image{Config: ocispec.ImageConfig{StopSignal: stopSignal}}
}
