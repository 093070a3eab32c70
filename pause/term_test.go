package pause_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// term sends pause a SIGTERM and waits until it has seen that.
func (p *pod) term() {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(unix.SIGTERM))
	p.lives()
}

// lives fails unless pause answers. A signal that came before the request is seen before or with it.
func (p *pod) lives() {
	p.t.Helper()
	for range 2 {
		l, err := p.conn.List(deadline(p.t))
		if err != nil {
			p.t.Fatalf("pause does not answer: %v", err)
		}
		l.Close()
	}
}

// ends waits for the end of pause, which must be one in order.
func (p *pod) ends() {
	p.t.Helper()
	p.ended = true
	select {
	case <-p.exited:
	case <-deadline(p.t).Done():
		p.t.Fatal("pause did not end")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("pause ended with %v\n%s", p.cmd.ProcessState, p.stderr)
	}
}

// untilTold starts a container that ends with the given exit code when the file is closed.
func (p *pod) untilTold(task uint64) (release *os.File) {
	p.t.Helper()
	c := p.add(task)
	in, release := pipe(p.t)
	b := program.New()
	stdio(b, 0, 1)
	b.Call("stdin", unix.SYS_DUP3, program.FD(2), 0, 0)
	shell(b, "trap '' TERM; echo ready; read x; exit 7")
	p.mustStart(pause.Start{Task: task}, b, c.stdout, c.stderr, in)
	_ = c.stdout.Close()
	_ = c.stderr.Close()
	_ = in.Close()
	eventually(p.t, "the container runs", func() bool { return text(readLog(p.t, c.log), "stdout") == "ready\n" })
	return release
}

// TestTerm ends pause by SIGTERM once no container lives, and not before.
func TestTerm(t *testing.T) {
	reaper := func(p *pod) {
		s, err := p.conn.Start(deadline(p.t), pause.Start{Task: 90, Exec: true, Reaper: true})
		must(p.t, err)
		p.t.Cleanup(func() {
			fds := []unix.PollFd{{Fd: int32(s.PidFD.Fd()), Events: unix.POLLIN}}
			eventually(p.t, "death of the reaper", func() bool { n, err := unix.Poll(fds, 0); return n == 1 && err == nil })
			_ = s.PidFD.Close()
		})
	}
	end := func(p *pod, task uint64, release *os.File) {
		must(p.t, release.Close())
		if e := p.exit(task); e.Status.ExitStatus() != 7 {
			p.t.Errorf("exit %+v", e)
		}
	}
	for _, row := range []struct {
		name string
		life func(p *pod, binary string)
		ends bool
	}{
		{"empty pod", func(p *pod, _ string) { must(p.t, p.cmd.Process.Signal(unix.SIGTERM)) }, true},
		{"container that was not started", func(p *pod, _ string) {
			p.add(1)
			must(p.t, p.cmd.Process.Signal(unix.SIGTERM))
		}, true},
		{"container that has ended", func(p *pod, _ string) {
			end(p, 1, p.untilTold(1))
			must(p.t, p.cmd.Process.Signal(unix.SIGTERM))
		}, true},
		{"only a reaper and an exec", func(p *pod, _ string) {
			reaper(p)
			b := program.New()
			shell(b, "exec sleep 1000")
			p.mustStart(pause.Start{Task: 1, Exec: true}, b)
			must(p.t, p.cmd.Process.Signal(unix.SIGTERM))
		}, true},
		{"container that lives", func(p *pod, _ string) {
			p.untilTold(1)
			p.term()
		}, false},
		{"container that ends later", func(p *pod, _ string) {
			reaper(p)
			release := p.untilTold(1)
			p.term()
			end(p, 1, release)
		}, true},
		{"two containers, of which one ends", func(p *pod, _ string) {
			p.untilTold(1)
			release := p.untilTold(2)
			p.term()
			end(p, 2, release)
		}, false},
		{"container that ends before the signal, another one is started after it", func(p *pod, _ string) {
			first := p.untilTold(1)
			p.term()
			second := p.untilTold(2)
			end(p, 1, first)
			end(p, 2, second)
		}, false},
		{"container that ends later, execs meanwhile", func(p *pod, _ string) {
			release := p.untilTold(1)
			p.term()
			if _, e := p.exec(50, plain, func(b *program.Builder) { shell(b, "exit 3") }); e.Status.ExitStatus() != 3 {
				p.t.Errorf("exec: %+v", e)
			}
			end(p, 1, release)
		}, true},
		{"container that ends later, another binary meanwhile", func(p *pod, binary string) {
			release := p.untilTold(1)
			p.term()
			must(p.t, p.reexec(binary))
			end(p, 1, release)
		}, true},
		{"nobody is connected", func(p *pod, _ string) {
			release := p.untilTold(1)
			p.term()
			must(p.t, p.conn.Close())
			must(p.t, release.Close())
		}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			eachBinary(t, func(t *testing.T, binary string) {
				p := startPause(t, binary)
				p.ended = row.ends
				row.life(p, binary)
				if row.ends {
					p.ends()
				} else {
					p.lives()
				}
				if row.name == "nobody is connected" {
					if e := pause.ParseExits([]byte(readWhole(t, p.dir+"/exits")))[1]; e.Status.ExitStatus() != 7 {
						t.Errorf("record %+v", e)
					}
				}
			})
		})
	}
}

// TestTermIsForgotten tells an old SIGTERM from a new one.
func TestTermIsForgotten(t *testing.T) {
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	for _, row := range []struct {
		name    string
		seconds int64 // ago
		ends    bool
	}{
		{"now", 0, true},
		{"a minute ago", 60, true},
		{"100 s ago", 100, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			eachBinary(t, func(t *testing.T, binary string) {
				since := uint64(now.Nano() - row.seconds*1e9)
				pod := []any{int32(3), uint32(0), uint32(0), uint32(0), uint32(0), uint32(1), uint64(1000), since}
				p, ours := spawn(t, binary, stateFile(t, stateHead, stateRecord(1, pod...), stateRecord(0)))
				conn, err := newConn(deadline(t), ours)
				if row.ends {
					if err == nil {
						p.follow(conn)
					}
					p.ends()
					return
				}
				must(t, err)
				p.follow(conn)
				p.lives()
			})
		})
	}
}
