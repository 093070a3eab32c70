package sandbox

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/sandbox/nri"
	"github.com/criserver/criserver/sandbox/nri/nritest"
)

// plugged starts a criserver with NRI on an empty node.
func plugged(t *testing.T) *machine {
	m := &machine{node: newNode(), t: t, dir: t.TempDir(), boot: "boot-1"}
	m.plug()
	m.start(nil)
	t.Cleanup(func() { m.s.Close(context.Background()) })
	return m
}

// plug gives the next criserver plugins.
func (m *machine) plug() {
	m.t.Helper()
	var err error
	m.plugins, err = nri.New(nri.Config{Version: "1", Socket: m.socket(), PluginDir: m.dir + "/plugins",
		RegistrationTimeout: hang, RequestTimeout: hang, Required: true})
	must(m.t, err)
}

// A plugin that answers has hang to do it, however slow the machine is; from one that does not, nothing is expected after expiry.
const (
	hang   = time.Minute
	expiry = 500 * time.Millisecond
)

func (m *machine) socket() string { return filepath.Join(m.dir, "nri.sock") }

// wantEvents compares what a plugin was told with lines.
func wantEvents(t *testing.T, p *nritest.Plugin, lines ...string) {
	t.Helper()
	if got, want := p.Text(), strings.Join(lines, "\n"); got != want {
		t.Errorf("plugin %s was told\n%s\nwant\n%s", p.Name, got, want)
	}
}

// lifeEvents is what a plugin is told of m.made and its removal.
var lifeEvents = []string{"RunPodSandbox web", "CreateContainer web/main", "PostCreateContainer web/main", "StartContainer web/main",
	"PostStartContainer web/main", "StopContainer web/main", "RemoveContainer web/main", "StopPodSandbox web", "RemovePodSandbox web"}

func TestEventsOfALife(t *testing.T) {
	for _, test := range []struct {
		name   string
		events []string
		end    func(*machine, ID, ContainerID) error
	}{
		{"one by one, each twice", lifeEvents, func(m *machine, pod ID, id ContainerID) error {
			ctx := m.t.Context()
			return errors.Join(m.s.StopContainer(ctx, id, time.Minute), m.s.StopContainer(ctx, id, time.Minute), m.s.RemoveContainer(ctx, id),
				m.s.RemoveContainer(ctx, id), m.s.StopPod(ctx, pod), m.s.StopPod(ctx, pod), m.s.RemovePod(ctx, pod), m.s.RemovePod(ctx, pod))
		}},
		{"removed whole", append(append([]string{}, lifeEvents[:6]...), "StopPodSandbox web", "RemoveContainer web/main", "RemovePodSandbox web"),
			func(m *machine, pod ID, _ ContainerID) error { return m.s.RemovePod(m.t.Context(), pod) }},
		{"exits by itself", lifeEvents, func(m *machine, pod ID, id ContainerID) error {
			m.process(id).exits(ociruntime.Exit{Code: 3})
			<-m.container(id).exited
			return errors.Join(m.s.RemoveContainer(m.t.Context(), id), m.s.RemovePod(m.t.Context(), pod))
		}},
		{"pause dies", append(append([]string{}, lifeEvents[:6]...), "StopPodSandbox web", "RemoveContainer web/main", "RemovePodSandbox web"),
			func(m *machine, pod ID, id ContainerID) error {
				m.be(func(n *node) { n.pods[string(pod)].die() })
				<-m.container(id).exited
				return m.s.RemovePod(m.t.Context(), pod)
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := plugged(t)
			p := nritest.Connect(t, m.socket(), &nritest.Plugin{})
			pod, id := m.made()
			must(t, test.end(m, pod, id))
			wantEvents(t, p, test.events...)
			m.clean()
		})
	}
}

// container finds one that is listed.
func (m *machine) container(id ContainerID) *container {
	m.t.Helper()
	c, err := m.s.container(id)
	must(m.t, err)
	return c
}

func TestExitIsToldWithoutAnybodyAsking(t *testing.T) {
	m := plugged(t)
	p := nritest.Connect(t, m.socket(), &nritest.Plugin{})
	pod, id := m.made()
	m.process(id).exits(ociruntime.Exit{Code: 3})
	p.Await(t, "StopContainer", 1)
	told := p.Last(t, "StopContainer").Container
	want(t, "state", told.State, nri.Stopped)
	want(t, "code", told.ExitCode, int32(3))
	must(t, m.s.RemovePod(t.Context(), pod))
}

func TestWhatPluginsAreTold(t *testing.T) {
	m := plugged(t)
	p := nritest.Connect(t, m.socket(), &nritest.Plugin{})
	pod, id := m.made()
	e := p.Last(t, "PostStartContainer")
	want(t, "pod id", e.Pod.Id, string(pod))
	want(t, "pod uid", e.Pod.Uid, "u1")
	want(t, "pod namespace", e.Pod.Namespace, "default")
	want(t, "pod label", e.Pod.Labels["app"], "web")
	want(t, "pod annotation", e.Pod.Annotations["note"], "ü")
	want(t, "pod cgroup", e.Pod.Linux.CgroupParent, "/kubepods/x")
	want(t, "pod address", strings.Join(e.Pod.Ips, " "), "10.0.0.7")
	want(t, "pod pid", e.Pod.Pid, uint32(42))
	want(t, "network namespace", e.Pod.Linux.Namespaces[0].Path, filepath.Join(m.dir, "cri-"+string(pod)))
	want(t, "container id", e.Container.Id, string(id))
	want(t, "its pod", e.Container.PodSandboxId, string(pod))
	want(t, "label", e.Container.Labels["c"], "1")
	want(t, "image", e.Container.Image.Name, testImage)
	want(t, "image digest", e.Container.Image.Digest, "sha256:00")
	want(t, "pid", e.Container.Pid, uint32(43))
	want(t, "state", e.Container.State, nri.Running)
	want(t, "state at start", p.Last(t, "StartContainer").Container.State, nri.Created)
	must(t, m.s.RemovePod(t.Context(), pod))
	want(t, "network namespace of a removed pod", len(p.Last(t, "RemovePodSandbox").Pod.Linux.Namespaces), 0)
}

// refusing is a plugin that refuses the first event of a name.
func refusing(name string) *nritest.Plugin {
	refused := false
	return &nritest.Plugin{On: func(_ context.Context, e nritest.Event) error {
		if e.Name != name || refused {
			return nil
		}
		refused = true
		return errors.New("not today")
	}}
}

func TestRefusedEventUndoesEverything(t *testing.T) {
	t.Run("RunPodSandbox", func(t *testing.T) {
		m := plugged(t)
		p := nritest.Connect(t, m.socket(), refusing("RunPodSandbox"))
		_, err := m.s.RunPod(t.Context(), podConfig(), "")
		want(t, "error names stage and cause", err != nil && strings.Contains(err.Error(), "stage plugins") && strings.Contains(err.Error(), "not today"), true)
		wantEvents(t, p, "RunPodSandbox web", "StopPodSandbox web", "RemovePodSandbox web")
		m.clean()
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		must(t, m.s.RemovePod(t.Context(), pod))
	})
	t.Run("CreateContainer", func(t *testing.T) {
		m := plugged(t)
		p := nritest.Connect(t, m.socket(), refusing("CreateContainer"))
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		_, err = m.s.CreateContainer(t.Context(), pod, containerConfig(), nil)
		want(t, "error names the cause", err != nil && strings.Contains(err.Error(), "not today"), true)
		want(t, "listed", len(m.s.ListContainers()), 0)
		wantEvents(t, p, "RunPodSandbox web", "CreateContainer web/main", "StopContainer web/main", "RemoveContainer web/main")
		_, err = m.s.CreateContainer(t.Context(), pod, containerConfig(), nil)
		must(t, err)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
	t.Run("StartContainer", func(t *testing.T) {
		m := plugged(t)
		p := nritest.Connect(t, m.socket(), refusing("StartContainer"))
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		id, err := m.s.CreateContainer(t.Context(), pod, containerConfig(), nil)
		must(t, err)
		err = m.s.StartContainer(t.Context(), id)
		want(t, "error names the cause", err != nil && strings.Contains(err.Error(), "not today"), true)
		want(t, "reason", m.status(id).Reason, ReasonStartError)
		want(t, "started", m.process(id).running, false)
		p.Await(t, "StopContainer", 1)
		must(t, m.s.RemovePod(t.Context(), pod))
		wantEvents(t, p, append(append([]string{}, lifeEvents[:4]...), "StopContainer web/main", "StopPodSandbox web", "RemoveContainer web/main", "RemovePodSandbox web")...)
		m.clean()
	})
	for _, name := range []string{"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "PostCreateContainer", "PostStartContainer"} {
		t.Run(name+" is told, not asked", func(t *testing.T) {
			m := plugged(t)
			p := nritest.Connect(t, m.socket(), refusing(name))
			pod, id := m.made()
			must(t, errors.Join(m.s.StopContainer(t.Context(), id, time.Minute), m.s.RemoveContainer(t.Context(), id), m.s.RemovePod(t.Context(), pod)))
			wantEvents(t, p, lifeEvents...)
			m.clean()
		})
	}
}

// A failure after the plugins were asked is undone for them too.
func TestFailureAfterCreateIsTold(t *testing.T) {
	m := plugged(t)
	p := nritest.Connect(t, m.socket(), &nritest.Plugin{})
	pod, err := m.s.RunPod(t.Context(), podConfig(), "")
	must(t, err)
	m.failing("Create", errors.New("no space"))
	_, err = m.s.CreateContainer(t.Context(), pod, containerConfig(), nil)
	want(t, "fails", err != nil, true)
	must(t, m.s.RemovePod(t.Context(), pod))
	wantEvents(t, p, "RunPodSandbox web", "CreateContainer web/main", "StopContainer web/main", "RemoveContainer web/main", "StopPodSandbox web", "RemovePodSandbox web")
	m.clean()
}

// blocking is a plugin that holds one event until release is called.
func blocking(name string) (p *nritest.Plugin, reached chan nritest.Event, release func()) {
	reached, released := make(chan nritest.Event, 1), make(chan struct{})
	return &nritest.Plugin{On: func(_ context.Context, e nritest.Event) error {
		if e.Name == name {
			reached <- e
			<-released
		}
		return nil
	}}, reached, func() { close(released) }
}

func TestNothingIsSeenBeforeThePluginsAnswer(t *testing.T) {
	m := plugged(t)
	p, reached, release := blocking("RunPodSandbox")
	nritest.Connect(t, m.socket(), p)
	made := make(chan ID, 1)
	go func() {
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		if err != nil {
			t.Error(err)
		}
		made <- pod
	}()
	e := <-reached
	want(t, "listed", len(m.s.ListPods()), 0)
	_, err := m.s.PodStatus(ID(e.Pod.Id))
	want(t, "status", errors.Is(err, ErrNotFound), true)
	_, err = m.s.CreateContainer(t.Context(), ID(e.Pod.Id), containerConfig(), nil)
	want(t, "create", errors.Is(err, ErrNotFound), true)
	release()
	pod := <-made
	want(t, "id", string(pod), e.Pod.Id)
	must(t, m.s.RemovePod(t.Context(), pod))
}

func TestPluginThatDoesNotAnswer(t *testing.T) {
	m := plugged(t)
	p, reached, release := blocking("RunPodSandbox")
	defer release()
	block := p.On
	p.On = func(ctx context.Context, e nritest.Event) error {
		adaptation.SetPluginRequestTimeout(hang) // for the other one, which is told after this one
		return block(ctx, e)
	}
	other := nritest.Connect(t, m.socket(), &nritest.Plugin{Name: "other", Index: "20"})
	nritest.Connect(t, m.socket(), p)
	adaptation.SetPluginRequestTimeout(expiry)
	pod, id := m.made() // goes on without it
	<-reached
	<-p.Closed()
	must(t, errors.Join(m.s.StopContainer(t.Context(), id, time.Minute), m.s.RemoveContainer(t.Context(), id), m.s.RemovePod(t.Context(), pod)))
	wantEvents(t, p, "RunPodSandbox web")
	wantEvents(t, other, lifeEvents...)
}

func TestPluginThatInsists(t *testing.T) {
	m := plugged(t)
	p, _, release := blocking("RunPodSandbox")
	defer release()
	p.Policy = &api.FailurePolicy{FailRequest: true}
	nritest.Connect(t, m.socket(), p)
	adaptation.SetPluginRequestTimeout(expiry)
	_, err := m.s.RunPod(t.Context(), podConfig(), "")
	want(t, "fails", err != nil && strings.Contains(err.Error(), "10-test"), true)
	m.clean()
}

func TestPluginThatVanishes(t *testing.T) {
	m := plugged(t)
	var p *nritest.Plugin
	p = &nritest.Plugin{On: func(_ context.Context, e nritest.Event) error {
		if e.Name == "CreateContainer" {
			p.Close()
		}
		return nil
	}}
	nritest.Connect(t, m.socket(), p)
	pod, _ := m.made()
	must(t, m.s.RemovePod(t.Context(), pod))
	m.clean()
}

func TestStopThatIsTriedAgainIsToldOnce(t *testing.T) {
	m := plugged(t)
	p := nritest.Connect(t, m.socket(), &nritest.Plugin{})
	pod, _ := m.made()
	m.failing("Unpin", errors.New("busy"))
	if err := m.s.StopPod(t.Context(), pod); err == nil {
		t.Fatal("no error")
	}
	m.failing("Unpin", nil)
	must(t, errors.Join(m.s.StopPod(t.Context(), pod), m.s.RemovePod(t.Context(), pod)))
	wantEvents(t, p, append(append([]string{}, lifeEvents[:6]...), "StopPodSandbox web", "RemoveContainer web/main", "RemovePodSandbox web")...)
	m.clean()
}

// What plugins want of others in their answers is tried, and changes nothing of what was asked.
func TestUpdatesInAnswers(t *testing.T) {
	m := plugged(t)
	updates := func(id string) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{ContainerId: id}
		u.SetLinuxCPUShares(77)
		return []*api.ContainerUpdate{{ContainerId: "00"}, u}
	}
	pod, first := m.made()
	p := &nritest.Plugin{
		Sync: func(_ context.Context, _ []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
			u := &api.ContainerUpdate{ContainerId: containers[0].Id}
			u.SetLinuxCPUShares(33)
			return []*api.ContainerUpdate{u}, nil
		},
		OnStop: func(*api.Container) []*api.ContainerUpdate { return updates(string(first)) },
	}
	nritest.Connect(t, m.socket(), p)
	shares := func() uint64 {
		if cpu := m.status(first).Limits.Resources.CPU; cpu != nil && cpu.Shares != nil {
			return *cpu.Shares
		}
		return 0
	}
	await := func(n uint64) { // updates are done beside
		for deadline := time.Now().Add(time.Minute); shares() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("shares: got %d, want %d", shares(), n)
			}
		}
	}
	await(33)
	second := containerConfig()
	second.Metadata.Name = "second"
	id, err := m.s.CreateContainer(t.Context(), pod, second, nil)
	must(t, err)
	must(t, errors.Join(m.s.StartContainer(t.Context(), id), m.s.StopContainer(t.Context(), id, time.Minute)))
	await(77)
	must(t, m.s.RemovePod(t.Context(), pod))
	m.clean()
}
