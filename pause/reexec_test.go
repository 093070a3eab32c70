package pause_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

func (p *pod) reexec(binary string) error {
	p.t.Helper()
	f, err := os.Open(binary)
	must(p.t, err)
	defer func() { _ = f.Close() }()
	return p.conn.Reexec(deadline(p.t), f)
}

// TestReexec replaces pause again and again while containers write, exit and are started.
func TestReexec(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		const lines, changes = 200000, 8
		chatty := p.add(1)
		p.run(chatty, fmt.Sprintf("seq 1 %d; echo end >&2; printf 'no newline'; exit 33", lines))
		waiting := p.add(2)
		in, release := pipe(t)
		b := program.New()
		stdio(b, 0, 1)
		b.Call("stdin", unix.SYS_DUP3, program.FD(2), 0, 0)
		shell(b, "printf 'begin '; read x; echo end; exit 34")
		p.mustStart(pause.Start{Task: 2}, b, waiting.stdout, waiting.stderr, in)
		_ = waiting.stdout.Close()
		_ = waiting.stderr.Close()
		never := p.add(3)
		kept, err := os.Open("/dev/null")
		must(t, err)
		defer func() { _ = kept.Close() }()
		must(t, p.conn.Keep(deadline(t), "a", []*os.File{kept, kept}))
		must(t, p.conn.Keep(deadline(t), "empty", nil))

		pid := p.cmd.Process.Pid
		files := openFiles(t, pid)
		for i := range uint64(changes) {
			must(t, p.reexec(binary))
			_, exit := p.exec(100+i, plain, func(b *program.Builder) { shell(b, "exit 35") })
			if exit.Status.ExitStatus() != 35 {
				t.Fatalf("exec after change %d: %+v", i, exit)
			}
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != binary {
			t.Errorf("pause runs %s (%v)", exe, err)
		}
		if n := openFiles(t, pid); n > files { // fewer, when a container has ended
			t.Errorf("%d descriptors before the changes, %d after", files, n)
		}
		_, err = release.WriteString("go\n")
		must(t, err)
		for task, code := range map[uint64]int{1: 33, 2: 34} {
			if e := p.exit(task); e.Status.ExitStatus() != code || e.Dropped != 0 {
				t.Errorf("task %d: %+v", task, e)
			}
		}
		if got := text(readLog(t, waiting.log), "stdout"); got != "begin end\n" {
			t.Errorf("waiting container logged %q", got)
		}
		checkSequence(t, text(readLog(t, chatty.log), "stdout"), lines, "no newline")
		p.run(never, "exit 36")
		if e := p.exit(3); e.Status.ExitStatus() != 36 {
			t.Errorf("started after the changes: %+v", e)
		}
		l, err := p.conn.List(deadline(t))
		must(t, err)
		defer l.Close()
		if len(l.Tasks) != 3 || len(l.Kept) != 2 || len(l.Kept["a"]) != 2 {
			t.Errorf("listing %+v", l)
		}
	})
}

// checkSequence wants the output of seq, whole and in order.
func checkSequence(t *testing.T, got string, lines int, tail string) {
	t.Helper()
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&want, i)
	}
	want.WriteString(tail)
	if got != want.String() {
		t.Errorf("log has %d bytes, want %d; first difference at %d", len(got), want.Len(), firstDifference(got, want.String()))
	}
}

func firstDifference(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestReexecRefused goes on as before when the binary is not a pause.
func TestReexecRefused(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		p.run(c, "sleep 0.2; echo alive; exit 3")
		for _, other := range []string{"/bin/true", "/bin/sh", "/etc/passwd", "/dev/null"} {
			wantError(t, p.reexec(other), pause.StageRequest, unix.ENOEXEC)
		}
		if e := p.exit(1); e.Status.ExitStatus() != 3 || text(readLog(t, c.log), "stdout") != "alive\n" {
			t.Errorf("exit %+v", e)
		}
	})
}

// TestReexecWaits does not lose a start that is under way.
func TestReexecWaits(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		r, w := pipe(t)
		b := program.New()
		b.Call("wait", unix.SYS_READ, program.FD(0), program.Bytes(make([]byte, 8)), 1).Nonzero()
		shell(b, "exit 9")
		f := seal(t, b)
		started := make(chan error, 1)
		go func() {
			s, err := p.conn.Start(deadline(t), pause.Start{Task: 1, Exec: true, Program: f, Files: []*os.File{r}})
			if err == nil {
				_ = s.PidFD.Close()
			}
			started <- err
		}()
		eventually(t, "the child", func() bool { return children(t, p.cmd.Process.Pid) == 1 })
		changed := make(chan error, 1)
		go func() { changed <- p.reexec(binary) }()
		_, err := w.Write([]byte{1})
		must(t, err)
		must(t, <-started)
		must(t, <-changed)
		if e := p.exit(1); e.Status.ExitStatus() != 9 {
			t.Errorf("exit %+v", e)
		}
	})
}
