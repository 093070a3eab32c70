package ociruntime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

const exitSlots = 128

// undoBound is how long giving back what a failed start has taken may take; then it is left to CleanPod.
const undoBound = 10 * time.Second

// undoing is a context for that.
func undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoBound)
}

// StartPod starts a pause and makes the pod's namespaces. On error nothing is left, or the error says what. What pause does to be born and to make them,
// and what criserver prepares meanwhile, go on side by side.
func (r *Runtime) StartPod(ctx context.Context, c PodConfig) (_ *Pod, err error) {
	p := r.newPod(c)
	p.native = true
	defer func() {
		if err != nil {
			undo, cancel := undoing(ctx)
			defer cancel()
			err = errors.Join(err, p.undo(undo))
		}
	}()
	if r.config.Systemd != nil {
		return p, p.startInScope(ctx)
	}
	n, place, err := p.bear(ctx, c.CgroupParent)
	if err != nil {
		return nil, err
	}
	defer func() { _ = place.Close() }()
	booted := p.boot(ctx, n, place.Tasks)
	if err := p.greet(ctx, n); err != nil {
		return nil, p.short(p.group, errors.Join(err, <-booted))
	}
	return p, p.short(p.group, p.settle(ctx, booted))
}

// bear forks pause in its cgroup2 directory, if there is one, and makes the rest of its leaf meanwhile.
func (p *Pod) bear(ctx context.Context, parent string) (n *newborn, place *cgroup.Placement, err error) {
	dir, err := p.beginGroup(parent)
	if err != nil {
		return nil, nil, err
	}
	born := make(chan error, 1)
	go func() {
		var err error
		n, err = p.spawn(dir)
		_ = dir.Close() // nil: there is none
		born <- p.short(p.group, err)
	}()
	place, err = p.completeGroup()
	if err = errors.Join(<-born, err); err == nil {
		return n, place, nil
	}
	if n != nil {
		undo, cancel := undoing(ctx)
		defer cancel()
		err = errors.Join(err, n.kill(undo))
	}
	if place != nil {
		_ = place.Close()
	}
	return nil, nil, err
}

// startInScope starts a pause where systemd starts it too: the scope is made around a process that is there.
func (p *Pod) startInScope(ctx context.Context) error {
	n, err := p.spawn(nil)
	if err == nil {
		err = p.greet(ctx, n)
	}
	if err != nil {
		return err
	}
	if err := p.enterScope(ctx); err != nil {
		return err
	}
	place, err := p.group.PlacementByWrite()
	if err != nil {
		return p.short(p.group, err)
	}
	defer func() { _ = place.Close() }()
	return p.short(p.group, p.settle(ctx, p.boot(ctx, n, place.Tasks)))
}

// settle makes the pod's own pieces that live on the connection: /dev/shm and the shared pid namespace.
func (p *Pod) settle(ctx context.Context, booted <-chan error) error {
	err := p.makeShm(ctx)
	if err = errors.Join(<-booted, err); err == nil && p.config.SharedPID {
		err = p.needReaper(ctx)
	}
	return err
}

func (r *Runtime) newPod(c PodConfig) *Pod {
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return &Pod{runtime: r, config: c, exited: make(chan struct{}), turn: turn,
		tasks: map[uint64]func(pause.Exit){}, containers: map[string]*Container{}, slots: make([]bool, exitSlots)}
}

// undo gives back what an attempt to start the pod has taken so far.
func (p *Pod) undo(ctx context.Context) error {
	var err error
	switch {
	case p.conn != nil:
		err = errors.Join(p.Stop(ctx), p.runtime.endings.wait(ctx, p.config.ID))
	case p.group != nil:
		err = errors.Join(p.group.Kill(ctx), p.group.Delete(ctx, p.parents...))
	}
	for _, name := range []string{socketName, exitsName, parentsName} {
		_ = os.Remove(p.path(name))
	}
	return err
}

// beginGroup makes the part of pause's leaf that it can be born in; parent is where the pod's containers get theirs. The leaf has no
// limits and a normal weight: logs, execs and stops of a pod that wants more CPU than it gets wait for pause.
func (p *Pod) beginGroup(parent string) (dir *os.File, err error) {
	p.parent = parent
	own := cmp.Or(p.runtime.config.PauseParent, parent)
	leaf, err := p.openLeaf(own)
	if err == nil {
		dir, err = leaf.Begin(p.addParents)
	}
	if err != nil {
		return nil, fmt.Errorf("create the sandbox's cgroup: %w", p.unmade(own, p.config.ID, err))
	}
	p.group = leaf
	return dir, nil
}

// openLeaf is the leaf that pause is going to get: in a cgroup that is the pod's alone it is a guest. A kill for want of memory that
// such a cgroup has counted already, of an earlier attempt's pause, would be taken for one of this pause.
func (p *Pod) openLeaf(parent string) (*cgroup.Group, error) {
	leaf, err := p.runtime.config.Cgroups.Open(parent, p.config.ID)
	if err != nil || !namedAfter(parent, p.config.UID) {
		return leaf, err
	}
	guest := leaf.Guest()
	if kills, err := guest.OwnOOMKills(); kills > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return leaf, nil
	}
	return guest, nil
}

// completeGroup makes the rest of the leaf, and opens what pause gets into it by.
func (p *Pod) completeGroup() (*cgroup.Placement, error) {
	if err := p.group.Complete(p.addParents); err != nil {
		return nil, fmt.Errorf("create the sandbox's cgroup: %w", p.short(p.group, err))
	}
	return p.group.PlacementOfBorn()
}

// createLeaf makes a leaf; what it has to make above is recorded before. The leaf may be there in spite of an error.
func (p *Pod) createLeaf(parent, name string, res *specs.LinuxResources) (*cgroup.Group, error) {
	group, err := p.runtime.config.Cgroups.Create(parent, name, res, p.addParents)
	if err != nil {
		return nil, p.unmade(parent, name, err)
	}
	return group, nil
}

// unmade adds to the error of a leaf that could not be made which limit was in the way.
func (p *Pod) unmade(parent, name string, err error) error {
	if g, invalid := p.runtime.config.Cgroups.Open(parent, name); invalid == nil {
		err = p.short(g, err)
	}
	return err
}

// enterScope has systemd make a delegated scope for the pod, around the pause that runs already, and a leaf for pause in
// it. Only then can controllers be given to children.
func (p *Pod) enterScope(ctx context.Context) error {
	scope, err := cgroup.StartScope(ctx, p.runtime.config.Systemd, p.config.ID, p.config.CgroupParent, p.Pid())
	if err != nil {
		return p.unscoped(err)
	}
	p.mu.Lock()
	p.scope = scope
	p.mu.Unlock()
	// What an earlier attempt of the same name has left in hierarchies of v1 that systemd does not know.
	stale, err := p.runtime.config.Cgroups.Open(scope.Path(), p.config.ID)
	if err == nil {
		err = stale.Delete(ctx)
	}
	if err != nil {
		return err
	}
	p.parent = scope.Path()
	leaf, err := p.createLeaf(p.parent, p.config.ID, nil)
	if err != nil {
		return fmt.Errorf("create the sandbox's cgroup: %w", err)
	}
	p.mu.Lock()
	p.group = leaf
	p.mu.Unlock()
	return nil
}

// unscoped adds to the error of a scope that did not start which limit was in the way.
func (p *Pod) unscoped(err error) error {
	scope, invalid := cgroup.OpenScope(p.config.ID, p.config.CgroupParent)
	if invalid != nil {
		return err
	}
	unmade, invalid := p.runtime.config.Cgroups.Open(scope.Path(), p.config.ID)
	if invalid != nil {
		return err
	}
	return p.short(unmade, err)
}

func socketPair(name string) (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name), nil
}

// newborn is a pause that has not answered yet.
type newborn struct {
	conn  *pause.Conn
	pid   int
	pidfd *os.File
}

// spawn forks the pause, in a cgroup2 directory if there is one, and begins a connection to it.
func (p *Pod) spawn(birthplace *os.File) (_ *newborn, err error) {
	listener, err := listen(p.config.Dir)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", p.path(socketName), err)
	}
	defer listener.Close()
	exits, err := p.createExits()
	if err != nil {
		return nil, err
	}
	defer exits.Close()
	ours, theirs, err := socketPair("pause")
	if err != nil {
		return nil, err
	}
	defer theirs.Close() // so that the end of pause ends the connection
	n := &newborn{}
	if n.conn, err = pause.Begin(ours); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = n.conn.Close()
		}
	}()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if n.pid, n.pidfd, err = p.fork(birthplace, null, theirs, listener, exits); err != nil {
		return nil, fmt.Errorf("start pause: %w", err)
	}
	return n, nil
}

// kill ends a pause that is not a pod's. One that does not die before ctx ends is reaped when it does.
func (n *newborn) kill(ctx context.Context) error {
	_ = unix.PidfdSendSignal(int(n.pidfd.Fd()), unix.SIGKILL, nil, 0) // ESRCH: it is dead already
	dead := make(chan struct{})
	go func() {
		waitDead(n.pidfd)
		_ = errors.Join(n.pidfd.Close(), n.conn.Close()) // nobody uses them any more
		close(dead)
	}()
	select {
	case <-dead:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of pause %d: %w", n.pid, ctx.Err())
	}
}

// greet takes the answer of the new pause, which is the pod's from then on. One that does not answer is killed.
func (p *Pod) greet(ctx context.Context, n *newborn) error {
	if err := n.conn.Greet(ctx); err != nil {
		undo, cancel := undoing(ctx)
		defer cancel()
		return errors.Join(err, n.kill(undo))
	}
	_ = n.pidfd.Close()
	p.conn = n.conn
	go p.follow()
	return nil
}

func (p *Pod) fork(birthplace, null, control, listener, exits *os.File) (pid int, _ *os.File, err error) {
	attr := syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), control.Fd(), listener.Fd(), exits.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if birthplace != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(birthplace.Fd())
	}
	pidfd := -1
	attr.Sys.PidFD = &pidfd
	if pid, err = p.runtime.nursery.fork([]string{"pause-" + p.config.ID}, attr); err != nil {
		return 0, nil, err
	}
	p.runtime.adjust(pid)
	return pid, os.NewFile(uintptr(pidfd), "pause"), nil
}

// listen binds the pod's socket. Socket addresses are short, so the path goes by way of a descriptor.
func listen(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	_ = unix.Unlinkat(int(d.Fd()), socketName, 0)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketPath(d)})
	if err == nil {
		err = unix.Fchmodat(int(d.Fd()), socketName, 0o600, 0)
	}
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), socketName), nil
}

func socketPath(dir *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
}

func (p *Pod) createExits() (*os.File, error) {
	f, err := os.OpenFile(p.path(exitsName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, exitSlots*pause.ExitRecordSize); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("allocate %s: %w", p.path(exitsName), err)
	}
	return f, nil
}

// boot makes pause enter its cgroup, through these tasks files, and create the namespaces. The channel gives one error or nil; until
// then the files must stay open.
func (p *Pod) boot(ctx context.Context, n *newborn, tasks []*os.File) <-chan error {
	booted := make(chan error, 1)
	go func() { booted <- p.runBoot(ctx, n, tasks) }()
	return booted
}

func (p *Pod) runBoot(ctx context.Context, n *newborn, tasks []*os.File) (err error) {
	files := slices.Clone(tasks)
	b := compile.Boot{Unshare: unix.CLONE_NEWUTS, Hostname: p.config.Hostname, Sysctls: p.config.Sysctls}
	for i := range files {
		b.Tasks = append(b.Tasks, program.FD(i))
	}
	if !p.config.HostNetwork {
		b.Unshare |= unix.CLONE_NEWNET
		b.Loopback = true
	}
	if !p.config.HostIPC {
		b.Unshare |= unix.CLONE_NEWIPC
	}
	if p.config.UserNS != nil {
		ours, theirs, failed := syncPair()
		if failed != nil {
			return failed
		}
		defer theirs.Close()
		fd := program.FD(len(files))
		b.UserNS, files = &fd, append(files, theirs)
		mapped := make(chan error, 1)
		go func() { mapped <- p.writeMappings(ours, n.pid) }()
		defer func() {
			_ = unix.Shutdown(int(ours.Fd()), unix.SHUT_RDWR) // wakes it, which a close would not
			if failed := <-mapped; err != nil {
				err = errors.Join(err, failed)
			}
			_ = ours.Close()
		}()
	}
	prog, err := b.Compile()
	if err != nil {
		return fmt.Errorf("compile the start of pause: %w", err)
	}
	sealed, err := pause.Seal(prog.Encode())
	if err != nil {
		return err
	}
	defer sealed.Close()
	if err := n.conn.Boot(ctx, sealed, files); err != nil {
		return fmt.Errorf("start pause: %w", explain(prog, err))
	}
	return nil
}

func syncPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), "sync"), os.NewFile(uintptr(pair[1]), "sync"), nil
}

// writeMappings waits until pause has made its user namespace, maps it and tells pause to go on. Closing the
// socket instead makes pause fail.
func (p *Pod) writeMappings(sync *os.File, pid int) error {
	if n, err := unix.Read(int(sync.Fd()), make([]byte, 1)); err != nil || n == 0 { // 0: pause was not started
		return err
	}
	for name, maps := range map[string][]specs.LinuxIDMapping{"uid_map": p.config.UserNS.UIDs, "gid_map": p.config.UserNS.GIDs} {
		var lines strings.Builder
		for _, m := range maps {
			fmt.Fprintf(&lines, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, name), []byte(lines.String()), 0); err != nil {
			_ = unix.Shutdown(int(sync.Fd()), unix.SHUT_RDWR)
			return fmt.Errorf("write the id mapping of the pod: %w", err)
		}
	}
	_, err := unix.Write(int(sync.Fd()), []byte{1})
	return err
}

// explain turns pause's {instruction, errno} into what the instruction was for.
func explain(prog *program.Program, err error) error {
	var e *pause.Error
	if !errors.As(err, &e) || (e.Stage != pause.StageInstr && e.Stage != pause.StageKilled) {
		return err
	}
	if e.Stage == pause.StageKilled {
		return fmt.Errorf("%s: %w", prog.Describe(e.Index), e)
	}
	return fmt.Errorf("%s: %w (instruction %d)", prog.Explain(e.Index, e.Errno), e.Errno, e.Index)
}

// addParents records which directories above the pod's leaves were made for it, so that they can go with the pod. The record grows
// line by line: what stands in it is never lost, whatever happens meanwhile.
func (p *Pod) addParents(made []string) error {
	p.mu.Lock()
	made = slices.DeleteFunc(slices.Clone(made), func(dir string) bool { return slices.Contains(p.parents, dir) })
	p.parents = append(p.parents, made...)
	p.mu.Unlock()
	if len(made) == 0 {
		return nil
	}
	f, err := os.OpenFile(p.path(parentsName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + strings.Join(made, "\n")) // an earlier line has no end, perhaps because its writer was killed
	return errors.Join(err, f.Close())
}
