package pause_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// attached is a client of a test.
type attached struct {
	p              *pod
	client         uint64
	stdout, stderr *os.File // reading ends
}

// backlog is what the pipe of a client holds who is to keep up, whatever the scheduler does: more than all the output.
const backlog = 1 << 20

func (p *pod) attach(task, client uint64, capacity int) attached {
	p.t.Helper()
	a := attached{p: p, client: client}
	var outW, errW *os.File
	a.stdout, outW = pipe(p.t)
	a.stderr, errW = pipe(p.t)
	_, err := unix.FcntlInt(outW.Fd(), unix.F_SETPIPE_SZ, capacity)
	must(p.t, err)
	_, err = p.conn.Attach(deadline(p.t), pause.Attach{Task: task, Client: client, Stdout: outW, Stderr: errW})
	must(p.t, err)
	_ = outW.Close()
	_ = errW.Close()
	return a
}

// reads wants everything until both pipes end, and the client to have been cut or not.
func (a attached) reads(stdout, stderr string, cut bool) {
	a.p.t.Helper()
	out, err := io.ReadAll(a.stdout)
	must(a.p.t, err)
	errs, err := io.ReadAll(a.stderr)
	must(a.p.t, err)
	if cut {
		stdout = stdout[:min(len(out), len(stdout))]
	}
	if string(out) != stdout || string(errs) != stderr {
		a.p.t.Errorf("client %d got %d bytes of stdout and %q of stderr, difference at %d", a.client, len(out), errs, firstDifference(string(out), stdout))
	}
	lost, err := a.p.conn.Detach(deadline(a.p.t), a.client)
	must(a.p.t, err)
	if (lost > 0) != cut {
		a.p.t.Errorf("client %d lost %d bytes", a.client, lost)
	}
}

// Several clients get all that is written after they came, in order, until the container ends; the log has it too.
func TestAttach(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		for _, row := range []struct {
			name, early string
			log         bool
		}{{"with a log", "echo early;", true}, {"without", "", false}} {
			t.Run(row.name, func(t *testing.T) {
				p := startPause(t, binary)
				c := p.addWith(1, func(k *pause.Container) {
					if !row.log {
						_ = k.Log.Close()
						k.Log = nil
					}
				})
				in, release := pipe(t)
				b := program.New()
				stdio(b, 0, 1)
				b.Call("stdin", unix.SYS_DUP3, program.FD(2), 0, 0)
				shell(b, row.early+"read x; seq 1 100000; echo bad >&2; printf end")
				p.mustStart(pause.Start{Task: 1}, b, c.stdout, c.stderr, in)
				for _, f := range []*os.File{c.stdout, c.stderr, in} {
					_ = f.Close()
				}
				if row.log {
					eventually(t, "the first line", func() bool { return len(readLog(t, c.log)) == 1 })
				}
				one, two := p.attach(1, 7, backlog), p.attach(1, 8, backlog)
				_, err := release.WriteString("\n")
				must(t, err)
				var want strings.Builder
				for i := range 100000 {
					fmt.Fprintln(&want, i+1)
				}
				want.WriteString("end")
				done := make(chan struct{})
				go func() {
					defer close(done)
					two.reads(want.String(), "bad\n", false)
				}()
				one.reads(want.String(), "bad\n", false)
				<-done
				p.exit(1)
				if row.log && text(readLog(t, c.log), "stdout") != "early\n"+want.String() {
					t.Error("the log is another")
				}
				_, err = p.conn.Attach(deadline(t), pause.Attach{Task: 1, Client: 9})
				wantError(t, err, pause.StageRequest, unix.ESRCH)
			})
		}
	})
}

// A client that does not read is cut; the log and the other client have everything.
func TestAttachSlowClient(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		slow, fast := p.attach(1, 1, 1<<16), p.attach(1, 2, backlog)
		p.run(c, "seq 1 100000")
		var want strings.Builder
		for i := range 100000 {
			fmt.Fprintln(&want, i+1)
		}
		fast.reads(want.String(), "", false)
		p.exit(1)
		slow.reads(want.String(), "", true)
		if text(readLog(t, c.log), "stdout") != want.String() {
			t.Error("the log is not whole")
		}
	})
}

// Clients end by themselves, with their connection and with the image, and are not missed.
func TestAttachEnds(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		p.run(c, "while echo x; do sleep 0.01; done")
		began := openFiles(t, p.cmd.Process.Pid)
		gone := p.attach(1, 1, backlog)
		_ = gone.stdout.Close()
		_ = gone.stderr.Close()
		detached := p.attach(1, 2, backlog)
		_, err := p.conn.Detach(deadline(t), 2)
		must(t, err)
		must(t, ended(detached))
		_, err = p.conn.Detach(deadline(t), 2)
		wantError(t, err, pause.StageRequest, unix.ENOENT)
		bereft := p.attach(1, 3, backlog)
		p.reconnect()
		must(t, ended(bereft))
		_, err = p.conn.Detach(deadline(t), 3)
		wantError(t, err, pause.StageRequest, unix.ENOENT)
		left := p.attach(1, 4, backlog)
		must(t, p.reexec(binary))
		must(t, ended(left))
		again := p.attach(1, 5, backlog)
		if _, err := io.ReadFull(again.stdout, make([]byte, 4)); err != nil {
			t.Error(err)
		}
		_, err = p.conn.Detach(deadline(t), 5)
		must(t, err)
		eventually(t, "no descriptor is left", func() bool { return openFiles(t, p.cmd.Process.Pid) <= began })
	})
}

// ended reads to the end of both pipes.
func ended(a attached) error {
	_, err := io.Copy(io.Discard, a.stdout)
	_, err2 := io.Copy(io.Discard, a.stderr)
	return errors.Join(err, err2)
}

// What stdin is written by is given out, also to the next connection, until it is ended.
func TestAttachStdin(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		inR, inW := pipe(t)
		c := p.addWith(1, func(k *pause.Container) { k.Stdin = inW })
		_ = inW.Close()
		b := program.New()
		stdio(b, 0, 1)
		b.Call("stdin", unix.SYS_DUP3, program.FD(2), 0, 0)
		shell(b, "cat; exit 5")
		p.mustStart(pause.Start{Task: 1}, b, c.stdout, c.stderr, inR)
		for _, f := range []*os.File{c.stdout, c.stderr, inR} {
			_ = f.Close()
		}
		for client := range uint64(2) {
			in, err := p.conn.Attach(deadline(t), pause.Attach{Task: 1, Client: client + 1, Stdin: true})
			must(t, err)
			_, err = fmt.Fprintf(in, "from %d\n", client+1)
			must(t, err)
			_ = in.Close()
			p.reconnect()
		}
		must(t, p.conn.EndStdin(deadline(t), 1))
		if e := p.exit(1); e.Status.ExitStatus() != 5 {
			t.Errorf("%+v", e)
		}
		if got := text(readLog(t, c.log), "stdout"); got != "from 1\nfrom 2\n" {
			t.Errorf("stdout %q", got)
		}
		must(t, p.conn.EndStdin(deadline(t), 1))
		in, err := p.conn.Attach(deadline(t), pause.Attach{Task: 1, Client: 3, Stdin: true})
		if in != nil || err == nil {
			t.Errorf("a container that has ended gives %v, %v", in, err)
		}
	})
}

func TestAttachRefused(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		p.add(1)
		_, w := pipe(t)
		null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
		must(t, err)
		defer func() { _ = null.Close() }()
		for _, row := range []struct {
			name  string
			a     pause.Attach
			errno unix.Errno
		}{
			{"no container", pause.Attach{Task: 2, Client: 1}, unix.ENOENT},
			{"no client", pause.Attach{Task: 1}, unix.EINVAL},
			{"not a pipe", pause.Attach{Task: 1, Client: 1, Stdout: null}, unix.EINVAL},
		} {
			_, err := p.conn.Attach(deadline(t), row.a)
			if e := wantError(t, err, pause.StageRequest, row.errno); e == nil {
				t.Error(row.name)
			}
		}
		files := openFiles(t, p.cmd.Process.Pid)
		for client := range uint64(32) {
			_, err := p.conn.Attach(deadline(t), pause.Attach{Task: 1, Client: client + 1, Stdout: w})
			must(t, err)
		}
		_, err = p.conn.Attach(deadline(t), pause.Attach{Task: 1, Client: 33, Stdout: w})
		wantError(t, err, pause.StageRequest, unix.ENOSPC)
		_, err = p.conn.Attach(deadline(t), pause.Attach{Task: 1, Client: 7, Stdout: w})
		wantError(t, err, pause.StageRequest, unix.EEXIST)
		for client := range uint64(32) {
			_, err := p.conn.Detach(deadline(t), client+1)
			must(t, err)
		}
		eventually(t, "no descriptor is left", func() bool { return openFiles(t, p.cmd.Process.Pid) <= files })
	})
}
