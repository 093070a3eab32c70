package pause_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

func (p *pod) boot(b *program.Builder) error {
	p.t.Helper()
	f := seal(p.t, b)
	defer func() { _ = f.Close() }()
	return p.conn.Boot(deadline(p.t), f, nil)
}

// TestBoot makes namespaces in pause itself; its children are in them.
func TestBoot(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		b := program.New()
		b.Call("namespaces", unix.SYS_UNSHARE, unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
		b.Call("host name", unix.SYS_SETHOSTNAME, program.String("boot-test"), len("boot-test"))
		must(t, p.boot(b))
		wantError(t, p.boot(b), pause.StageRequest, unix.EBUSY)
		out, exit := p.exec(1, plain, func(b *program.Builder) { shell(b, "uname -n") })
		if out != "boot-test\n" || exit.Status != 0 {
			t.Errorf("host name %q, exit %+v", out, exit)
		}
		must(t, p.reexec(binary))
		wantError(t, p.boot(b), pause.StageRequest, unix.EBUSY)
	})
}

// TestBootFails tells which instruction failed; a Program that would replace pause is refused.
func TestBootFails(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		b := program.New()
		shell(b, "true")
		wantError(t, p.boot(b), pause.StageProgram, unix.EINVAL)
		b = program.New()
		b.Call("fine", unix.SYS_GETPID)
		b.Call("not fine", unix.SYS_FCHDIR, 1000000)
		if e := wantError(t, p.boot(b), pause.StageInstr, unix.EBADF); e.Index != 1 {
			t.Errorf("failed at %d", e.Index)
		}
	})
}

// TestBootUserNamespace still knows its criserver when uids look different from inside.
func TestBootUserNamespace(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		b := program.New()
		b.Call("user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
		must(t, p.boot(b))
		p.reconnect()
		l, err := p.conn.List(deadline(t))
		must(t, err)
		l.Close()
	})
}
