package cgroup

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
)

// host detects the hierarchies, or skips.
func host(t testing.TB) *Hierarchies {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	return made(t, Detect)
}

// made is what a function makes, until the test ends.
func made(t testing.TB, make func() (*Hierarchies, error)) *Hierarchies {
	t.Helper()
	hs, err := make()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := hs.Close(); err != nil {
			t.Error(err)
		}
	})
	return hs
}

// pureV1 is the host without its cgroup2, or skips.
func pureV1(t testing.TB) *Hierarchies {
	t.Helper()
	list := slices.DeleteFunc(host(t).List(), func(h Hierarchy) bool { return h.Unified })
	return made(t, func() (*Hierarchies, error) { return New(list) })
}

// modes runs a test on the host as it is and as pure v1.
func modes(t *testing.T, test func(t *testing.T, hs *Hierarchies)) {
	t.Run("host", func(t *testing.T) { test(t, host(t)) })
	t.Run("v1", func(t *testing.T) { test(t, pureV1(t)) })
}

// testParent gives a cgroup parent of the test's own; at the end it must be gone in every hierarchy.
func testParent(t testing.TB, hs *Hierarchies) string {
	t.Helper()
	parent := "/critest-" + strings.ToLower(rand.Text()[:8])
	t.Cleanup(func() {
		for _, h := range hs.all {
			if left := removeAll(h.abs(parent)); left != nil {
				t.Errorf("left behind: %v", left)
			}
		}
	})
	return parent
}

// removeAll kills and removes what is at dir and below; it returns the directories that it found.
func removeAll(dir string) []string {
	var found []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			found = append(found, path)
		}
		return nil
	})
	for _, path := range slices.Backward(found) {
		for range 100 {
			if err := unix.Rmdir(path); !errors.Is(err, unix.EBUSY) {
				break
			}
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			pids, _ := parsePIDs(string(text))
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			_, _ = unix.Poll(nil, 5)
		}
	}
	return found
}

func create(t testing.TB, hs *Hierarchies, res *specs.LinuxResources) *Group {
	t.Helper()
	g, err := hs.Create(testParent(t, hs)+"/pod", "leaf", res, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Delete(ctx, g.created...)); err != nil {
			t.Error(err)
		}
	})
	return g
}

// start runs a shell script inside g and returns when it has printed its first line.
func start(t testing.TB, g *Group, script string) *exec.Cmd {
	t.Helper()
	p, err := g.Placement()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var enter strings.Builder
	for i := range p.Tasks {
		fmt.Fprintf(&enter, "echo 0 >&%d || exit 9; ", i+3)
	}
	cmd := exec.Command("/bin/bash", "-c", enter.String()+"echo in; "+script)
	cmd.ExtraFiles = p.Tasks
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if p.Dir != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(p.Dir.Fd())
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line := make([]byte, 3)
	if _, err := out.Read(line); err != nil || !bytes.Equal(line, []byte("in\n")) {
		t.Fatalf("script began with %q, %v", line, err)
	}
	return cmd
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func ptr[T any](v T) *T { return &v }

func TestPlacementReachesEveryHierarchy(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, nil)
		cmd := start(t, g, "exec sleep 60")
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hs.List() {
			want := ":" + strings.Join(h.Controllers, ",") + ":" + g.Path() + "\n"
			if h.Unified {
				want = "0::" + g.Path() + "\n"
			}
			if !strings.Contains(string(text), want) {
				t.Errorf("no line %q in %q", want, text)
			}
		}
	})
}

func TestDeleteTakesChildrenAndOwnParents(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		parent := testParent(t, hs)
		var missing []string
		a, err := hs.Create(parent+"/pod", "a", nil, func(dirs []string) error {
			missing = append(missing, dirs...)
			for _, dir := range dirs {
				if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s was announced when it was there: %v", dir, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(missing, a.created) {
			t.Errorf("missing were %v, made were %v", missing, a.created)
		}
		b, err := hs.Create(parent+"/pod", "b", nil, func(dirs []string) error { return fmt.Errorf("nothing is missing: %v", dirs) })
		if err != nil {
			t.Fatal(err)
		}
		if n := len(a.created); n != 2*len(hs.List()) {
			t.Errorf("first leaf made %d parents: %v", n, a.created)
		}
		if n := len(b.created); n != 0 {
			t.Errorf("second leaf made parents: %v", b.created)
		}
		for _, dir := range a.Paths() { // as a container with a writable cgroup would
			if err := os.MkdirAll(dir+"/x/y", 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Delete(ctx(t), a.created...); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(b.Paths()["memory"]); err != nil {
			t.Fatalf("the other leaf: %v", err)
		}
		if err := b.Delete(ctx(t), append(a.created, "/sys/fs/cgroup/memory", "/tmp", "")...); err != nil {
			t.Fatal(err)
		}
		for _, h := range hs.all {
			if _, err := os.Stat(h.abs(parent)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", h.abs(parent), err)
			}
		}
		if err := b.Delete(ctx(t)); err != nil {
			t.Errorf("Delete of what is gone: %v", err)
		}
		if err := b.Kill(ctx(t)); err != nil {
			t.Errorf("Kill of what is gone: %v", err)
		}
	})
}

func TestDeleteWaitsForTheDying(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, nil)
		cmd := start(t, g, "exec sleep 60")
		deleted := make(chan error, 1)
		go func() { deleted <- g.Delete(ctx(t)) }()
		select {
		case err := <-deleted:
			t.Fatalf("Delete of a living group returned %v", err)
		case <-time.After(30 * time.Millisecond):
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-deleted; err != nil {
			t.Error(err)
		}
	})
	t.Run("not for ever", func(t *testing.T) {
		g := create(t, host(t), nil)
		start(t, g, "exec sleep 60")
		short, cancel := context.WithTimeout(ctx(t), 30*time.Millisecond)
		defer cancel()
		if err := g.Delete(short); !errors.Is(err, unix.EBUSY) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Delete = %v", err)
		}
	})
}

func TestCreateRefusesAndUndoes(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		parent := testParent(t, hs)
		for _, c := range []struct {
			name, parent, leaf, want string
			res                      *specs.LinuxResources
		}{
			{name: "relative parent", parent: "a/b", leaf: "x", want: `"a/b" is not absolute`},
			{name: "dots", parent: parent + "/../b", leaf: "x", want: `".." is no name`},
			{name: "dot", parent: parent + "/./b", leaf: "x", want: `"." is no name`},
			{name: "slash in name", parent: parent, leaf: "x/y", want: `"x/y" is no name`},
			{name: "empty name", parent: parent, leaf: "", want: `"" is no name`},
			{name: "limit too small for memsw", parent: parent, leaf: "x", want: "are less than memory alone",
				res: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), Swap: ptr(int64(4096))}}},
			{name: "kernel refuses", parent: parent, leaf: "x", want: parent + "/x/cpu.",
				res: &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(5))}}},
			{name: "no such processor", parent: parent, leaf: "x", want: "cpuset.cpus 999: the group above, " + parent,
				res: &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}}},
			{name: "no huge page size", parent: parent, leaf: "x", want: `"2Mi" is no huge page size`,
				res: &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2Mi"}}}},
			{name: "unified", parent: parent, leaf: "x", want: "unified limits",
				res: &specs.LinuxResources{Unified: map[string]string{"nosuch.high": "1"}}},
		} {
			if c.name == "no huge page size" && !hs.Has("hugetlb") {
				continue
			}
			if c.name == "unified" && hs.Mode() != V1 {
				c.want = "controller nosuch is not in the cgroup2 hierarchy"
			}
			g, err := hs.Create(c.parent, c.leaf, c.res, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: Create = %v, want %q", c.name, err, c.want)
			}
			if g != nil {
				t.Errorf("%s: a Group came with the error", c.name)
			}
		}
	}) // testParent finds what was not undone
}

func TestCreateOfExistingLeaf(t *testing.T) {
	hs := host(t)
	g := create(t, hs, nil)
	start(t, g, "exec sleep 60")
	_, err := hs.Create(filepath.Dir(g.Path()), "leaf", nil, nil)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create = %v", err)
	}
	again, err := hs.Open(filepath.Dir(g.Path()), "leaf")
	if err != nil {
		t.Fatal(err)
	}
	if empty, err := again.Empty(); empty || err != nil {
		t.Errorf("the living leaf: Empty = %v, %v", empty, err)
	}
}

func TestBeside(t *testing.T) {
	hs := host(t)
	if hs.unified == nil {
		t.Skip("no cgroup2")
	}
	g := create(t, hs, nil)
	made := &Group{hs: hs, path: g.path, exec: "init.scope/x"} // as a container that runs systemd has it
	if err := os.MkdirAll(hs.unified.abs(made.dir(hs.unified)), 0o755); err != nil {
		t.Fatal(err)
	}
	first := start(t, made, "exec sleep 60")
	beside, err := g.Beside(first.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := beside.Placement()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var where string
	if p.Dir != nil {
		where = filepath.Clean(p.Dir.Name())
	} else {
		where = filepath.Dir(p.Tasks[len(p.Tasks)-1].Name())
	}
	if want := hs.unified.abs(g.path, "init.scope/x"); where != want {
		t.Errorf("placement is in %s, want %s", where, want)
	}
	if _, err := g.Beside(os.Getpid()); err == nil || !strings.Contains(err.Error(), "not in "+g.Path()) {
		t.Errorf("beside a stranger: %v", err)
	}
}

func TestMonitorFiles(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, nil)
		m, err := g.MonitorFiles()
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		v1 := hs.Mode() == V1
		if !v1 && !kernel.CgroupKill.Has() {
			t.Skip("no cgroup.kill: see TestKillWithoutCgroupKill")
		}
		if (m.Events == nil) != v1 || (m.Kill == nil) != v1 || (m.Freezer == nil) == v1 || m.Procs == nil || m.OOM == nil {
			t.Fatalf("%+v", m)
		}
		cmd := start(t, g, "exec sleep 60")
		read := func(f *os.File) string {
			text, err := readAll(int(f.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		if got := read(m.Procs); got != fmt.Sprintln(cmd.Process.Pid) {
			t.Errorf("procs %q", got)
		}
		if n, err := parseKeyed(read(m.OOM), "oom_kill"); n != 0 || err != nil {
			t.Errorf("oom_kill %d, %v", n, err)
		}
		if v1 {
			for _, state := range []string{"FROZEN", "THAWED"} {
				if err := writeFD(int(m.Freezer.Fd()), state); err != nil {
					t.Errorf("%s: %v", state, err)
				}
			}
			return
		}
		if err := writeFD(int(m.Kill.Fd()), "1"); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if n, err := parseKeyed(read(m.Events), "populated"); n != 0 || err != nil {
			t.Errorf("populated %d, %v", n, err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	all := host(t).List()
	refused := map[string][]Hierarchy{
		"no cgroup hierarchy is mounted":                            nil,
		"open cgroup hierarchy /nowhere: no such file or directory": append(slices.Clone(all), Hierarchy{MountPoint: "/nowhere"}),
	}
	memory := slices.DeleteFunc(slices.Clone(all), func(h Hierarchy) bool { return h.Unified || !slices.Contains(h.Controllers, "memory") })
	if len(memory) > 0 {
		refused["neither a cgroup2 nor a v1 freezer hierarchy is mounted"] = memory
	}
	for want, list := range refused {
		if hs, err := New(list); err == nil || err.Error() != want || hs != nil {
			t.Errorf("New = %v, %v; want %s", hs, err, want)
		}
	}
}

// A guest has a directory only where it is killed; elsewhere it is in the group above, which stays when a neighbour goes.
func TestGuest(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		parent := testParent(t, hs) + "/pod"
		neighbour, err := hs.Create(parent, "neighbour", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := hs.Open(parent, "pause")
		if err != nil {
			t.Fatal(err)
		}
		g := leaf.Guest()
		dir, err := g.Begin(nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = dir.Close() // nil: there is none
		if err := neighbour.Delete(ctx(t), neighbour.created...); err != nil {
			t.Fatal(err)
		}
		for _, h := range hs.all {
			if _, err := os.Stat(h.abs("/" + above(g.path))); err != nil {
				t.Errorf("a neighbour took what the guest is about to enter: %v", err)
			}
		}
		if err := g.Complete(nil); err != nil {
			t.Fatal(err)
		}
		cmd := start(t, g, "exec sleep 60")
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hs.all {
			want := ":" + strings.Join(h.Controllers, ",") + ":" + parent + "\n"
			if h == hs.watch {
				want = ":" + parent + "/pause\n"
			}
			if !strings.Contains(string(text), want) {
				t.Errorf("no line %q in %q", want, text)
			}
		}
		if leaf.Leaf() {
			t.Error("it is taken for a leaf")
		}
		if err := errors.Join(g.Kill(ctx(t)), g.Delete(ctx(t), neighbour.created...)); err != nil {
			t.Error(err)
		}
	})
}

// What is around a guest is thawed with it, its neighbours are not.
func TestThawOfGuest(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		freezer := hs.byController["freezer"]
		if freezer == nil {
			t.Skip("no v1 freezer")
		}
		neighbour := create(t, hs, nil)
		leaf, err := hs.Open(path.Dir(neighbour.Path()), "pause")
		if err != nil {
			t.Fatal(err)
		}
		g := leaf.Guest()
		pod := above(g.path)
		for _, dir := range []string{pod, neighbour.path} {
			if err := freezeV1(freezer, dir, true); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Thaw(); err != nil {
			t.Fatal(err)
		}
		for dir, want := range map[string]bool{pod: false, neighbour.path: true} {
			if frozen, err := frozenItselfV1(freezer, dir); err != nil || frozen != want {
				t.Errorf("%s frozen: %v, %v", dir, frozen, err)
			}
		}
		if err := freezeV1(freezer, neighbour.path, false); err != nil {
			t.Fatal(err)
		}
	})
}
