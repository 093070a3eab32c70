package ociruntime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/mount"
)

// pauseBinary builds pause once; CRISERVER_TEST_PAUSE names another one, such as that with sanitizers.
var pauseBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("CRISERVER_TEST_PAUSE"); path != "" {
		return path, nil
	}
	out, err := exec.Command("make", "-s", "-C", "../pause/src", "all").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build pause: %w\n%s", err, out)
	}
	return filepath.Abs("../bin/pause")
})

func randomID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// fixture is a runtime of its own with its own cgroup parent.
type fixture struct {
	runtime *Runtime
	parent  string
	root    string // directory that containers have as root
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	hierarchies, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	return newFixtureOn(t, hierarchies)
}

// newFixtureV2 is newFixture on a host that seems to have the cgroup2 hierarchy only, whatever its controllers.
func newFixtureV2(t testing.TB) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	list := slices.DeleteFunc(host.List(), func(h cgroup.Hierarchy) bool { return !h.Unified })
	_ = host.Close()
	if len(list) == 0 {
		t.Skip("no cgroup2 is mounted")
	}
	hierarchies, err := cgroup.New(list)
	if err != nil {
		t.Fatal(err)
	}
	return newFixtureOn(t, hierarchies)
}

func newFixtureOn(t testing.TB, hierarchies *cgroup.Hierarchies) *fixture {
	t.Helper()
	t.Cleanup(func() { _ = hierarchies.Close() })
	binary, err := pauseBinary()
	if err != nil {
		t.Fatal(err)
	}
	rt, err := New(Config{PauseBinary: binary, WorkDir: t.TempDir(), Cgroups: hierarchies, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rt.Close() })
	f := &fixture{runtime: rt, parent: "/critest-" + randomID()[:8], root: busyboxRoot(t)}
	t.Cleanup(func() {
		if strings.HasPrefix(f.parent, "/") { // else it is systemd's
			f.removeParent(t, hierarchies)
		}
	})
	return f
}

// removeParent removes the test's cgroup parent from every hierarchy; a leaf that is left makes the test fail.
func (f *fixture) removeParent(t testing.TB, hs *cgroup.Hierarchies) {
	f.runtime.endings.all.Wait()
	for _, h := range hs.List() {
		if err := unix.Rmdir(h.MountPoint + f.parent); err != nil && err != unix.ENOENT {
			t.Errorf("remove %s%s: %v", h.MountPoint, f.parent, err)
		}
	}
}

// busyboxRoot makes a root file system of Debian's busybox-static.
func busyboxRoot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"bin", "etc", "proc", "dev", "sys", "tmp", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "true", "false", "cat", "sleep", "id", "ls", "echo", "stat", "mount", "hostname", "ps", "dd", "kill", "touch", "grep", "head", "tty", "stty", "readlink", "ip", "env", "pwd", "yes", "seq"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (f *fixture) pod(t testing.TB, change func(*PodConfig)) *Pod {
	t.Helper()
	c := PodConfig{ID: randomID(), Dir: t.TempDir(), Hostname: "pod", HostNetwork: true, CgroupParent: f.parent}
	if change != nil {
		change(&c)
	}
	p, err := f.runtime.StartPod(testContext(t), c)
	if err != nil {
		t.Fatalf("start pod: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Stop(testContext(t)); err != nil {
			t.Errorf("stop pod: %v", err)
		}
	})
	return p
}

func (f *fixture) openRoot(t testing.TB) *os.File {
	t.Helper()
	source, err := mount.OpenSource(f.root)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	root, err := mount.Bind(source, mount.Options{RecBind: true, Propagation: unix.MS_PRIVATE}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func (f *fixture) create(t testing.TB, p *Pod, spec *specs.Spec, change func(*ContainerConfig)) (*Container, string) {
	t.Helper()
	cc := ContainerConfig{ID: randomID(), Spec: spec, Root: f.openRoot(t), LogPath: filepath.Join(t.TempDir(), "log")}
	if change != nil {
		change(&cc)
	}
	c, err := p.Create(testContext(t), cc)
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	t.Cleanup(func() {
		ctx := testContext(t)
		if err := c.Kill(ctx); err != nil {
			t.Errorf("kill container: %v", err)
		}
		if c.Pid() != 0 {
			waitExit(t, c) // an empty leaf comes before pause has told of the exit
		}
		if err := c.Delete(ctx); err != nil {
			t.Errorf("delete container: %v", err)
		}
	})
	return c, cc.LogPath
}

func waitExit(t testing.TB, c *Container) Exit {
	t.Helper()
	select {
	case <-c.Exited():
	case <-time.After(15 * time.Second):
		t.Fatal("container does not exit")
	}
	exit, _ := c.Exit()
	return exit
}

// run runs a container to its end and returns what it printed.
func (f *fixture) run(t testing.TB, p *Pod, spec *specs.Spec) (string, Exit) {
	t.Helper()
	c, log := f.create(t, p, spec, nil)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatalf("start container: %v", err)
	}
	exit := waitExit(t, c)
	return logText(t, log), exit
}

// logText returns the content of a CRI log without its prefixes.
func logText(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			t.Fatalf("log line %q is not in CRI format", line)
		}
		text.WriteString(fields[3])
	}
	return text.String()
}

func TestRunContainer(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	for _, tt := range []struct {
		name     string
		script   string
		change   func(*specs.Spec)
		want     string
		wantCode int32
	}{
		{name: "output", script: "echo hello; echo world >&2", want: "hello\nworld\n"},
		{name: "exit code", script: "exit 42", wantCode: 42},
		{name: "pid 1", script: "echo $$", want: "1\n"},
		{name: "hostname of the pod", script: "hostname", want: "pod\n"},
		{name: "user and groups", script: "id -u; id -g; id -G", change: func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{3000, 4000}}
		}, want: "1000\n2000\n2000 3000 4000\n"},
		{name: "working directory is created", script: "pwd", change: func(s *specs.Spec) { s.Process.Cwd = "/made/for/it" }, want: "/made/for/it\n"},
		{name: "read-only root", script: "touch /x 2>/dev/null || echo refused", change: func(s *specs.Spec) { s.Root.Readonly = true }, want: "refused\n"},
		{name: "masked file", script: "cat /proc/keys | head -c 1", want: ""},
		{name: "read-only path", script: "(echo 1 > /proc/sys/kernel/domainname) 2>/dev/null || echo refused", want: "refused\n"},
		{name: "stdout can be reopened by a user", script: "echo again > /dev/stdout", change: func(s *specs.Spec) { s.Process.User.UID = 1234 }, want: "again\n"},
		{name: "cgroup is the root of its namespace", script: "grep -c ':/$' /proc/self/cgroup >/dev/null && echo yes", want: "yes\n"},
		{name: "no foreign descriptors", script: "ls /proc/self/fd | wc -l", want: "4\n", change: func(s *specs.Spec) {
			s.Process.Args = []string{"/bin/busybox", "sh", "-c", "busybox ls /proc/self/fd | busybox wc -l"}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := DefaultSpec("sh", "-c", tt.script)
			if tt.change != nil {
				tt.change(spec)
			}
			out, exit := f.run(t, p, spec)
			if out != tt.want || exit.Code != tt.wantCode {
				t.Errorf("printed %q and exited with %d, want %q and %d", out, exit.Code, tt.want, tt.wantCode)
			}
		})
	}
}
