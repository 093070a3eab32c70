package critest

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attach attaches to a container with all its streams, or as change says.
func (p protocol) attach(t testing.TB, c *container, out io.Writer, change ...func(*cri.ExecRequest)) *session {
	t.Helper()
	r := c.execRequest(nil, change...)
	answer, err := c.p.d.runtime.Attach(bounded(t), &cri.AttachRequest{ContainerId: c.id, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Tty: r.Tty})
	if err != nil {
		t.Fatal(err)
	}
	return p.connect(t, answer.GetUrl(), r, out)
}

func interactive(c *cri.ContainerConfig) { c.Stdin = true }

// talk is a script that answers each line, until there are no more.
const talk = "echo ready; while read line; do echo got $line; echo err $line >&2; done; echo bye; exit 9"

// attached waits until what the client sends comes back: from then on it gets everything.
func attached(t testing.TB, s *session) {
	t.Helper()
	s.write(t, "first\n")
	s.received(t, "got first")
}

// Several clients get what the container writes, each may write, and none is an end; the log has everything.
func TestAttach(t *testing.T) {
	d := use(t)
	pod := runPod(t, d)
	eachProtocol(t, func(t *testing.T, p protocol) {
		c := pod.start(t, talk, interactive)
		c.waitOutput(t, "ready")
		one, two := p.attach(t, c, nil, withStdin), p.attach(t, c, nil, withStdin)
		attached(t, one)
		attached(t, two)
		one.write(t, "from one\n")
		two.received(t, "got from one\n")
		one.received(t, "got from one\n")
		if p.halfClose {
			_ = one.in.Close()
			two.write(t, "later\n")
			one.received(t, "got later\n")
		}
		one.leave()
		two.write(t, "from two\n")
		two.received(t, "got from two\n")
		if !within(settleBound, func() bool { return strings.Contains(two.errs.String(), "err from two\n") }) {
			t.Errorf("stderr %q", two.errs)
		}
		if s := c.status(t).GetState(); s != cri.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("the container is %s", s)
		}
		c.stop(t, 0)
		two.ends(t, 0)
		c.waitOutput(t, "got from two\n")
	})
}

// All that a container writes comes, up to its end, with a log and without.
func TestAttachToTheEnd(t *testing.T) {
	d := use(t)
	pod := runPod(t, d)
	eachProtocol(t, func(t *testing.T, p protocol) {
		for _, row := range []struct{ name, log string }{{"with a log", "some.log"}, {"without", ""}} {
			t.Run(row.name, func(t *testing.T) {
				c := pod.start(t, "read x; echo got $x; read x; seq 1 100000; printf end", interactive, func(c *cri.ContainerConfig) { c.LogPath = row.log })
				s := p.attach(t, c, nil, withStdin)
				attached(t, s)
				s.write(t, "go\n")
				s.ends(t, 0)
				var want strings.Builder
				want.WriteString("got first\n")
				for i := range 100000 {
					fmt.Fprintln(&want, i+1)
				}
				want.WriteString("end")
				if s.out.String() != want.String() {
					t.Errorf("%d bytes have come of %d", len(s.out.String()), want.Len())
				}
				c.remove(t)
			})
		}
	})
}

// A stdin that was asked for once ends with its first client, whether that says so or goes.
func TestAttachStdinOnce(t *testing.T) {
	d := use(t)
	pod := runPod(t, d)
	once := func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }
	eachProtocol(t, func(t *testing.T, p protocol) {
		for _, row := range []struct {
			name string
			end  func(*session)
		}{{"end of stdin", func(s *session) { _ = s.in.Close() }}, {"client leaves", func(s *session) { s.leave() }}} {
			t.Run(row.name, func(t *testing.T) {
				if row.name == "end of stdin" && !p.halfClose {
					return
				}
				c := pod.start(t, talk, once)
				other, s := p.attach(t, c, nil), p.attach(t, c, nil, withStdin)
				attached(t, s)
				eventually(t, rpcBound, "the other client is attached", func() bool {
					s.write(t, "again\n")
					return strings.Contains(other.out.String(), "got")
				})
				row.end(s)
				other.ends(t, 0)
				if code := c.wait(t).GetExitCode(); code != 9 || !strings.HasSuffix(other.out.String(), "bye\n") {
					t.Errorf("exit code %d, the other client got %q", code, other.out)
				}
			})
		}
		t.Run("terminal", func(t *testing.T) {
			c := pod.start(t, talk, once, func(c *cri.ContainerConfig) { c.Tty = true })
			s := p.attach(t, c, nil, withTTY)
			attached(t, s)
			s.leave()
			if code := c.wait(t).GetExitCode(); code != 9 {
				t.Errorf("exit code %d", code)
			}
		})
	})
}

func TestAttachTerminal(t *testing.T) {
	d := use(t)
	pod := runPod(t, d)
	eachProtocol(t, func(t *testing.T, p protocol) {
		c := pod.start(t, "trap 'stty size' WINCH; while ! read line; do :; done; echo got $line; while ! read line; do :; done; exit 4", interactive, func(c *cri.ContainerConfig) { c.Tty = true })
		s := p.attach(t, c, nil, withTTY)
		attached(t, s)
		s.sizes <- remotecommand.TerminalSize{} // ignored
		s.sizes <- remotecommand.TerminalSize{Width: 99, Height: 33}
		s.received(t, "33 99\r\n")
		s.write(t, "end\n")
		s.ends(t, 0)
		if code := c.wait(t).GetExitCode(); code != 4 {
			t.Errorf("exit code %d", code)
		}
	})
}

// gate is a client that takes nothing until it is opened.
type gate struct {
	open chan struct{}
	size int
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.size += len(p)
	return len(p), nil
}

// A client that takes nothing is cut, with an error, after a bounded backlog. It delays neither the container, nor its log, nor
// other clients.
func TestAttachSlowClient(t *testing.T) {
	d := use(t)
	pod := runPod(t, d)
	const size = 80_000_000
	eachProtocol(t, func(t *testing.T, p protocol) {
		c := pod.start(t, fmt.Sprintf("read x; yes 0123456789 | head -c %d; while read line; do echo got $line; done", size), interactive)
		slow := &gate{open: make(chan struct{})}
		s := p.attach(t, c, slow)
		writer := p.attach(t, c, nil, func(r *cri.ExecRequest) { r.Stdin, r.Stdout, r.Stderr = true, false, false })
		writer.write(t, "go\n")
		eventually(t, rpcBound, "the log has everything", func() bool { return logSize(t, c) >= size/11*51 })
		other := p.attach(t, c, nil, withStdin)
		attached(t, other)
		close(slow.open)
		if err := <-s.result; err == nil || !strings.Contains(err.Error(), "attach client too slow, ") || !strings.Contains(err.Error(), "bytes behind") {
			t.Errorf("the slow client's end is %v, after %d bytes", err, slow.size)
		}
		if slow.size == 0 || slow.size >= size {
			t.Errorf("the slow client got %d bytes", slow.size)
		}
		other.write(t, "second\n")
		other.received(t, "got second\n")
		c.remove(t)
	})
}

// A new criserver attaches as the old one did: output, stdin, terminals.
func TestAttachAfterRestart(t *testing.T) {
	d := use(t)
	alive(t, d)
	pod := runPod(t, d)
	plain := pod.start(t, talk, interactive)
	terminal := pod.start(t, talk, interactive, func(c *cri.ContainerConfig) { c.Tty = true })
	eachProtocol(t, func(t *testing.T, p protocol) {
		before := p.attach(t, plain, nil, withStdin)
		attached(t, before)
		d.crash(t)
		<-before.result
		d.resume(t)
		again, tty := p.attach(t, plain, nil, withStdin), p.attach(t, terminal, nil, withTTY)
		attached(t, again)
		attached(t, tty)
	})
}

func TestAttachRefused(t *testing.T) {
	d := use(t)
	pod := runPod(t, d)
	created, exited, running := pod.create(t, idle), pod.start(t, "true"), pod.start(t, idle)
	exited.wait(t)
	for _, row := range []struct {
		name   string
		change func(*cri.AttachRequest)
		code   codes.Code
		text   string
	}{
		{"no container", func(r *cri.AttachRequest) { r.ContainerId = "" }, codes.InvalidArgument, "container_id"},
		{"unknown container", func(r *cri.AttachRequest) { r.ContainerId = strings.Repeat("1", 64) }, codes.NotFound, strings.Repeat("1", 64)},
		{"created container", func(r *cri.AttachRequest) { r.ContainerId = created.id }, codes.FailedPrecondition, "is not running"},
		{"exited container", func(r *cri.AttachRequest) { r.ContainerId = exited.id }, codes.FailedPrecondition, "is not running"},
		{"no streams", func(r *cri.AttachRequest) { r.Stdout, r.Stderr = false, false }, codes.InvalidArgument, "stdout"},
		{"terminal with stderr", func(r *cri.AttachRequest) { r.Tty = true }, codes.InvalidArgument, "tty"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &cri.AttachRequest{ContainerId: running.id, Stdout: true, Stderr: true}
			row.change(r)
			_, err := d.runtime.Attach(bounded(t), r)
			refused(t, err, row.code, row.text)
		})
	}
	const most = 32
	for range most {
		protocols[0].attach(t, running, nil)
	}
	ended := 0
	eventually(t, rpcBound, "one client too many is refused", func() bool {
		s := protocols[0].attach(t, running, nil)
		if within(settleBound/10, func() bool { return len(s.result) > 0 }) {
			if err := <-s.result; err == nil || !strings.Contains(err.Error(), "too many clients") {
				t.Errorf("got %v", err)
			}
			ended++
		}
		return ended > 0
	})
}
