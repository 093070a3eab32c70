package pause_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// exec starts an additional process whose stdout goes into a pipe, and returns what it wrote.
func (p *pod) exec(task uint64, change func(*pause.Start), build func(*program.Builder)) (string, pause.Exit) {
	p.t.Helper()
	r, w := pipe(p.t)
	b := program.New()
	b.Call("stdout", unix.SYS_DUP3, program.FD(0), 1, 0)
	build(b)
	s := pause.Start{Task: task, Exec: true}
	change(&s)
	p.mustStart(s, b, w)
	_ = w.Close()
	out := readAll(p.t, r)
	return out, p.exit(task)
}

func plain(*pause.Start) {}

func readAll(t testing.TB, r *os.File) string {
	t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	var b strings.Builder
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(int(r.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		if n == 0 {
			return b.String()
		}
		b.Write(buf[:n])
	}
}

// TestLongProgram runs as many instructions as a real container's, with every kind of relocation.
func TestLongProgram(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		out, exit := p.exec(1, plain, func(b *program.Builder) {
			pid := b.Call("pid", unix.SYS_GETPID).Keep()
			b.Call("signal to itself", unix.SYS_KILL, pid, 0)
			dir := b.Call("open /", unix.SYS_OPENAT, unix.AT_FDCWD, program.String("/"), unix.O_PATH, 0).Keep()
			for range 150 {
				b.Call("fchdir", unix.SYS_FCHDIR, dir)
			}
			// a poll of pause: the pidfd stands in a word of the blob
			poll := make([]byte, 8)
			nativeEndian.PutUint16(poll[4:], unix.POLLIN)
			b.Call("pause lives", unix.SYS_PPOLL, program.Struct{Data: poll, Words: []program.Word{{Offset: 0, Value: program.Pause{}}}}, 1, program.Bytes(make([]byte, 16)), nil, 0).Zero()
			shell(b, "echo $$; pwd; ulimit -n; umask; ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status | tr -d '\\n'")
		})
		lines := strings.Split(out, "\n")
		if len(lines) < 6 || lines[1] != "/" || exit.Status != 0 {
			t.Fatalf("got %q, status %#x", out, exit.Status)
		}
		var limit unix.Rlimit
		must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		if lines[3] != "0022" || lines[4] != "4" {
			t.Errorf("umask %s, %s descriptors, want 0022 and 4 (one is ls's own)", lines[3], lines[4])
		}
		if want := "SigBlk:\t0000000000000000SigIgn:\t0000000000000000SigCgt:\t0000000000000000"; !strings.HasPrefix(lines[5], want[:len("SigBlk:\t0000000000000000")]) || !strings.Contains(lines[5], "SigIgn:\t0000000000000000") {
			t.Errorf("signals %q", lines[5])
		}
	})
}

// TestRepeatedInstruction: a call that is to be repeated outlives EAGAIN.
func TestRepeatedInstruction(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		out, exit := p.exec(1, plain, func(b *program.Builder) {
			timer := b.Call("timer", unix.SYS_TIMERFD_CREATE, unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK).Keep()
			in20ms := make([]byte, 32) // struct itimerspec
			nativeEndian.PutUint64(in20ms[24:], 20e6)
			b.Call("arm", unix.SYS_TIMERFD_SETTIME, timer, 0, program.Bytes(in20ms), nil)
			b.Call("wait", unix.SYS_READ, timer, program.Bytes(make([]byte, 8)), 8).Again()
			shell(b, "echo over")
		})
		if out != "over\n" || exit.Status != 0 {
			t.Errorf("got %q, status %#x", out, exit.Status)
		}
	})
}

// TestFailedInstruction wants the index and errno of the instruction that failed, and nothing left behind.
func TestFailedInstruction(t *testing.T) {
	tests := []struct {
		name  string
		build func(*program.Builder)
		stage pause.Stage
		errno unix.Errno
		index int
	}{
		{name: "third", stage: pause.StageInstr, errno: unix.EBADF, index: 2, build: func(b *program.Builder) {
			b.Call("a", unix.SYS_GETPID)
			b.Call("b", unix.SYS_GETPID)
			b.Call("c", unix.SYS_FCHDIR, 1000000)
			shell(b, "true")
		}},
		{name: "tolerated", stage: pause.StageInstr, errno: unix.EPIPE, index: 2, build: func(b *program.Builder) {
			b.Call("a", unix.SYS_FCHDIR, 1000000).Tolerate(unix.ENOENT, unix.EBADF)
			b.Call("b", unix.SYS_FCHDIR, 1000000).TolerateAll()
			b.Call("zero is end of file", unix.SYS_KILL, 0, 0).Nonzero()
			shell(b, "true")
		}},
		{name: "not zero", stage: pause.StageInstr, errno: unix.ESRCH, index: 0, build: func(b *program.Builder) {
			b.Call("a", unix.SYS_GETPID).Zero()
			shell(b, "true")
		}},
		{name: "skips", stage: pause.StageInstr, errno: unix.EBADF, index: 4, build: func(b *program.Builder) {
			l, m := b.NewLabel(), b.NewLabel()
			b.Call("a", unix.SYS_GETPID).ThenTo(l)
			b.Call("skipped", unix.SYS_FCHDIR, 1000000)
			b.Place(l)
			b.Call("b", unix.SYS_FCHDIR, 1000000).TolerateAll().ElseTo(m)
			b.Call("skipped", unix.SYS_FCHDIR, 1000001)
			b.Place(m)
			b.Call("c", unix.SYS_FCHDIR, 1000000)
			shell(b, "true")
		}},
		{name: "no candidate", stage: pause.StageInstr, errno: unix.ENOENT, index: 1, build: func(b *program.Builder) {
			b.ExecAll([]string{"/nonexistent/x", "/etc/passwd/x"}, program.Strings{"x"}, nil)
		}},
		{name: "candidate may not be executed", stage: pause.StageInstr, errno: unix.EACCES, index: 1, build: func(b *program.Builder) {
			b.ExecAll([]string{"/nonexistent/x", "/etc/passwd", "/etc/passwd/x"}, program.Strings{"x"}, nil)
		}},
		{name: "no executable", stage: pause.StageInstr, errno: unix.EINVAL, index: 0, build: func(b *program.Builder) {
			b.Call("bad exec", unix.SYS_EXECVEAT, -1, program.String("x"), 0, 0, 1<<20)
			shell(b, "true")
		}},
		{name: "killed", stage: pause.StageKilled, index: 1, build: func(b *program.Builder) {
			pid := b.Call("pid", unix.SYS_GETPID).Keep()
			b.Call("suicide", unix.SYS_KILL, pid, int(unix.SIGKILL))
			shell(b, "true")
		}},
		{name: "filter forbids to exit", stage: pause.StageInstr, errno: unix.EPERM, index: 2, build: func(b *program.Builder) {
			filter := []byte{0x06, 0, 0, 0, byte(unix.EPERM), 0, 0x05, 0} // return SECCOMP_RET_ERRNO|EPERM
			prog := make([]byte, 16)
			nativeEndian.PutUint16(prog, 1)
			b.Call("no new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
			b.Call("filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, program.Struct{Data: prog, Words: []program.Word{{Offset: 8, Value: program.Bytes(filter)}}})
			b.Call("denied", unix.SYS_FCHDIR, 0)
			shell(b, "true")
		}},
		{name: "exits", stage: pause.StageKilled, index: 0, build: func(b *program.Builder) {
			b.Call("exit", unix.SYS_EXIT_GROUP, 3)
			shell(b, "true")
		}},
	}
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		before := openFiles(t, p.cmd.Process.Pid)
		for i, tt := range tests {
			if tt.name == "filter forbids to exit" && strings.HasSuffix(binary, "asan") {
				continue // the sanitizer's own runtime makes system calls on the way out, without end
			}
			b := program.New()
			tt.build(b)
			_, err := p.start(pause.Start{Task: uint64(100 + i), Exec: true}, b)
			if e := wantError(t, err, tt.stage, tt.errno); e.Index != tt.index {
				t.Errorf("%s: failed at %d, want %d", tt.name, e.Index, tt.index)
			}
			if tt.name == "exits" && err.(*pause.Error).Status.ExitStatus() != 3 {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		c := p.add(1)
		b := program.New()
		execute(b, "/nonexistent", program.Strings{"x"}, nil)
		_, err := p.start(pause.Start{Task: 1}, b)
		wantError(t, err, pause.StageInstr, unix.ENOENT)
		p.run(c, "exit 7") // it may be started again
		if e := p.exit(1); e.Status.ExitStatus() != 7 {
			t.Errorf("second start: %+v", e)
		}
		must(t, p.conn.Remove(deadline(t), 1))
		eventually(t, "all descriptors closed", func() bool { return openFiles(t, p.cmd.Process.Pid) <= before+writerFiles })
	})
}

// writerFiles is what the writer opens with the first container: epoll, two eventfds, a pipe.
const writerFiles = 5

func openFiles(t testing.TB, pid int) int {
	t.Helper()
	return len(openPaths(t, pid))
}

// openPaths says what the descriptors of a process are, but for files of /proc, in which the sanitizers look now and then.
func openPaths(t testing.TB, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	must(t, err)
	var paths []string
	for _, e := range entries {
		path, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && !strings.HasPrefix(path, "/proc/") { // it may be closed by now
			paths = append(paths, path)
		}
	}
	return paths
}

var nativeEndian = binary.NativeEndian

// TestMalformedProgram breaks a good Program at one place each.
func TestMalformedProgram(t *testing.T) {
	b := program.New()
	b.Call("a", unix.SYS_GETPID).Keep()
	b.Call("b", unix.SYS_FCHDIR, program.FD(0)).TolerateAll()
	shell(b, "true")
	built, err := b.Build()
	must(t, err)
	good := built.Encode()
	ninstr := int(nativeEndian.Uint32(good[8:]))
	instr := func(i int) int { return 32 + 64*i }
	reloc := func(i int) int { return 32 + 64*ninstr + 16*i }
	tests := []struct {
		name  string
		spoil func(b []byte) []byte
		errno unix.Errno
	}{
		{name: "magic", errno: unix.ENOEXEC, spoil: put32(0, 1)},
		{name: "size", errno: unix.ENOEXEC, spoil: put32(4, 100)},
		{name: "counts", errno: unix.ENOEXEC, spoil: put32(8, 1<<31)},
		{name: "truncated", errno: unix.ENOEXEC, spoil: func(b []byte) []byte { return b[:len(b)-1] }},
		{name: "short", errno: unix.EINVAL, spoil: func(b []byte) []byte { return b[:31] }},
		{name: "empty", errno: unix.EINVAL, spoil: func(b []byte) []byte { return nil }},
		{name: "slots", errno: unix.E2BIG, spoil: put32(20, 2049)},
		{name: "descriptors", errno: unix.EINVAL, spoil: put32(24, 2)},
		{name: "header flags", errno: unix.EINVAL, spoil: put32(28, 8)},
		{name: "instruction flags", errno: unix.EINVAL, spoil: put16(instr(1)+4, 64)},
		{name: "result slot", errno: unix.EINVAL, spoil: put16(instr(0)+6, 2)},
		{name: "jump", errno: unix.EINVAL, spoil: put16(instr(0)+12, uint16(ninstr))},
		{name: "relocated instruction", errno: unix.EINVAL, spoil: put32(reloc(0), 1<<20)},
		{name: "unsorted", errno: unix.EINVAL, spoil: put32(reloc(1), 0)},
		{name: "relocation kind", errno: unix.EINVAL, spoil: put16(reloc(0)+4, 4)},
		{name: "relocated place", errno: unix.EINVAL, spoil: put16(reloc(0)+6, 8)},
		{name: "word outside", errno: unix.EINVAL, spoil: func(b []byte) []byte {
			return put32(reloc(0)+8, 1<<24)(put16(reloc(0)+6, 7)(b))
		}},
		{name: "word unaligned", errno: unix.EINVAL, spoil: func(b []byte) []byte {
			return put32(reloc(0)+8, 2)(put16(reloc(0)+6, 7)(b))
		}},
		{name: "descriptor", errno: unix.EINVAL, spoil: put32(reloc(0)+12, 1)},
	}
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		for i, tt := range tests {
			spoiled := tt.spoil(append([]byte(nil), good...))
			f, err := pause.Seal(spoiled)
			must(t, err)
			null, err := os.Open("/dev/null")
			must(t, err)
			_, err = p.conn.Start(deadline(t), pause.Start{Task: uint64(i + 1), Exec: true, Program: f, Files: []*os.File{null}})
			_ = f.Close()
			_ = null.Close()
			if e, ok := err.(*pause.Error); !ok || e.Stage != pause.StageProgram || e.Errno != tt.errno {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
			}
		}
	})
}

// TestUnsealedProgram refuses a Program that could change under the child's hands.
func TestUnsealedProgram(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		b := program.New()
		shell(b, "true")
		built, err := b.Build()
		must(t, err)
		f, err := os.CreateTemp(t.TempDir(), "program")
		must(t, err)
		defer func() { _ = f.Close() }()
		_, err = f.Write(built.Encode())
		must(t, err)
		wantError(t, p.conn.Boot(deadline(t), f, nil), pause.StageProgram, unix.EPERM)
		_, err = p.conn.Start(deadline(t), pause.Start{Task: 1, Exec: true, Program: f})
		wantError(t, err, pause.StageProgram, unix.EPERM)
	})
}

func put32(at int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { nativeEndian.PutUint32(b[at:], v); return b }
}

func put16(at int, v uint16) func([]byte) []byte {
	return func(b []byte) []byte { nativeEndian.PutUint16(b[at:], v); return b }
}

// TestManyDescriptors needs several packets.
func TestManyDescriptors(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		const n = 700
		files := make([]*os.File, n)
		for i := range files {
			f, err := os.Open("/dev/null")
			must(t, err)
			files[i] = f
			t.Cleanup(func() { _ = f.Close() })
		}
		r, w := pipe(t)
		files[n-1] = w
		b := program.New()
		for i := range n - 1 {
			b.Call("check", unix.SYS_FCNTL, program.FD(i), unix.F_GETFD, 0)
		}
		b.Call("stdout", unix.SYS_DUP3, program.FD(n-1), 1, 0)
		shell(b, "echo here")
		before := openFiles(t, p.cmd.Process.Pid)
		p.mustStart(pause.Start{Task: 1, Exec: true}, b, files...)
		_ = w.Close()
		if out := readAll(t, r); out != "here\n" {
			t.Errorf("got %q", out)
		}
		p.exit(1)
		closed := func() bool { return openFiles(t, p.cmd.Process.Pid) == before }
		eventually(t, "all descriptors closed", closed)
		_, err := p.start(pause.Start{Task: 2, Exec: true}, b, append(files[:n-1], files[:n-1]...)...)
		wantError(t, err, pause.StageRequest, unix.E2BIG)
		eventually(t, "all descriptors of a refused request closed", closed)
	})
}

// TestHangingStart keeps one start waiting while others go on.
func TestHangingStart(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		r, w := pipe(t)
		slow := program.New()
		slow.Call("wait", unix.SYS_READ, program.FD(0), program.Bytes(make([]byte, 8)), 1).Nonzero()
		shell(slow, "exit 9")
		f := seal(t, slow)
		type result struct {
			started pause.Started
			err     error
		}
		done := make(chan result, 1)
		go func() {
			s, err := p.conn.Start(deadline(t), pause.Start{Task: 1, Exec: true, Program: f, Files: []*os.File{r}})
			done <- result{s, err}
		}()
		for i := range uint64(20) {
			_, exit := p.exec(10+i, plain, func(b *program.Builder) { shell(b, "exit 1") })
			if exit.Status.ExitStatus() != 1 {
				t.Fatalf("exit %+v", exit)
			}
		}
		select {
		case got := <-done:
			t.Fatalf("the start did not wait: %+v", got)
		default:
		}
		_, err := w.Write([]byte{1})
		must(t, err)
		got := <-done
		must(t, got.err)
		_ = got.started.PidFD.Close()
		if e := p.exit(1); e.Status.ExitStatus() != 9 {
			t.Errorf("exit %+v", e)
		}
	})
}

// TestSynchronisingReadEnds aborts a start whose other side is gone.
func TestSynchronisingReadEnds(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		r, w := pipe(t)
		_ = w.Close()
		b := program.New()
		b.Call("wait", unix.SYS_READ, program.FD(0), program.Bytes(make([]byte, 8)), 1).Nonzero()
		shell(b, "true")
		_, err := p.start(pause.Start{Task: 1, Exec: true}, b, r)
		wantError(t, err, pause.StageInstr, unix.EPIPE)
	})
}
