package pause_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// leaf is a cgroup of the test's own in one hierarchy.
func leaf(t *testing.T, hierarchy string) string {
	t.Helper()
	dir := filepath.Join(hierarchy, fmt.Sprintf("pause-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-")))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup in %s: %v", hierarchy, err)
	}
	t.Cleanup(func() { eventually(t, "removal of "+dir, func() bool { return unix.Rmdir(dir) == nil }) })
	return dir
}

func openLeaf(t *testing.T, dir, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), flags, 0)
	if err != nil {
		t.Skipf("kernel has no %s: %v", name, err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

const brood = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; (trap '' TERM; while :; do sleep 1000; done) & echo born; read x <&9; exit 3"

// TestLeafUnified empties a cgroup2 leaf by cgroup.kill, in which the process is born.
func TestLeafUnified(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		dir := leaf(t, unified(t))
		d := openLeaf(t, dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
		p := startPause(t, binary)
		runBrood(t, p, func(k *pause.Container) {
			k.Events = openLeaf(t, dir, "cgroup.events", os.O_RDONLY)
			k.Kill = openLeaf(t, dir, "cgroup.kill", os.O_WRONLY)
		}, func(s *pause.Start, b *program.Builder) { s.Cgroup = d })
		if procs := readWhole(t, filepath.Join(dir, "cgroup.procs")); procs != "" {
			t.Errorf("leaf still has %q", procs)
		}
	})
}

// TestLeafStaysPopulated gives up on a leaf that it cannot kill, and looks at it no more.
func TestLeafStaysPopulated(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		dir := leaf(t, unified(t))
		d := openLeaf(t, dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
		p := startPause(t, binary)
		c := p.addWith(1, func(k *pause.Container) { k.Events = openLeaf(t, dir, "cgroup.events", os.O_RDONLY) })
		b := program.New()
		stdio(b, 0, 1)
		shell(b, "sleep 1000 & exit 3")
		p.mustStart(pause.Start{Task: 1, Cgroup: d}, b, c.stdout, c.stderr)
		must(t, p.conn.Close()) // nobody hears of the exit yet
		eventually(t, "the record", func() bool {
			e, ok := pause.ParseExits([]byte(readWhole(t, p.dir+"/exits")))[1]
			return ok && e.Populated && e.Status.ExitStatus() == 3
		})
		left, err := strconv.Atoi(strings.TrimSpace(readWhole(t, filepath.Join(dir, "cgroup.procs"))))
		must(t, err)
		must(t, unix.Kill(left, unix.SIGKILL)) // which changes the events
		eventually(t, "an empty leaf", func() bool { return strings.Contains(readWhole(t, filepath.Join(dir, "cgroup.events")), "populated 0") })
		before := ticks(t, p.cmd.Process.Pid)
		awaitIdle(t)
		if n := ticks(t, p.cmd.Process.Pid) - before; n > 20 {
			t.Errorf("pause ran for %d ticks of 10 ms when all was over", n)
		}
		p.reconnect()
		p.exit(1)
	})
}

// TestLeafFreezer empties a v1 leaf by freezer and cgroup.procs; the process places itself.
func TestLeafFreezer(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		dir := leaf(t, "/sys/fs/cgroup/freezer")
		tasks := openLeaf(t, dir, "tasks", os.O_WRONLY)
		p := startPause(t, binary)
		runBrood(t, p, func(k *pause.Container) {
			k.Freezer = openLeaf(t, dir, "freezer.state", os.O_RDWR)
			k.Procs = openLeaf(t, dir, "cgroup.procs", os.O_RDONLY)
		}, func(s *pause.Start, b *program.Builder) {
			s.Files = []*os.File{tasks}
			b.Call("place", unix.SYS_WRITE, program.FD(3), program.String("0"), 1)
		})
		if procs := readWhole(t, filepath.Join(dir, "cgroup.procs")); procs != "" {
			t.Errorf("leaf still has %q", procs)
		}
		if state := readWhole(t, filepath.Join(dir, "freezer.state")); state != "THAWED\n" {
			t.Errorf("leaf is left %q", state)
		}
	})
}

func unified(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
				return dir
			}
		}
	}
	t.Skip("no cgroup2 hierarchy")
	return ""
}

// runBrood starts a container with descendants and ends its first process.
func runBrood(t *testing.T, p *pod, add func(*pause.Container), change func(*pause.Start, *program.Builder)) {
	t.Helper()
	c := p.addWith(1, add)
	in, release := pipe(t)
	b := program.New()
	s := pause.Start{Task: 1}
	change(&s, b)
	stdio(b, 0, 1)
	b.Call("release", unix.SYS_DUP3, program.FD(2), 9, 0)
	execute(b, "/bin/sh", program.Strings{"sh", "-c", brood}, program.Strings{"PATH=/usr/bin:/bin"})
	p.mustStart(s, b, append([]*os.File{c.stdout, c.stderr, in}, s.Files...)...)
	eventually(t, "descendants", func() bool { return text(readLog(t, c.log), "stdout") == "born\n" })
	_, err := release.WriteString("x\n")
	must(t, err)
	if e := p.exit(1); e.Status.ExitStatus() != 3 || e.Populated {
		t.Errorf("exit %+v", e)
	}
}

// TestOOMKills reads the leaf's counter.
func TestOOMKills(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		dir := leaf(t, "/sys/fs/cgroup/memory")
		must(t, os.WriteFile(filepath.Join(dir, "memory.limit_in_bytes"), []byte(strconv.Itoa(8<<20)), 0o600))
		tasks := openLeaf(t, dir, "tasks", os.O_WRONLY)
		p := startPause(t, binary)
		c := p.addWith(1, func(k *pause.Container) { k.OOM = openLeaf(t, dir, "memory.oom_control", os.O_RDONLY) })
		b := program.New()
		b.Call("place", unix.SYS_WRITE, program.FD(2), program.String("0"), 1)
		stdio(b, 0, 1)
		shell(b, "x=x; while :; do x=$x$x; done")
		p.mustStart(pause.Start{Task: 1}, b, c.stdout, c.stderr, tasks)
		if e := p.exit(1); e.OOMKills != 1 || e.Status.Signal() != unix.SIGKILL {
			t.Errorf("exit %+v", e)
		}
	})
}

// ticks is the time that a process has run.
func ticks(t *testing.T, pid int) int {
	t.Helper()
	stat := readWhole(t, fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	user, err := strconv.Atoi(fields[11])
	must(t, err)
	system, err := strconv.Atoi(fields[12])
	must(t, err)
	return user + system
}
