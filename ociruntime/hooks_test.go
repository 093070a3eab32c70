//lint:file-ignore SA1019 prestart hooks still have to run

package ociruntime

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/leak"
)

// shHook is a hook of the host's shell.
func shHook(script string) []specs.Hook {
	return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}}
}

// bundles fails if a pod has any.
func noBundle(t *testing.T, p *Pod) {
	t.Helper()
	left, err := filepath.Glob(p.path("bundle-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("bundles are left: %v, %v", left, err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(table), p.config.Dir) {
		t.Errorf("something is mounted in %s", p.config.Dir)
	}
}

// sighting is what a hook saw.
type sighting struct {
	specs.State
	Mount, PID, Net string // namespaces
}

// see makes a hook that writes down what it sees, to a directory that only the host has.
func see(dir, kind string) []specs.Hook {
	return shHook(fmt.Sprintf(`echo %s >>%s/order; cat >%s/%s; for n in mnt pid net; do readlink /proc/self/ns/$n; done >%s/%s.ns`, kind, dir, dir, kind, dir, kind))
}

// ranAs wants the hooks of a directory to have run in this order.
func ranAs(t *testing.T, dir string, want ...string) {
	t.Helper()
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if got := strings.Fields(string(order)); err != nil || !slices.Equal(got, want) {
		t.Errorf("hooks ran as %v, %v, want %v", got, err, want)
	}
}

func (s *sighting) read(t *testing.T, dir, kind string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, kind))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &s.State); err != nil {
		t.Fatalf("%s: %v: %s", kind, err, data)
	}
	ns, err := os.ReadFile(filepath.Join(dir, kind+".ns"))
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(ns)); len(f) == 3 {
		s.Mount, s.PID, s.Net = f[0], f[1], f[2]
	}
}

// Every kind of hook runs once, in its order, its namespaces and with its state.
func TestHooks(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	dir := t.TempDir()
	spec := DefaultSpec("sh", "-c", "readlink /proc/self/ns/mnt; cat /started; cat /proc/1/comm")
	spec.Annotations = map[string]string{"who": "critest"}
	spec.Hooks = &specs.Hooks{
		Prestart: see(dir, "prestart"), CreateRuntime: see(dir, "createRuntime"), CreateContainer: see(dir, "createContainer"),
		StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "/bin/busybox cat >/started; /bin/busybox id -u >>/started"}}},
		Poststart:      see(dir, "poststart"), Poststop: see(dir, "poststop"),
	}
	c, log := f.create(t, p, spec, nil)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c)
	if err := c.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	ranAs(t, dir, "prestart", "createRuntime", "createContainer", "poststart", "poststop")
	lines := strings.Split(logText(t, log), "\n")
	own, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	ownPID, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		kind   string
		status specs.ContainerState
		inside bool
		pid    bool
	}{
		{"prestart", specs.StateCreating, false, true}, {"createRuntime", specs.StateCreating, false, true},
		{"createContainer", specs.StateCreating, true, true}, {"poststart", specs.StateRunning, false, true},
		{"poststop", specs.StateStopped, false, false},
	} {
		var got sighting
		got.read(t, dir, want.kind)
		if got.ID != c.ID() || got.Status != want.status || got.Bundle != p.bundle(c.ID()) || got.Annotations["who"] != "critest" || (got.Pid != 0) != want.pid {
			t.Errorf("%s hook has the state %+v", want.kind, got.State)
		}
		if want.inside {
			if got.Mount != lines[0] || got.PID == ownPID || got.Pid != 1 {
				t.Errorf("%s hook is in %s and %s, pid %d; the container in %s", want.kind, got.Mount, got.PID, got.Pid, lines[0])
			}
		} else if got.Mount != own || got.PID != ownPID {
			t.Errorf("%s hook is in %s and %s, not in the host's", want.kind, got.Mount, got.PID)
		}
	}
	var started specs.State
	if err := json.Unmarshal([]byte(strings.Split(lines[1], "}0")[0]+"}"), &started); err != nil {
		t.Errorf("startContainer hook: %v: %q", err, lines)
	} else if started.Status != specs.StateCreated || started.Pid != 1 {
		t.Errorf("startContainer hook has the state %+v", started)
	}
	noBundle(t, p)
}

// gpuHook compiles testdata/ldcache.c, dynamically linked.
func gpuHook(t *testing.T) string {
	t.Helper()
	hook := filepath.Join(t.TempDir(), "ldcache")
	if out, err := exec.Command("gcc", "-o", hook, "testdata/ldcache.c").CombinedOutput(); err != nil {
		t.Fatalf("compile the hook: %v\n%s", err, out)
	}
	if out, err := exec.Command("ldd", hook).CombinedOutput(); err != nil || !strings.Contains(string(out), "libc.so") {
		t.Fatalf("the hook is not linked dynamically: %v\n%s", err, out)
	}
	return hook
}

// A hook that is linked dynamically makes links and the loader's cache in a root that is read-only afterwards.
func TestHookWritesIntoRoot(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	library := filepath.Join(f.root, "usr/lib/gpu")
	if err := os.MkdirAll(library, 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "gpu.c")
	if err := os.WriteFile(source, []byte("int gpu(void) { return 1; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-Wl,-soname,libgpu.so.1", "-o", library+"/libgpu.so.1.2", source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	spec := DefaultSpec("sh", "-c", "readlink /usr/lib/gpu/libgpu.so; readlink /usr/lib/gpu/libgpu.so.1; grep -c libgpu.so.1 /etc/ld.so.cache; touch /x 2>/dev/null || echo read-only")
	spec.Root.Readonly = true
	spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: gpuHook(t), Args: []string{"ldcache", "libgpu.so.1", "usr/lib/gpu/libgpu.so"}}}}
	if out, exit := f.run(t, p, spec); out != "libgpu.so.1\nlibgpu.so.1.2\n1\nread-only\n" || exit.Code != 0 {
		t.Errorf("the container says %q, %+v", out, exit)
	}
}

// A hook of the host's namespaces finds the root too, without entering the container.
func TestHooksSeeRoot(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	for _, kind := range []string{"prestart", "createRuntime", "createContainer"} {
		t.Run(kind, func(t *testing.T) {
			spec := DefaultSpec("cat", "/mark")
			hooks := shHook(`b=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/'); echo ` + kind + ` >$b/rootfs/mark`)
			switch kind {
			case "prestart":
				spec.Hooks = &specs.Hooks{Prestart: hooks}
			case "createRuntime":
				spec.Hooks = &specs.Hooks{CreateRuntime: hooks}
			default:
				spec.Hooks = &specs.Hooks{CreateContainer: hooks}
			}
			if out, _ := f.run(t, p, spec); out != kind+"\n" {
				t.Errorf("it sees %q", out)
			}
		})
	}
	noBundle(t, p)
}

// A hook that fails ends the start, and nothing is left of that.
func TestHookFails(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	fails := shHook("echo no such GPU >&2; exit 7")
	one := 1
	slow := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "exec sleep 1000"}, Env: []string{"PATH=/usr/bin:/bin"}, Timeout: &one}}
	missing := []specs.Hook{{Path: "/no/such/hook"}}
	inside := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo inside >&2; exit 8"}}}
	for _, tt := range []struct {
		name  string
		hooks specs.Hooks
		want  string
	}{
		{"prestart", specs.Hooks{Prestart: fails}, "prestart hook /bin/sh: exit status 7: no such GPU"},
		{"createRuntime", specs.Hooks{CreateRuntime: fails}, "createRuntime hook /bin/sh: exit status 7: no such GPU"},
		{"createContainer", specs.Hooks{CreateContainer: fails}, "createContainer hook /bin/sh: exit status 7: no such GPU"},
		{"startContainer", specs.Hooks{StartContainer: inside}, "startContainer hook /bin/sh: exit status 8: inside"},
		{"createRuntime, too slow", specs.Hooks{CreateRuntime: slow}, "createRuntime hook /bin/sh: killed, it has not ended in 1s"},
		{"createContainer, too slow", specs.Hooks{CreateContainer: slow}, "createContainer hook /bin/sh: killed, it has not ended in 1s"},
		{"createContainer, killed", specs.Hooks{CreateContainer: shHook("kill -9 $$")}, "createContainer hook /bin/sh: signal: killed"},
		{"createRuntime, missing", specs.Hooks{CreateRuntime: missing}, "createRuntime hook /no/such/hook: "},
		{"createContainer, missing", specs.Hooks{CreateContainer: missing}, "createContainer hook /no/such/hook: execute /no/such/hook: no such file or directory"},
		{"startContainer, missing", specs.Hooks{StartContainer: missing}, "startContainer hook /no/such/hook: execute /no/such/hook: no such file or directory"},
		{"the second of two", specs.Hooks{CreateContainer: append(shHook("true"), fails...)}, "createContainer hook /bin/sh: exit status 7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t, leak.Only(leak.Descriptor)) // others start pods meanwhile
			after := t.TempDir()
			spec := DefaultSpec("true")
			spec.Hooks = &tt.hooks
			spec.Hooks.Poststop = shHook("touch " + after + "/ran")
			c, _ := f.create(t, p, spec, nil)
			err := c.Start(testContext(t))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if err := c.Delete(testContext(t)); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(after + "/ran"); err != nil {
				t.Errorf("what the hooks had done is not undone: %v", err)
			}
			noBundle(t, p)
		})
	}
}

// Hooks that come after the container's own life has begun or ended fail for themselves.
func TestLateHooksFail(t *testing.T) {
	f := newFixture(t)
	var said strings.Builder
	f.runtime.config.Log = slog.New(slog.NewTextHandler(&said, nil))
	p := f.pod(t, nil)
	spec := DefaultSpec("echo", "runs")
	spec.Hooks = &specs.Hooks{Poststart: shHook("echo late >&2; exit 1"), Poststop: shHook("exit 2")}
	c, log := f.create(t, p, spec, nil)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c)
	if err := c.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if out := logText(t, log); out != "runs\n" {
		t.Errorf("it printed %q", out)
	}
	for _, want := range []string{"poststart hook /bin/sh: exit status 1: late", "poststop hook /bin/sh: exit status 2"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("nobody says %q: %s", want, said.String())
		}
	}
}

// A container that was never started has nothing for poststop hooks.
func TestHooksOfUnstarted(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	dir := t.TempDir()
	spec := DefaultSpec("true")
	spec.Hooks = &specs.Hooks{Poststop: shHook("touch " + dir + "/ran")}
	c, _ := f.create(t, p, spec, nil)
	if err := c.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/ran"); err == nil {
		t.Error("the poststop hook ran")
	}
	noBundle(t, p)
}

// A container is started by another criserver than the one that created it, and ended by a third, with all its hooks.
func TestHooksAndAdoption(t *testing.T) {
	f := newFixture(t)
	p, config := f.adoptable(t)
	dir := t.TempDir()
	spec := DefaultSpec("sleep", "1000")
	spec.Hooks = &specs.Hooks{CreateContainer: see(dir, "createContainer"), Poststop: see(dir, "poststop")}
	c, err := p.Create(testContext(t), ContainerConfig{ID: randomID(), Spec: spec, Root: f.openRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	// As if it had been killed while hooks ran: the root is attached already.
	if err := p.attachBundle(c.ID(), c.root); err != nil {
		t.Fatal(err)
	}
	second := f.adopt(t, config)
	again := second.Containers()[0]
	if err := again.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	third := f.adopt(t, config)
	third.stopAfter(t)
	last := third.Containers()[0]
	if err := last.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, last)
	if err := last.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	ranAs(t, dir, "createContainer", "poststop")
	noBundle(t, third)
}

// The pause of a pod dies while criserver is away: what hooks did is undone all the same.
func TestHooksOfLostPod(t *testing.T) {
	f := newFixture(t)
	p, config := f.adoptable(t)
	dir := t.TempDir()
	spec := DefaultSpec("sleep", "1000")
	spec.Hooks = &specs.Hooks{CreateRuntime: see(dir, "createRuntime"), Poststop: see(dir, "poststop")}
	c, err := p.Create(testContext(t), ContainerConfig{ID: randomID(), Spec: spec, Root: f.openRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := unix.PidfdSendSignal(int(p.conn.PidFD().Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	<-p.Exited()
	if err := f.runtime.CleanPod(testContext(t), config, []string{c.ID()}); err != nil {
		t.Fatal(err)
	}
	ranAs(t, dir, "createRuntime", "poststop")
	noBundle(t, p)
}

// In a pod with a user namespace, hooks inside are its root: they write where that may.
func TestHooksInUserNamespace(t *testing.T) {
	f := newFixture(t)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	state := t.TempDir()
	for _, dir := range []string{filepath.Dir(state), state} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(f.root, 200000, 200000); err != nil {
		t.Fatal(err)
	}
	p := f.pod(t, func(c *PodConfig) { c.UserNS, c.Dir = &IDMap{UIDs: ids, GIDs: ids}, state })
	spec := DefaultSpec("cat", "/outside", "/inside", "/start")
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "sysfs" || m.Type == "cgroup" }) // the network is the host's
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = ids, ids
	const root = `b=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/'); `
	spec.Hooks = &specs.Hooks{
		CreateRuntime:   shHook(root + "id -u >$b/rootfs/outside; cat /proc/self/uid_map >&2"),
		CreateContainer: shHook(root + "test -r $b/config.json && id -u >$b/rootfs/inside && stat -c %u $b/rootfs/inside >>$b/rootfs/inside"),
		StartContainer:  []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "/bin/busybox id -u >/start"}}},
	}
	if out, exit := f.run(t, p, spec); out != "0\n0\n0\n0\n" || exit.Code != 0 {
		t.Errorf("it sees %q, %+v", out, exit)
	}
	var st unix.Stat_t
	if err := unix.Stat(f.root+"/inside", &st); err != nil || st.Uid != 200000 {
		t.Errorf("what a hook inside made belongs to %d: %v", st.Uid, err)
	}
}
