package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
)

// started creates and starts a container that runs a script.
func (f *fixture) started(t testing.TB, p *Pod, script string, change func(*ContainerConfig)) (*Container, string) {
	t.Helper()
	c, log := f.create(t, p, DefaultSpec("sh", "-c", script), change)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatalf("start container: %v", err)
	}
	return c, log
}

func TestSignalAndKill(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	c, log := f.started(t, p, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done", nil)
	waitLog(t, log, "ready")
	if err := c.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := waitExit(t, c); exit.Code != 3 {
		t.Errorf("exit code %d after TERM, want 3", exit.Code)
	}
	c, _ = f.started(t, p, "sleep 1000 & sleep 1000", nil)
	if err := c.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if exit := waitExit(t, c); exit.Code != 137 || exit.Signal != unix.SIGKILL {
		t.Errorf("exit %+v after Kill, want 137 by SIGKILL", exit)
	}
	if err := c.Signal(unix.SIGTERM); !errors.Is(err, ErrNotRunning) {
		t.Errorf("signal after exit: %v, want ErrNotRunning", err)
	}
}

func TestStartErrors(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	if err := os.WriteFile(filepath.Join(f.root, "bin/plain"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*specs.Spec)
		want   string
	}{
		{"missing executable", func(s *specs.Spec) { s.Process.Args = []string{"nothing-here"} }, "find nothing-here in PATH /"},
		{"not executable", func(s *specs.Spec) { s.Process.Args = []string{"/bin/plain"} }, "execute /bin/plain: permission denied"},
		{"working directory is a file", func(s *specs.Spec) { s.Process.Cwd = "/etc/passwd" }, "enter working directory /etc/passwd: not a directory"},
		{"missing source", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/no/such/dir", Options: []string{"rbind"}})
		}, "/no/such/dir: no such file or directory"},
		{"destination of another kind", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/passwd", Type: "bind", Source: "/tmp", Options: []string{"rbind"}})
		}, "mount /tmp on /etc/passwd: both or neither must be a directory: invalid argument"},
		{"unknown file system", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nofs"})
		}, "fsopen nofs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := DefaultSpec("true")
			tt.change(spec)
			c, _ := f.create(t, p, spec, nil)
			err := c.Start(testContext(t))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("start: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// An image must not be able to direct what is done to a device at something of the host, or to pass something off as one.
func TestDeviceOverLinkOfImage(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, nil, 0o600), os.Mkdir(filepath.Join(f.root, "opt"), 0o755),
		os.Symlink(victim, filepath.Join(f.root, "opt/link")), os.WriteFile(filepath.Join(f.root, "opt/file"), nil, 0o600),
		unix.Mknod(filepath.Join(f.root, "opt/null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"link": "something else is there", "file": "something else is there", "null": "", "new": ""} {
		spec := DefaultSpec("true")
		spec.Linux.Devices = []specs.LinuxDevice{{Path: "/opt/" + name, Type: "c", Major: 1, Minor: 3}}
		c, err := p.Create(testContext(t), ContainerConfig{ID: randomID(), Spec: spec, Root: f.openRoot(t)})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if err == nil {
			if err := c.Delete(testContext(t)); err != nil {
				t.Error(err)
			}
		}
	}
	for path, want := range map[string]os.FileMode{victim: 0o600, filepath.Join(f.root, "opt/null"): 0o666, filepath.Join(f.root, "opt/new"): 0o666} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", path, st, err, want)
		}
	}
}

// Who asks for the terminal multiplexer or the console gets the container's own.
func TestDevicesThatEveryContainerHas(t *testing.T) {
	f := newFixture(t)
	spec := DefaultSpec("readlink", "/dev/ptmx")
	spec.Process.Terminal = true
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/ptmx", Type: "c", Major: 5, Minor: 2}, {Path: "/dev/console", Type: "c", Major: 5, Minor: 1}}
	if out, exit := f.run(t, f.pod(t, nil), spec); strings.TrimSpace(out) != "pts/ptmx" || exit.Code != 0 {
		t.Errorf("printed %q, exit %+v", out, exit)
	}
}

// The kernel refuses to resolve ".." inside a root (EAGAIN) if it met a mount or rename anywhere on the machine.
func TestDestinationsWhileOthersMount(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	if err := os.Symlink(strings.Repeat("../", 200)+"etc/passwd", filepath.Join(f.root, "etc/long")); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	churned := make(chan error, 1)
	go func() { churned <- churn(done) }()
	t.Cleanup(func() {
		close(done)
		if err := <-churned; err != nil {
			t.Error(err)
		}
	})
	spec := DefaultSpec("true")
	spec.Linux.ReadonlyPaths = slices.Repeat([]string{"/etc/long"}, 50)
	for range 10 {
		if _, exit := f.run(t, p, spec); exit.Code != 0 {
			t.Errorf("exit code %d", exit.Code)
		}
	}
}

// churn renames until done is closed, which the kernel counts like mounting and which is cheaper.
func churn(done <-chan struct{}) error {
	dir, err := os.MkdirTemp("", "churn")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.Mkdir(a, 0o700); err != nil {
		return err
	}
	for {
		select {
		case <-done:
			return nil
		default:
		}
		if err := os.Rename(a, b); err != nil {
			return err
		}
		a, b = b, a
	}
}

// waitLog blocks until a log contains text.
func waitLog(t testing.TB, path, text string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(logText(t, path), text) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 10000); n == 0 && err == nil {
			t.Fatalf("log %q does not come to contain %q", logText(t, path), text)
		}
		_, _ = unix.Read(fd, make([]byte, 4096))
	}
}

func TestOOM(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	spec := DefaultSpec("dd", "if=/dev/zero", "of=/dev/null", "bs=64M")
	limit := int64(16 << 20)
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	_, exit := f.run(t, p, spec)
	if exit.Code != 137 || !exit.OOMKilled {
		t.Errorf("exit %+v, want 137 and OOMKilled", exit)
	}
}

func TestAdoption(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	config := PodConfig{ID: randomID(), Dir: dir, Hostname: "pod", HostNetwork: true, CgroupParent: f.parent}
	p, err := f.runtime.StartPod(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	running, log := f.started(t, p, "echo before; sleep 0.3; echo after; sleep 1000", nil)
	ending, _ := f.started(t, p, "sleep 0.2; exit 5", nil)
	created, createdLog := f.create(t, p, DefaultSpec("echo", "late"), nil)
	if err := p.Keep(testContext(t), "thing", p.shm); err != nil {
		t.Fatal(err)
	}

	// A second criserver takes over, as after a kill of the first.
	adopted, err := f.runtime.AdoptPod(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := adopted.Stop(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	if files := adopted.Kept("thing"); len(files) != 1 {
		t.Errorf("kept %d files, want 1", len(files))
	} else {
		closeFiles(files)
	}
	byID := map[string]*Container{}
	for _, c := range adopted.Containers() {
		byID[c.ID()] = c
	}
	if exit := waitExit(t, byID[ending.ID()]); exit.Code != 5 {
		t.Errorf("container that ended meanwhile has code %d, want 5", exit.Code)
	}
	if out, code := execText(t, byID[running.ID()], "echo", "hi"); out != "hi\n" || code != 0 {
		t.Errorf("exec after adoption: %q, %d", out, code)
	}
	if err := byID[created.ID()].Start(testContext(t)); err != nil {
		t.Fatalf("start of a container that was created before: %v", err)
	}
	waitExit(t, byID[created.ID()])
	if out := logText(t, createdLog); out != "late\n" {
		t.Errorf("it printed %q", out)
	}
	waitLog(t, log, "after")
	if err := byID[running.ID()].Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, byID[running.ID()])
	if out := logText(t, log); out != "before\nafter\n" {
		t.Errorf("log across the restart: %q", out)
	}
}

// What the kubelet asks for: files bound over a read-only root, and a root from which mounts travel.
func TestRootAttributes(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	spec := DefaultSpec("sh", "-c", "touch /x 2>/dev/null || cat /run/made/here")
	spec.Root.Readonly = true
	source := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(source, []byte("bound"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/run/made/here", Type: "bind", Source: source, Options: []string{"bind"}})
	if out, exit := f.run(t, p, spec); out != "bound\n" || exit.Code != 0 {
		t.Errorf("read-only root with a bound file: %q, %+v", out, exit)
	}
	for _, propagation := range []string{"rshared", "rslave"} {
		spec := DefaultSpec("sh", "-c", "busybox awk '$5 == \"/\"' /proc/self/mountinfo | grep -c shared:")
		spec.Linux.RootfsPropagation = propagation
		want := map[string]string{"rshared": "1\n", "rslave": "0\n"}[propagation]
		if out, _ := f.run(t, p, spec); out != want {
			t.Errorf("root with propagation %s: %q shared mounts, want %q", propagation, out, want)
		}
	}
}

// An environment need not be UTF-8, also after a restart.
func TestEnvironmentIsBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	want := []string{"A=\xff\xfe", "B=b"}
	if err := writeRecord(path, record{ID: "x", Process: &specs.Process{Args: []string{"a"}, Env: want}}); err != nil {
		t.Fatal(err)
	}
	var r record
	if err := readRecord(path, &r); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Process.Env, want) {
		t.Errorf("environment %q, want %q", r.Process.Env, want)
	}
}

func TestPodDiesWithPause(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	c, _ := f.started(t, p, "sleep 1000", nil)
	if err := unix.Kill(p.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := waitExit(t, c); exit.Code != 137 {
		t.Errorf("exit %+v", exit)
	}
	if err := c.group.WaitEmpty(testContext(t)); err != nil {
		t.Errorf("processes outlive pause: %v", err)
	}
}

// pause_cgroup = "runtime": what pauses use is not the pods'.
func TestPauseParent(t *testing.T) {
	f := newFixture(t)
	f.runtime.config.PauseParent = f.parent + "/pauses"
	p := f.pod(t, nil)
	c, _ := f.started(t, p, "sleep 1000", nil)
	of := func(pid int) string {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if text := of(p.Pid()); !strings.Contains(text, f.parent+"/pauses/"+p.config.ID) {
		t.Errorf("pause is in\n%s", text)
	}
	if text := of(c.Pid()); !strings.Contains(text, f.parent+"/"+c.ID()) {
		t.Errorf("the container is in\n%s", text)
	}
}

// The containers of a pod share /dev/shm, also on kernels that cannot clone a detached mount, and over a restart of criserver. The
// host's mount table, of which systemd makes units, does not show it.
func TestSharedMemory(t *testing.T) {
	for _, refuse := range []string{"", "overlay-detached-lower"} {
		t.Run("without "+refuse, func(t *testing.T) {
			if refuse != "" {
				t.Cleanup(kernel.Refuse(refuse))
			}
			f := newFixture(t)
			p, config := f.adoptable(t)
			dir := config.Dir
			shared := func(script string) *specs.Spec {
				s := DefaultSpec("sh", "-c", script)
				s.Mounts[4] = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: filepath.Join(dir, ShmName), Options: []string{"rbind"}}
				return s
			}
			f.run(t, p, shared("echo said > /dev/shm/x"))
			if out, _ := f.run(t, p, shared("cat /dev/shm/x")); out != "said\n" {
				t.Errorf("the second container reads %q", out)
			}
			if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
				t.Errorf("the host sees it: %v\n%s", err, mounts)
			}
			p = f.adopt(t, config)
			if out, _ := f.run(t, p, shared("cat /dev/shm/x")); out != "said\n" {
				t.Errorf("after a restart a container reads %q", out)
			}
			if err := p.Stop(testContext(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSharedPID(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, func(c *PodConfig) { c.SharedPID = true })
	shared := func(cc *ContainerConfig) { cc.SharedPID = true }
	f.started(t, p, "sleep 1000", shared)
	c, log := f.started(t, p, "ps; grep -E '^(CapPrm|NoNewPrivs)' /proc/1/status; echo $$", shared)
	waitExit(t, c)
	out := logText(t, log)
	if !strings.Contains(out, "CapPrm:\t0000000000000000\nNoNewPrivs:\t1\n") {
		t.Errorf("PID 1 of the pod is no harmless process:\n%s", out)
	}
	if !strings.Contains(out, "sleep 1000") || strings.HasSuffix(out, "\n1\n") {
		t.Errorf("containers of a shared pid namespace see:\n%s", out)
	}
}

func TestUserNamespace(t *testing.T) {
	f := newFixture(t)
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared pid namespace %t", shared), func(t *testing.T) { f.testUserNamespace(t, shared) })
	}
}

func (f *fixture) testUserNamespace(t *testing.T, shared bool) {
	maps := []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
	p := f.pod(t, func(c *PodConfig) {
		c.UserNS = &IDMap{UIDs: maps, GIDs: maps}
		c.HostNetwork, c.SharedPID = false, shared
	})
	spec := DefaultSpec("sh", "-c", "id -u; head -n 1 /proc/self/uid_map | tr -s ' '; ip link show lo | grep -c UP; touch /dev/shm/x && stat -c %u /dev/shm/x")
	adj := 500
	spec.Process.OOMScoreAdj = &adj
	c, log := f.create(t, p, spec, func(cc *ContainerConfig) { cc.SharedPID = shared })
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c)
	if out := logText(t, log); !strings.HasPrefix(out, "0\n") || !strings.Contains(out, "200000 65536") {
		t.Errorf("inside the user namespace: %q", out)
	}
}

func BenchmarkStartTrue(b *testing.B) {
	f := newFixture(b)
	p := f.pod(b, nil)
	for b.Loop() {
		f.once(b, p)
	}
}

// once creates, starts, awaits and deletes a container that runs true.
func (f *fixture) once(b *testing.B, p *Pod) {
	ctx := context.Background()
	c, err := p.Create(ctx, ContainerConfig{ID: randomID(), Spec: DefaultSpec("true"), Root: f.openRoot(b)})
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		b.Fatal(err)
	}
	<-c.Exited()
	if err := c.Delete(ctx); err != nil {
		b.Fatal(err)
	}
}
