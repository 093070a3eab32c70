package nri_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/criserver/criserver/sandbox/nri"
	"github.com/criserver/criserver/sandbox/nri/nritest"
)

// empty is a node without pods.
type empty struct{}

func (empty) Told() ([]*nri.Pod, []*nri.Container)                       { return nil, nil }
func (empty) Update(context.Context, []nri.Update) (failed []nri.Update) { return nil }

// config is NRI in a directory of the test's.
func config(t *testing.T) nri.Config {
	dir := t.TempDir()
	return nri.Config{Version: "1", Socket: filepath.Join(dir, "nri.sock"), PluginDir: filepath.Join(dir, "plugins"), PluginConfigDir: filepath.Join(dir, "conf"),
		RegistrationTimeout: 5 * time.Second, RequestTimeout: 2 * time.Second}
}

func open(t *testing.T, c nri.Config) (*nri.Plugins, error) {
	t.Helper()
	p, err := nri.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, p.Open(empty{})
}

func TestHoldSaysWhetherThereArePlugins(t *testing.T) {
	c := config(t)
	p, err := open(t, c)
	if err != nil {
		t.Fatal(err)
	}
	anybody := func() bool {
		hold := p.Hold()
		defer hold.Release()
		return hold.Any
	}
	if anybody() {
		t.Error("somebody to tell without a plugin")
	}
	hold := p.Hold()
	plugin := &nritest.Plugin{}
	plugin.Dial(t, c.Socket)
	if plugin.IsSynced() {
		t.Error("a plugin was added under a hold")
	}
	hold.Release()
	plugin.AwaitSync(t)
	if !anybody() {
		t.Error("nobody to tell with a plugin")
	}
}

func TestNoPluginsAtAll(t *testing.T) {
	var none *nri.Plugins
	if err := none.Open(empty{}); err != nil {
		t.Error(err)
	}
	hold := none.Hold()
	if hold.Any {
		t.Error("there is somebody to tell")
	}
	hold.Release()
	none.Close()
}

func TestSocketOfAnotherRuntime(t *testing.T) {
	for _, required := range []bool{false, true} {
		c := config(t)
		c.Required = required
		other, err := net.Listen("unix", c.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		p, err := open(t, c)
		if required != (err != nil && strings.Contains(err.Error(), c.Socket+": another runtime serves it")) {
			t.Errorf("required %v: error %v", required, err)
		}
		if hold := p.Hold(); hold.Any {
			t.Error("there is somebody to tell")
		}
		conn, err := net.Dial("unix", c.Socket)
		if err != nil {
			t.Errorf("the other's socket is gone: %v", err)
			continue
		}
		_ = conn.Close()
	}
}

func TestSocketThatNobodyServes(t *testing.T) {
	c := config(t)
	c.Required = true
	l, err := net.Listen("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := open(t, c); err != nil {
		t.Fatal(err)
	}
	nritest.Connect(t, c.Socket, &nritest.Plugin{})
}

func TestBadPluginDirectory(t *testing.T) {
	for _, required := range []bool{false, true} {
		c := config(t)
		c.Required = required
		if err := os.MkdirAll(c.PluginDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.PluginDir, "no-index"), nil, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, c); required != (err != nil) {
			t.Errorf("required %v: error %v", required, err)
		}
	}
}

func TestConnectionsDisabled(t *testing.T) {
	c := config(t)
	socket := c.Socket
	c.Socket = ""
	if _, err := open(t, c); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("there is a socket")
	}
}

func TestValidator(t *testing.T) {
	create := func(t *testing.T, v nri.Validator, plugin *nritest.Plugin) error {
		c := config(t)
		v.Enable = true
		c.Validator, c.Required = &v, true
		p, err := open(t, c)
		if err != nil {
			t.Fatal(err)
		}
		if plugin != nil {
			nritest.Connect(t, c.Socket, plugin)
		}
		hold := p.Hold()
		defer hold.Release()
		if !hold.Any {
			t.Fatal("the validator is nobody")
		}
		pod := &nri.Pod{ID: "p", Name: "p", Annotations: map[string]string{"tolerate": "true"}}
		_, _, err = p.Create(t.Context(), pod, &nri.Container{ID: "c", Pod: "p", Name: "c"})
		return err
	}
	adjusting := func(a *api.ContainerAdjustment) *nritest.Plugin {
		return &nritest.Plugin{Adjust: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			return a, nil
		}}
	}
	hooks := &api.ContainerAdjustment{Hooks: &api.Hooks{Prestart: []*api.Hook{{Path: "/bin/true"}}}}
	for _, test := range []struct {
		name      string
		validator nri.Validator
		plugin    *nritest.Plugin
		want      string // part of the error; "": none
	}{
		{"nothing to refuse", nri.Validator{}, adjusting(hooks), ""},
		{"hooks", nri.Validator{RejectOCIHookAdjustment: true}, adjusting(hooks), "hook"},
		{"sysctl", nri.Validator{RejectSysctlAdjustment: true}, adjusting(&api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Sysctl: map[string]string{"net.a": "1"}}}), "sysctl"},
		{"a required plugin is missing", nri.Validator{RequiredPlugins: []string{"topology"}}, nil, "topology"},
		{"it is there", nri.Validator{RequiredPlugins: []string{"topology"}}, &nritest.Plugin{Name: "topology"}, ""},
		{"the pod does without", nri.Validator{RequiredPlugins: []string{"topology"}, TolerateMissingAnnotation: "tolerate"}, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := create(t, test.validator, test.plugin)
			if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
