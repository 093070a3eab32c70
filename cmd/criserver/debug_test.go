package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/leak"
)

// debugRoot is a directory with Debian's busybox as /bin/sh and whatever else it is called.
func debugRoot(t *testing.T) string {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("needs busybox-static: %v", err)
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cat", "grep", "id", "sh", "sleep", "stat", "touch", "unshare"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// builtPause builds pause once.
var builtPause = sync.OnceValues(func() (string, error) {
	if out, err := exec.Command("make", "-s", "-C", "../../pause/src", "all").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pause: %w\n%s", err, out)
	}
	return filepath.Abs("../../bin/pause")
})

// debugCommand is `criserver debug run` with a cgroup parent of the test's own, which must be gone afterwards.
func debugCommand(t *testing.T) *debugRun {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	pause, err := builtPause()
	if err != nil {
		t.Fatal(err)
	}
	parent := "/criserver-debug-" + newID()[:8]
	leak.Check(t, leak.Only(leak.Process, leak.Mount, leak.Cgroup, leak.Descriptor, leak.Goroutine), leak.Match(parent))
	return &debugRun{pause: pause, parent: parent, user: "0:0", seccomp: "default"}
}

// output runs args and returns what they wrote to stdout and stderr.
func (d *debugRun) output(t *testing.T, ctx context.Context, dir string, args ...string) (string, error) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	d.stdio = []*os.File{null, out, out}
	failed := d.run(ctx, dir, args)
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), failed
}

func TestDebugRun(t *testing.T) {
	dir := debugRoot(t)
	for _, test := range []struct {
		name   string
		change func(*debugRun)
		script string
		want   string
		code   int32
	}{
		{name: "exit code", script: "echo out; echo err >&2; exit 7", want: "out\nerr\n", code: 7},
		{name: "user", change: func(d *debugRun) { d.user = "33:77" }, script: "id -u; id -g", want: "33\n77\n"},
		{name: "seccomp by default", script: "grep ^Seccomp: /proc/self/status", want: "Seccomp:\t2\n"},
		{name: "no seccomp", change: func(d *debugRun) { d.seccomp = "unconfined" }, script: "grep ^Seccomp: /proc/self/status", want: "Seccomp:\t0\n"},
		{name: "no new privileges", change: func(d *debugRun) { d.noNewPrivs = true }, script: "grep ^NoNewPrivs: /proc/self/status", want: "NoNewPrivs:\t1\n"},
		{name: "read-only", change: func(d *debugRun) { d.readonly = true }, script: "touch /tmp/x 2>&1", want: "touch: /tmp/x: Read-only file system\n", code: 1},
		{name: "limit of processes", change: func(d *debugRun) { d.pids = 20 }, script: "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null", want: "20\n", code: 1},
		{name: "limit of memory", change: func(d *debugRun) { d.memory = 64 << 20 },
			script: "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null", want: "67108864\n", code: 1},
		{name: "user namespace", change: func(d *debugRun) { d.userns = 300000 },
			script: "id -u; stat -c %u /bin/busybox; cat /proc/self/uid_map; touch /tmp/made", want: "0\n0\n         0     300000      65536\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := debugCommand(t)
			if test.change != nil {
				test.change(d)
			}
			got, err := d.output(t, t.Context(), dir, "sh", "-c", test.script)
			var ended containerError
			if errors.As(err, &ended); ended.code != test.code || err != nil && ended.code == 0 {
				t.Errorf("got error %v, want code %d", err, test.code)
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	made, err := os.Stat(filepath.Join(dir, "tmp/made"))
	if err != nil || made.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("what root of the user namespace made belongs to %+v, error %v; want root of the host", made, err)
	}
}

func TestDebugRunFails(t *testing.T) {
	dir := debugRoot(t)
	for _, test := range []struct {
		name   string
		change func(*debugRun)
		args   []string
		want   string
	}{
		{name: "no such command", args: []string{"/absent"}, want: "start container: "},
		{name: "no such user", change: func(d *debugRun) { d.user = "root" }, args: []string{"true"}, want: `user "root" is not UID:GID`},
		{name: "no such profile", change: func(d *debugRun) { d.seccomp = "/absent" }, args: []string{"true"}, want: "/absent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := debugCommand(t)
			if test.change != nil {
				test.change(d)
			}
			if _, err := d.output(t, t.Context(), dir, test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one about %q", err, test.want)
			}
		})
	}
}

func TestDebugPrint(t *testing.T) {
	d := debugCommand(t)
	d.print = true
	got, err := d.output(t, t.Context(), debugRoot(t), "sh", "-c", "echo ran")
	if err != nil || !strings.Contains(got, "execve") || strings.Contains(got, "ran\n") {
		t.Errorf("got %q, error %v", got, err)
	}
}

func TestDebugRunIsInterrupted(t *testing.T) {
	d, dir := debugCommand(t), debugRoot(t)
	fifo := filepath.Join(dir, "started")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		_, _ = os.ReadFile(fifo) // until the container has written to it
		interrupt()
	}()
	_, err := d.output(t, ctx, dir, "sh", "-c", "echo >/started; exec sleep 1000")
	if ended := (containerError{}); !errors.As(err, &ended) || ended.code != 128+9 {
		t.Errorf("got error %v, want that of a killed container", err)
	}
}
