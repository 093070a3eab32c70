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

// TestExecJoinsPidNamespace starts a process in the pid namespace of a container.
func TestExecJoinsPidNamespace(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		b := program.New()
		stdio(b, 0, 1)
		shell(b, "echo $$; exec sleep 1000")
		first := p.mustStart(pause.Start{Task: 1, CloneFlags: unix.CLONE_NEWPID}, b, c.stdout, c.stderr)
		eventually(t, "the container's pid", func() bool { return text(readLog(t, c.log), "stdout") == "1\n" })

		join := func(s *pause.Start) { s.Join = first.PidFD }
		out, exit := p.exec(2, join, func(b *program.Builder) { shell(b, "echo $$; exit 5") })
		if pid, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || pid < 2 || pid > 20 || exit.Status.ExitStatus() != 5 {
			t.Errorf("exec is pid %q there, exit %+v", out, exit)
		}
		if ns, err := os.Readlink("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/ns/pid_for_children"); err == nil {
			if own, _ := os.Readlink("/proc/self/ns/pid"); ns != own {
				t.Errorf("pause's children would be born in %s", ns)
			}
		}
		_, err := p.start(pause.Start{Task: 2, Exec: true, Join: first.PidFD}, failing())
		wantError(t, err, pause.StageInstr, unix.EBADF)

		must(t, unix.PidfdSendSignal(int(first.PidFD.Fd()), unix.SIGKILL, nil, 0))
		if e := p.exit(1); e.Status.Signal() != unix.SIGKILL {
			t.Errorf("exit %+v", e)
		}
		_, err = p.start(pause.Start{Task: 3, Exec: true, Join: first.PidFD}, failing())
		wantError(t, err, pause.StageClone, unix.ESRCH)
	})
}

func failing() *program.Builder {
	b := program.New()
	b.Call("fails", unix.SYS_FCHDIR, 1000000)
	shell(b, "true")
	return b
}

// TestExecDiesWithContainer kills execs with the pid namespace that they joined.
func TestExecDiesWithContainer(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		b := program.New()
		stdio(b, 0, 1)
		shell(b, "exec sleep 1000")
		first := p.mustStart(pause.Start{Task: 1, CloneFlags: unix.CLONE_NEWPID}, b, c.stdout, c.stderr)
		e := program.New()
		shell(e, "exec sleep 1000")
		p.mustStart(pause.Start{Task: 2, Exec: true, Join: first.PidFD}, e)
		must(t, unix.PidfdSendSignal(int(first.PidFD.Fd()), unix.SIGKILL, nil, 0))
		if got := p.exit(2); got.Status.Signal() != unix.SIGKILL {
			t.Errorf("exec ended with %+v", got)
		}
		p.exit(1)
	})
}

// TestReaper makes PID 1 of a shared pid namespace, in which orphans do not stay zombies.
func TestReaper(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		reaper, err := p.conn.Start(deadline(t), pause.Start{Task: 1, Exec: true, Reaper: true})
		must(t, err)
		defer func() { _ = reaper.PidFD.Close() }()
		if files := openFiles(t, reaper.PID); files != 0 {
			t.Errorf("the reaper has %d descriptors open", files)
		}
		for _, dir := range []string{"root", "cwd"} { // which a container that may trace can enter
			if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s/", reaper.PID, dir)); err != nil || len(entries) != 0 {
				t.Errorf("%s of the reaper holds %v (%v)", dir, entries, err)
			}
		}
		join := func(s *pause.Start) { s.Join = reaper.PidFD }
		out, exit := p.exec(2, join, func(b *program.Builder) {
			shell(b, "(sh -c 'sleep 0.05; exit 3' &) ; (true &) ; echo $$")
		})
		if pid := strings.TrimSpace(out); pid == "1" || pid == "" || exit.Status != 0 {
			t.Errorf("first process of a shared namespace is pid %q, exit %+v", pid, exit)
		}
		eventually(t, "all orphans reaped", func() bool { return children(t, reaper.PID) == 0 })
		if p.told(1) {
			t.Error("the reaper exited")
		}
		b := program.New()
		shell(b, "exec sleep 1000")
		p.mustStart(pause.Start{Task: 3, Exec: true, Join: reaper.PidFD}, b)
		must(t, unix.PidfdSendSignal(int(reaper.PidFD.Fd()), unix.SIGKILL, nil, 0))
		for _, task := range []uint64{1, 3} {
			if e := p.exit(task); e.Status.Signal() != unix.SIGKILL {
				t.Errorf("task %d ended with %+v", task, e)
			}
		}
	})
}

func children(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(pid), "children"))
	must(t, err)
	return len(strings.Fields(string(data)))
}

// TestPauseDeathEndsPod kills pause and wants its containers dead, the reaper too.
func TestPauseDeathEndsPod(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		reaper, err := p.conn.Start(deadline(t), pause.Start{Task: 9, Exec: true, Reaper: true})
		must(t, err)
		defer func() { _ = reaper.PidFD.Close() }()
		c := p.add(1)
		first := p.run(c, "exec sleep 1000")
		p.ended = true
		for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGPIPE, unix.SIGCHLD, unix.SIGQUIT, unix.SIGALRM} {
			must(t, p.cmd.Process.Signal(signal))
		}
		_, err = p.conn.List(deadline(t)) // it did not mind
		must(t, err)
		must(t, p.cmd.Process.Kill())
		for _, f := range []*os.File{first.PidFD, reaper.PidFD} {
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
			eventually(t, "death of a process of the pod", func() bool {
				n, err := unix.Poll(fds, 0)
				return n == 1 && err == nil
			})
		}
	})
}

// TestManyExecs looks for descriptors that stay behind.
func TestManyExecs(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		b := program.New()
		stdio(b, 0, 1)
		shell(b, "exec sleep 1000")
		first := p.mustStart(pause.Start{Task: 1, CloneFlags: unix.CLONE_NEWPID}, b, c.stdout, c.stderr)
		e := program.New()
		execute(e, "/bin/true", program.Strings{"true"}, nil)
		f := seal(t, e)
		defer func() { _ = f.Close() }()
		before := openFiles(t, p.cmd.Process.Pid)
		for i := range rounds {
			task := uint64(10 + i)
			s, err := p.conn.Start(deadline(t), pause.Start{Task: task, Exec: true, Join: first.PidFD, Program: f})
			must(t, err)
			_ = s.PidFD.Close()
			if exit := p.exit(task); exit.Status != 0 {
				t.Fatalf("exec %d: %+v", i, exit)
			}
		}
		eventually(t, "all descriptors closed", func() bool { return openFiles(t, p.cmd.Process.Pid) == before })
		if n := children(t, p.cmd.Process.Pid); n != 1 {
			t.Errorf("pause has %d children, want the container", n)
		}
	})
}
