package nri_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/sandbox/nri"
)

// TestMain lets the test binary be a plugin that criserver launches.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginNameEnvVar) == "" {
		os.Exit(m.Run())
	}
	s, err := stub.New(&launched{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		os.Exit(1)
	}
}

// launched annotates containers with its configuration.
type launched struct{ config string }

func (l *launched) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	l.config = config
	return 0, nil
}

func (l *launched) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return &api.ContainerAdjustment{Annotations: map[string]string{"configured": l.config}}, nil, nil
}

func TestLaunchedPlugin(t *testing.T) {
	c := config(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{c.PluginDir, c.PluginConfigDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(self, filepath.Join(c.PluginDir, "10-self")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.PluginConfigDir, "self.conf"), []byte("from a file"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := open(t, c)
	if err != nil {
		t.Fatal(err)
	}
	hold := p.Hold()
	defer hold.Release()
	if !hold.Any {
		t.Fatal("the plugin was not launched")
	}
	adjustment, _, err := p.Create(t.Context(), &nri.Pod{ID: "p"}, &nri.Container{ID: "c", Pod: "p"})
	if err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	if err := adjustment.Apply(spec, nri.Host{Sysctls: func(map[string]string) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	if got := spec.Annotations["configured"]; got != "from a file" {
		t.Errorf("configuration of the plugin: %q", got)
	}
}
