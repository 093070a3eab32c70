package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/sandbox/nri"
	"github.com/criserver/criserver/stage"
)

// machine is a node, the directories on it and the criserver that runs there.
type machine struct {
	*node
	t    *testing.T
	dir  string
	boot string
	s    *Service

	recorder *stage.Recorder // of the next criserver; may be nil
	plugins  *nri.Plugins    // likewise
}

// newMachine starts a criserver on an empty node. At the end of the test it must be as empty again.
func newMachine(t *testing.T) *machine {
	m := &machine{node: newNode(), t: t, dir: t.TempDir(), boot: "boot-1"}
	m.start(nil)
	return m
}

// start runs another criserver on the node; boundary may be nil.
func (m *machine) start(boundary func(string)) {
	m.t.Helper()
	m.s = m.service(boundary)
	if err := m.s.recover(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	if err := m.s.openPlugins(); err != nil {
		m.t.Fatal(err)
	}
}

// service is a criserver that has not looked at the node yet.
func (m *machine) service(boundary func(string)) *Service {
	m.t.Helper()
	s, err := newService(Config{StateDir: m.dir + "/state", RootDir: m.dir + "/root", NetNSDir: m.dir, Settings: Settings{Handlers: twoHandlers()},
		BootID: m.boot, Runtime: m, Images: m, Network: m, Roots: m.rootIDs, Layers: m, Recorder: m.recorder, Plugins: m.plugins, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		m.t.Fatal(err)
	}
	s.netns = namespaces{pin: m.pin, unpin: m.unpin}
	s.see = func(context.Context, string) (bool, error) { return false, nil }
	s.plan = func(_ context.Context, b *building) error {
		b.spec = &specs.Spec{Process: &specs.Process{Args: b.config.Command}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
		return nil
	}
	s.boundary = boundary
	return s
}

// restart ends the criserver as a crash would and starts another.
func (m *machine) restart() {
	m.t.Helper()
	m.crash()
	m.start(nil)
	<-m.s.Recovered()
}

// crash stops everything that the criserver does, and undoes nothing.
func (m *machine) crash() {
	m.s.halt()
	m.s.background.Wait()
}

// clean checks that nothing is left anywhere.
func (m *machine) clean() {
	m.t.Helper()
	if left := m.left(); len(left) > 0 {
		m.t.Errorf("left on the node: %v", left)
	}
	for _, dir := range []string{"state/pods", "root/ledger", "root/volumes"} {
		entries, err := os.ReadDir(filepath.Join(m.dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.t.Error(err)
		}
		for _, e := range entries {
			m.t.Errorf("left in %s: %s", dir, e.Name())
		}
	}
	if n := len(m.s.ListPods()) + len(m.s.ListContainers()); n > 0 {
		m.t.Errorf("%d objects are listed", n)
	}
}

// in runs fn in a bubble of its own time and ends the criserver after it.
func in(t *testing.T, fn func(t *testing.T, m *machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		defer func() {
			m.s.Close(context.Background())
			m.behind.Wait()
		}()
		fn(t, m)
	})
}

func podConfig() *runtimev1.PodSandboxConfig {
	return &runtimev1.PodSandboxConfig{
		Metadata:    &runtimev1.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1", Attempt: 2},
		Labels:      map[string]string{"app": "web"},
		Annotations: map[string]string{"note": "ü"},
		DnsConfig:   &runtimev1.DNSConfig{Servers: []string{"10.0.0.1"}, Searches: []string{"a", "b"}},
		Linux: &runtimev1.LinuxPodSandboxConfig{CgroupParent: "/kubepods/x", SecurityContext: &runtimev1.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER}}},
	}
}

func containerConfig() *runtimev1.ContainerConfig {
	return &runtimev1.ContainerConfig{
		Mounts:   []*runtimev1.Mount{{Image: &runtimev1.ImageSpec{Image: testImage}, ContainerPath: "/image", Readonly: true}},
		Metadata: &runtimev1.ContainerMetadata{Name: "main", Attempt: 1},
		Image:    &runtimev1.ImageSpec{Image: testImage},
		Command:  []string{"/bin/true"},
		Labels:   map[string]string{"c": "1"},
		Envs:     []*runtimev1.KeyValue{{Key: "A", Value: []byte("b")}},
	}
}

// made runs a pod with a container that runs.
func (m *machine) made() (ID, ContainerID) {
	m.t.Helper()
	pod, err := m.s.RunPod(m.t.Context(), podConfig(), "")
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := m.s.CreateContainer(m.t.Context(), pod, containerConfig(), podConfig())
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.s.StartContainer(m.t.Context(), c); err != nil {
		m.t.Fatal(err)
	}
	return pod, c
}

// process finds the process of a container on the node.
func (m *machine) process(id ContainerID) *fakeContainer {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		if c := p.containers[string(id)]; c != nil {
			return c
		}
	}
	m.t.Fatalf("container %s has no process", id)
	return nil
}

func (m *machine) status(id ContainerID) *ContainerStatus {
	m.t.Helper()
	st, err := m.s.ContainerStatus(id)
	if err != nil {
		m.t.Fatal(err)
	}
	return st
}

// twoHandlers are the one that always is, and "fast".
func twoHandlers() map[string]*specgen.Handler {
	plain, fast := specgen.DefaultHandler(), specgen.DefaultHandler()
	fast.PidsLimit = 7
	return map[string]*specgen.Handler{"": &plain, "fast": &fast}
}
