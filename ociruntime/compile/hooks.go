package compile

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
)

// Hooks is what the start of a container with OCI hooks needs. Its mount namespace is at first a copy of the host's, in
// which its root is attached; the child leaves it after the hooks that must run there.
type Hooks struct {
	Host    program.FD // detached copy of the host's mounts; the container's Root lies in it
	Sync    program.FD // socket: the child writes a byte when hooks may run, and goes on when it can read one
	Confine bool       // hooks run once more when the container is complete: startContainer
}

// enterHost makes the copy of the host's mounts the root of the mount namespace.
func (t tree) enterHost(h *Hooks) {
	t.pivotTo(h.Host, "the copy of the host's mounts")
}

// wait lets the other side work. If it fails, or if nobody is there, it ends the connection.
func wait(b *program.Builder, sync program.FD, what string) {
	b.Call("tell that "+what+" may run", unix.SYS_WRITE, sync, program.String("h"), 1)
	b.Call("wait for "+what, unix.SYS_READ, sync, program.Bytes(make([]byte, 8)), 1).Nonzero()
}

// Hook is a program that runs in the namespaces of a container that is being started.
type Hook struct {
	Path      string
	Args, Env []string
	Mount     program.FD  // the container's mount namespace as it is now
	Cgroup    *program.FD // its cgroup namespace; nil: it has none of its own
}

// CreateHook compiles a createContainer hook, which may do what pause may. Of p only placement and streams count.
func CreateHook(p Process, h Hook) (*program.Program, error) {
	b := program.New()
	p.Spec, p.Seccomp, p.Keyring = &specs.Process{}, nil, ""
	c := process{Process: p, b: b}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	h.enter(b)
	c.session()
	if err := c.limits(); err != nil {
		return nil, err
	}
	b.ExecAll([]string{h.Path}, h.Args, h.Env)
	return b.Build()
}

// StartHook compiles a startContainer hook, which is confined as p, the container's own process, will be.
func StartHook(p Process, h Hook) (*program.Program, error) {
	b := program.New().Grow(execCalls)
	spec := *p.Spec
	spec.Args, spec.Env, spec.Cwd, spec.Terminal = h.Args, h.Env, "/", false
	p.Spec, p.Executable = &spec, h.Path
	c := process{Process: p, b: b}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	h.enter(b)
	if err := c.finish(); err != nil {
		return nil, err
	}
	return b.Build()
}

func (h Hook) enter(b *program.Builder) {
	if h.Cgroup != nil {
		b.Call("enter the container's cgroup namespace", unix.SYS_SETNS, *h.Cgroup, unix.CLONE_NEWCGROUP)
	}
	b.Call("enter the container's mount namespace", unix.SYS_SETNS, h.Mount, unix.CLONE_NEWNS)
}
