package pause_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// TestStoppedPause ends every request with its ctx while pause reads nothing and the socket is full, also of those that
// wait behind another. Nothing of them takes effect on what comes after.
func TestStoppedPause(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		null, err := os.Open("/dev/null")
		must(t, err)
		defer func() { _ = null.Close() }()
		many := make([]*os.File, 700)
		for i := range many {
			many[i] = null
		}
		must(t, p.cmd.Process.Signal(unix.SIGSTOP))
		short, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		prog := program.New()
		shell(prog, "exit 0")
		sealed := seal(t, prog)
		defer func() { _ = sealed.Close() }()
		late := make(chan error, 100)
		var callers sync.WaitGroup
		for i := range 1000 { // far more than a socket buffer holds
			callers.Go(func() {
				var err error
				switch {
				case i%100 == 99:
					_, err = p.conn.Start(short, pause.Start{Task: uint64(1000 + i), Exec: true, Program: sealed, Files: many, Late: func(_ pause.Started, err error) { late <- err }})
				case i%2 == 0:
					err = p.conn.Keep(short, "kept", many)
				default:
					err = p.conn.Resize(short, 1, 2, 3)
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("request %d: %v", i, err)
				}
			})
		}
		callers.Wait()
		must(t, p.cmd.Process.Signal(unix.SIGCONT))
		must(t, p.conn.Keep(deadline(t), "kept", many[:3]))
		for range 10 { // those that were sent have run, the others were told too
			select {
			case <-late:
			case <-deadline(t).Done():
				t.Fatal("nobody was told the result of a start")
			}
		}
		l, err := p.conn.List(deadline(t))
		must(t, err)
		defer l.Close()
		if len(l.Kept) != 1 || len(l.Kept["kept"]) != 3 {
			t.Errorf("%d descriptors kept after requests that were given up, want 3", len(l.Kept["kept"]))
		}
	})
}

// TestGreetingThatIsTooLate has an answer there when the ctx ends: the greeting fails with that, and does not leave a
// connection that is about to be closed.
func TestGreetingThatIsTooLate(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	before := openFiles(t, os.Getpid())
	for range 100 { // which of the two is first is chance
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		must(t, err)
		welcome := message(typeWelcome, 0, uint32(1), uint32(128), uint32(4096), uint32(256), [32]byte{'x'})
		must(t, unix.Sendmsg(pair[1], welcome, unix.UnixRights(pair[1]), nil, 0))
		conn, err := pause.Begin(os.NewFile(uintptr(pair[0]), "control"))
		must(t, err)
		if err := conn.Greet(over); !errors.Is(err, context.Canceled) {
			t.Errorf("greeted: %v", err)
		}
		_ = conn.Close()
		must(t, unix.Close(pair[1]))
	}
	eventually(t, "all descriptors closed", func() bool { return openFiles(t, os.Getpid()) <= before })
}
