package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/hook"
	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// hooking is the part that hooks have in a start. The child waits at two places: when all of its mounts are there, and
// when it is complete; meanwhile hooks run.
type hooking struct {
	*hooks
	c  *Container
	in *compile.Hooks
	meeting
}

// prepareHooks attaches the root in the bundle, and with it in a copy of the host's mounts. It consumes root and returns it as
// it is there.
func (s *start) prepareHooks(root *os.File) (*os.File, error) {
	defer root.Close()
	p, h := s.c.pod, s.c.hooks
	if err := p.attachBundle(h.id, root); err != nil {
		return nil, err
	}
	host, err := copyOfHost()
	if err != nil {
		return nil, err
	}
	fd := s.own(host)
	inCopy, err := mount.OpenIn(host, p.bundle(h.id)+"/"+bundleRoot, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("find the root in the copy of the host's mounts: %w", err)
	}
	m, theirs, err := s.meet()
	if err != nil {
		return nil, errors.Join(err, inCopy.Close())
	}
	s.hooking = &hooking{hooks: h, c: s.c, meeting: m, in: &compile.Hooks{Host: fd, Sync: s.give(theirs), Confine: len(h.StartContainer) > 0}}
	return inCopy, nil
}

// copyOfHost clones all mounts that criserver sees. What is mounted on either side later does not travel.
func copyOfHost() (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("copy the host's mounts: %w", err)
	}
	f := os.NewFile(uintptr(fd), "/")
	if err := mount.SetAttr(f, true, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return nil, errors.Join(fmt.Errorf("make the copy of the host's mounts private: %w", err), f.Close())
	}
	return f, nil
}

// follow runs the hooks of a start beside it. The channel gives the failure of one, or nil, after end was called.
func (h *hooking) follow(ctx context.Context) (failed <-chan error, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan error, 1)
	go func() {
		err := h.run(ctx)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // the start has ended without them, and says why
		}
		h.hangUp() // then the child, if it waits, ends
		result <- err
	}()
	return result, func() {
		cancel()
		h.hangUp()
	}
}

// withHooks starts the child and runs its hooks meanwhile. That one failed is why the start fails.
func (s *start) withHooks(ctx context.Context, start func() (pause.Started, error)) (pause.Started, error) {
	if s.hooking == nil {
		return start()
	}
	failed, end := s.hooking.follow(ctx)
	started, err := start()
	end()
	if hooked := <-failed; hooked != nil {
		err = hooked
	}
	if err != nil {
		err = errors.Join(err, s.c.group.Kill(context.WithoutCancel(ctx))) // what hooks left in the container's cgroup
	}
	return started, err
}

// run does what follow says. It returns nil when the child has died before it got to its hooks.
func (h *hooking) run(ctx context.Context) error {
	pid, err := h.ready()
	if pid == 0 || err != nil {
		return err
	}
	for _, one := range h.beforeStart() {
		if err := h.c.pod.runHere(ctx, one, h.state(h.c.pod, specs.StateCreating, pid)); err != nil {
			return err
		}
	}
	for _, one := range place(hook.CreateContainer, h.CreateContainer) {
		if err := h.runInside(ctx, one, specs.StateCreating, pid); err != nil {
			return err
		}
	}
	if err := h.goOn(); err != nil || !h.in.Confine {
		return err
	}
	if pid, err = h.ready(); pid == 0 || err != nil {
		return err
	}
	for _, one := range place(hook.StartContainer, h.StartContainer) {
		if err := h.runInside(ctx, one, specs.StateCreated, pid); err != nil {
			return err
		}
	}
	return h.goOn()
}

// runInside runs a hook in the namespaces of the child, as a process of pause in the container's cgroup.
func (h *hooking) runInside(ctx context.Context, one placed, status specs.ContainerState, pid int) error {
	ctx, cancel := hook.Limit(ctx, one.Hook)
	defer cancel()
	output, err := hook.NewOutput()
	if err != nil {
		return err
	}
	return output.Verdict(ctx, one.kind, one.Path, h.process(ctx, one, status, pid, output.Write))
}

// process starts the hook and waits for its end. What it is born in is known by the child's pid, which waits for it.
func (h *hooking) process(ctx context.Context, one placed, status specs.ContainerState, pid int, output *os.File) error {
	pass := &passing{}
	defer pass.close()
	inner, err := innermostPid(pid, h.c.pod.Pid())
	if err != nil {
		return err
	}
	in, err := stateFile(h.state(h.c.pod, status, inner))
	if err != nil {
		return err
	}
	place, err := h.c.openPlace(pass, h.c.group)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	process := h.c.process(pass, place)
	process.Stdio = [3]program.FD{pass.own(in), pass.give(output), pass.give(output)}
	as := compile.Hook{Path: one.Path, Args: one.Args, Env: one.Env}
	if len(as.Args) == 0 {
		as.Args = []string{one.Path}
	}
	request := pause.Start{Exec: true, Cgroup: place.Dir}
	if err := h.enter(pass, &as, &request, pid); err != nil {
		return err
	}
	compiled := compile.CreateHook
	if one.kind == hook.StartContainer {
		compiled = compile.StartHook
	}
	prog, err := compiled(process, as)
	if err != nil {
		return err
	}
	request.Files = pass.files
	return h.c.pod.runToEnd(ctx, prog, request)
}

// enter opens the child's namespaces. A pid namespace that is the host's need not be joined.
func (h *hooking) enter(pass *passing, as *compile.Hook, request *pause.Start, pid int) error {
	open := func(name string) (*os.File, error) {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		pass.owned = append(pass.owned, f)
		return f, err
	}
	mnt, err := open("mnt")
	if err != nil {
		return err
	}
	as.Mount = pass.give(mnt)
	if hasNamespace(h.c.record.Spec.Linux, specs.CgroupNamespace) {
		cgroup, err := open("cgroup")
		if err != nil {
			return err
		}
		as.Cgroup = new(pass.give(cgroup))
	}
	if h.c.record.SharedPID || h.c.record.TargetPID != "" || hasNamespace(h.c.record.Spec.Linux, specs.PIDNamespace) {
		if request.Join, err = open("pid"); err != nil {
			return err
		}
	}
	_, err = innermostPid(pid, h.c.pod.Pid()) // else they may be another's
	return err
}

// runToEnd runs a process of pause that is no container and no exec, and wants it to succeed.
func (p *Pod) runToEnd(ctx context.Context, prog *program.Program, request pause.Start) error {
	sealed, err := pause.Seal(prog.Encode())
	if err != nil {
		return err
	}
	defer sealed.Close()
	ended := make(chan pause.Exit, 1)
	request.Program, request.Task = sealed, p.runtime.newTask()
	request.Late = func(started pause.Started, err error) {
		if err == nil {
			_ = unix.PidfdSendSignal(int(started.PidFD.Fd()), unix.SIGKILL, nil, 0)
			_ = started.PidFD.Close()
		}
	}
	p.watch(request.Task, func(e pause.Exit) { ended <- e })
	started, err := p.conn.Start(ctx, request)
	if err != nil {
		p.unwatch(request.Task)
		return explain(prog, err)
	}
	defer started.PidFD.Close()
	defer context.AfterFunc(ctx, func() { _ = unix.PidfdSendSignal(int(started.PidFD.Fd()), unix.SIGKILL, nil, 0) })()
	status := (<-ended).Status // pause that is gone is an end too
	switch {
	case status.Signaled():
		return fmt.Errorf("signal: %s", status.Signal())
	case status.ExitStatus() != 0:
		return fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return nil
}

// innermostPid is the pid of a child of pause in its own pid namespace.
func innermostPid(pid, parent int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	inner := 0
	for line := range strings.Lines(string(status)) {
		name, values, _ := strings.Cut(line, ":")
		fields := strings.Fields(values)
		switch {
		case len(fields) == 0:
		case name == "PPid" && fields[0] != strconv.Itoa(parent):
			return 0, fmt.Errorf("process %d, which waited to go on, is gone", pid)
		case name == "NSpid":
			inner, err = strconv.Atoi(fields[len(fields)-1])
		}
	}
	return inner, err
}
