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

func openPty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no pty: %v", err)
	}
	must(t, unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0))
	s, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	master, slave = os.NewFile(uintptr(m), "master"), os.NewFile(s, "slave")
	t.Cleanup(func() { _ = master.Close(); _ = slave.Close() })
	return master, slave
}

// TestTerminal logs what a container writes to its terminal, resizes it, and goes on after a re-execution.
func TestTerminal(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		master, slave := openPty(t)
		p.addWith(1, func(k *pause.Container) {
			k.Stdout, k.Stderr, k.TTY = nil, nil, master
		})
		b := program.New()
		b.Call("session", unix.SYS_SETSID)
		b.Call("terminal", unix.SYS_IOCTL, program.FD(0), unix.TIOCSCTTY, 0)
		for n := range 3 {
			b.Call("stdio", unix.SYS_DUP3, program.FD(0), n, 0)
		}
		shell(b, "tty >/dev/null && echo ready; read line; echo \"got $line\"; stty size; seq 1 20000; exec sh -c 'exec >&- 2>&- <&-; sleep 0.1; exec >/dev/tty; echo again; exit 21'")
		p.mustStart(pause.Start{Task: 1}, b, slave)
		_ = slave.Close()
		log := p.dir + "/1.log"
		logged := func() string { return strings.ReplaceAll(text(readLog(t, log), "stdout"), "\r", "") }
		eventually(t, "the first line", func() bool { return logged() == "ready\n" })
		must(t, p.conn.Resize(deadline(t), 1, 33, 77))
		wantError(t, p.conn.Resize(deadline(t), 2, 33, 77), pause.StageRequest, unix.ENOENT)
		must(t, p.reexec(binary))
		_, err := master.WriteString("hello\n")
		must(t, err)
		if e := p.exit(1); e.Status.ExitStatus() != 21 || e.LogBehind {
			t.Errorf("exit %+v", e)
		}
		var want strings.Builder
		want.WriteString("ready\nhello\ngot hello\n33 77\n")
		for i := 1; i <= 20000; i++ {
			fmt.Fprintln(&want, i)
		}
		want.WriteString("again\n")
		if got := logged(); got != want.String() {
			i := firstDifference(got, want.String())
			t.Errorf("logged %d bytes, want %d; difference at %d: %.60q", len(got), want.Len(), i, got[i:])
		}
		must(t, p.conn.Remove(deadline(t), 1))
	})
}

// TestResizeWithoutTerminal is refused.
func TestResizeWithoutTerminal(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		p.add(1)
		wantError(t, p.conn.Resize(deadline(t), 1, 33, 77), pause.StageRequest, unix.ENOTTY)
	})
}
