package critest

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestStreamExec(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle, func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("config")}}
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	})
	eachProtocol(t, func(t *testing.T, p protocol) {
		for _, row := range []struct {
			name           string
			cmd            []string
			code           int
			stdout, stderr string
		}{
			{"nothing", []string{"true"}, 0, "", ""},
			{"both streams", sh("echo out; echo err >&2"), 0, "out\n", "err\n"},
			{"exit code", sh("exit 41"), 41, "", ""},
			{"ended by a signal", sh("kill -KILL $$"), 137, "", ""},
			{"output is not lost at the end", sh("head -c 300000 /dev/zero | tr '\\0' x"), 0, strings.Repeat("x", 300000), ""},
			{"environment and user", sh("echo $A; id -u"), 0, "config\n1000\n", ""},
			{"/dev/stdout opened again by the user", sh("echo a >/dev/stdout; echo b >/dev/stderr"), 0, "a\n", "b\n"},
			{"stdin is empty", []string{"cat"}, 0, "", ""},
			{"no foreign descriptors", []string{"ls", "/proc/self/fd"}, 0, "0\n1\n2\n3\n", ""},
			{"a child keeps the output open", sh("sleep 7781 & echo begun"), 0, "begun\n", ""},
		} {
			t.Run(row.name, func(t *testing.T) {
				s := p.stream(t, c, row.cmd)
				s.ends(t, row.code)
				if s.out.String() != row.stdout || s.errs.String() != row.stderr {
					t.Errorf("stdout %q, stderr %q; want %q, %q", s.out, s.errs, row.stdout, row.stderr)
				}
			})
		}
	})
}

// What a client did not ask for goes nowhere and fails nothing.
func TestStreamExecSomeStreams(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle)
	eachProtocol(t, func(t *testing.T, p protocol) {
		s := p.stream(t, c, sh("echo out; echo err >&2; cat; exit 3"), func(r *cri.ExecRequest) { r.Stderr = false })
		s.ends(t, 3)
		if s.out.String() != "out\n" {
			t.Errorf("stdout %q", s.out)
		}
		s = p.stream(t, c, sh("echo out; echo err >&2"), func(r *cri.ExecRequest) { r.Stdout = false })
		s.ends(t, 0)
		if s.errs.String() != "err\n" {
			t.Errorf("stderr %q", s.errs)
		}
	})
}

// The end of stdin reaches the command, which has all its time after that.
func TestStreamExecHalfClose(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle)
	eachProtocol(t, func(t *testing.T, p protocol) {
		if !p.halfClose {
			return
		}
		s := p.stream(t, c, sh("n=$(wc -c); sleep 1; echo $n; exit 5"), withStdin)
		s.write(t, strings.Repeat("y", 1_000_000))
		_ = s.in.Close()
		s.ends(t, 5)
		if s.out.String() != "1000000\n" {
			t.Errorf("stdout %q", s.out)
		}
	})
}

// A command that ends without reading its stdin delivers its output and its exit code to a client that is still sending.
func TestStreamExecUnreadStdin(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle)
	eachProtocol(t, func(t *testing.T, p protocol) {
		s := p.stream(t, c, sh("read line; echo $line; exit 6"), withStdin)
		go func() {
			_, err := s.in.Write([]byte("first\n"))
			for chunk := make([]byte, 100_000); err == nil; {
				_, err = s.in.Write(chunk)
			}
		}()
		s.ends(t, 6)
		if s.out.String() != "first\n" {
			t.Errorf("stdout %q", s.out)
		}
	})
}

// A client that is killed takes the command and its children with it, and nothing else; also when the command does not read
// what the client sends.
func TestStreamExecClientVanishes(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle)
	eachProtocol(t, func(t *testing.T, p protocol) {
		for _, row := range []struct {
			name  string
			write int
		}{{"idle", 0}, {"sending", 1 << 30}} {
			t.Run(row.name, func(t *testing.T) {
				s := p.stream(t, c, sh("trap '' HUP TERM; sleep 7782 & echo begun; sleep 7782"), withStdin)
				s.received(t, "begun\n")
				go func() {
					for chunk, n := make([]byte, 1<<16), 0; n < row.write; n += len(chunk) {
						if _, err := s.in.Write(chunk); err != nil {
							return
						}
					}
				}()
				eventually(t, settleBound, "both run", func() bool { return running(t, "sleep 7782") == 2 })
				s.leave()
				eventually(t, settleBound, "both are gone", func() bool { return running(t, "sleep 7782") == 0 })
			})
		}
	})
	if s := c.status(t).GetState(); s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", s)
	}
}

func TestStreamExecTerminal(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	})
	eachProtocol(t, func(t *testing.T, p protocol) {
		s := p.stream(t, c, sh("tty; stty size; echo $TERM; test -t 0 -a -t 1 -a -t 2 && echo all three; trap 'stty size' WINCH; echo now; while ! read line; do :; done; echo got $line; cat; exit 7"), withTTY)
		s.sizes <- remotecommand.TerminalSize{Width: 101, Height: 41}
		s.received(t, "/dev/pts/0\r\n41 101\r\nxterm\r\nall three\r\nnow\r\n")
		s.sizes <- remotecommand.TerminalSize{} // ignored
		s.sizes <- remotecommand.TerminalSize{Width: 80, Height: 25}
		s.received(t, "25 80\r\n")
		s.write(t, "hello\n")
		s.received(t, "got hello\r\n")
		if p.halfClose {
			s.write(t, "no end of line")
			_ = s.in.Close()
		} else {
			s.write(t, "no end of line\x04\x04")
		}
		s.ends(t, 7)
		if !strings.HasSuffix(strings.TrimRight(s.out.String(), "\b\x04D^"), "no end of lineno end of line") {
			t.Errorf("the echo and the output of cat are not the end of %q", s.out)
		}
	})
}

// A terminal whose client is gone is hung up, and everything that it ran is killed.
func TestStreamTerminalVanishes(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle)
	eachProtocol(t, func(t *testing.T, p protocol) {
		s := p.stream(t, c, sh("trap '' HUP; sleep 7783 & sleep 7783"), withTTY)
		eventually(t, rpcBound, "both run", func() bool { return running(t, "sleep 7783") == 2 })
		s.leave()
		eventually(t, rpcBound, "both are gone", func() bool { return running(t, "sleep 7783") == 0 })
	})
}

func TestStreamExecRefused(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	created, exited, running := p.create(t, idle), p.start(t, "true"), p.start(t, idle)
	exited.wait(t)
	for _, row := range []struct {
		name   string
		change func(*cri.ExecRequest)
		code   codes.Code
		text   string
	}{
		{"no container", func(r *cri.ExecRequest) { r.ContainerId = "" }, codes.InvalidArgument, "container_id"},
		{"unknown container", func(r *cri.ExecRequest) { r.ContainerId = strings.Repeat("1", 64) }, codes.NotFound, strings.Repeat("1", 64)},
		{"created container", func(r *cri.ExecRequest) { r.ContainerId = created.id }, codes.FailedPrecondition, "is not running"},
		{"exited container", func(r *cri.ExecRequest) { r.ContainerId = exited.id }, codes.FailedPrecondition, "is not running"},
		{"no command", func(r *cri.ExecRequest) { r.Cmd = nil }, codes.InvalidArgument, "cmd"},
		{"no streams", func(r *cri.ExecRequest) { r.Stdout, r.Stderr = false, false }, codes.InvalidArgument, "stdout"},
		{"terminal with stderr", func(r *cri.ExecRequest) { r.Tty = true }, codes.InvalidArgument, "tty"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := d.runtime.Exec(bounded(t), running.execRequest([]string{"true"}, row.change))
			refused(t, err, row.code, row.text)
		})
	}
	eachProtocol(t, func(t *testing.T, p protocol) {
		s := p.stream(t, running, []string{"no-such-program"})
		if err := <-s.result; err == nil || !strings.Contains(err.Error(), "no-such-program") {
			t.Errorf("a missing program gives %v", err)
		}
	})
}
