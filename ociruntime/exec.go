package ociruntime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// ExecConfig is an additional process of a running container. It inherits everything but its arguments.
type ExecConfig struct {
	Args                  []string
	Terminal              *os.File // the slave that Terminal made, instead of the following
	Stdin, Stdout, Stderr *os.File // the child's ends; nil: /dev/null
	// The caller closes the files after Exec.
}

// Exec is an additional process that was started.
type Exec struct {
	c     *Container
	pidfd *os.File
	leaf  *cgroup.Group // of its own, or nil
	late  bool          // the caller was gone before the process was there; whoever is told of it gives leaf back
	spent bool          // leaf was killed: Linux 6.18 kills what is born in it afterwards
	done  chan struct{}
	code  int32
}

// Exec starts an additional process in a running container.
func (c *Container) Exec(ctx context.Context, cfg ExecConfig) (*Exec, error) {
	c.mu.Lock()
	target := c.pidfd
	c.mu.Unlock()
	if _, exited := c.Exit(); target == nil || exited {
		return nil, ErrNotRunning
	}
	leaf, err := c.takeLeaf()
	if err != nil {
		return nil, err
	}
	e := &Exec{c: c, leaf: leaf, done: make(chan struct{})}
	err = e.run(ctx, target, cfg)
	if leaf != nil && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EBUSY)) {
		_ = leaf.Delete(ctx) // what stays goes with the container
		e = &Exec{c: c, done: make(chan struct{})}
		err = e.run(ctx, target, cfg)
	}
	if err != nil {
		if !e.late {
			c.returnLeaf(e.leaf)
		}
		return nil, err
	}
	return e, nil
}

// run starts the process in e.leaf or, without one, in the present cgroup of the container's first process.
func (e *Exec) run(ctx context.Context, target *os.File, cfg ExecConfig) error {
	pass := &passing{}
	defer pass.close()
	group := e.leaf
	if group == nil {
		var err error
		if group, err = e.c.group.Beside(e.c.Pid()); err != nil {
			return err
		}
	}
	prog, dir, err := e.compile(pass, group, target, cfg)
	if err != nil {
		return err
	}
	return e.start(ctx, prog, pause.Start{Exec: true, Cgroup: dir, Join: target, Files: pass.files})
}

func (e *Exec) compile(pass *passing, group *cgroup.Group, target *os.File, cfg ExecConfig) (*program.Program, *os.File, error) {
	place, err := e.c.openPlace(pass, group)
	if err != nil {
		return nil, nil, err
	}
	p := e.c.process(pass, place)
	spec := *e.c.processSpec()
	spec.Args, spec.Terminal = cfg.Args, cfg.Terminal != nil
	p.Spec = &spec
	if cfg.Terminal != nil {
		spec.Env = withTerm(spec.Env)
		tty := pass.give(cfg.Terminal)
		p.Stdio = [3]program.FD{tty, tty, tty}
	} else if p.Stdio, err = e.streams(pass, cfg); err != nil {
		return nil, nil, err
	}
	prog, err := compile.Exec(p, pass.give(target))
	return prog, place.Dir, err
}

func (e *Exec) streams(pass *passing, cfg ExecConfig) (fds [3]program.FD, err error) {
	if err := e.c.label(cfg.Stdin, cfg.Stdout, cfg.Stderr); err != nil {
		return fds, err
	}
	var null *os.File
	for i, f := range []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr} {
		if f == nil && null == nil {
			if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return fds, err
			}
			pass.owned = append(pass.owned, null)
		}
		fds[i] = pass.give(cmp.Or(f, null))
	}
	return fds, nil
}

// withTerm says what terminal there is, as for a container that has one from its start.
func withTerm(env []string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		return env
	}
	return append(slices.Clip(env), "TERM=xterm")
}

func (e *Exec) start(ctx context.Context, prog *program.Program, s pause.Start) error {
	p := e.c.pod
	sealed, err := pause.Seal(prog.Encode())
	if err != nil {
		return err
	}
	defer sealed.Close()
	s.Program, s.Task = sealed, p.runtime.newTask()
	s.Late = func(started pause.Started, err error) { e.endLate(s.Task, started, err) }
	p.watch(s.Task, e.ended)
	started, err := p.conn.Start(ctx, s)
	if late := ctx.Err(); late != nil && errors.Is(err, late) {
		e.late = true
		return err
	}
	if err != nil {
		p.unwatch(s.Task)
		if errors.Is(err, unix.ESRCH) {
			return ErrNotRunning
		}
		return p.short(e.c.group, explain(prog, err))
	}
	e.pidfd = started.PidFD
	return nil
}

// lateKillBound is how long a process that nobody waits for any more may take to die.
const lateKillBound = 30 * time.Second

// endLate ends a process that came to life when nobody waited for it any more.
func (e *Exec) endLate(task uint64, started pause.Started, err error) {
	if err != nil {
		e.c.pod.unwatch(task)
		e.c.returnLeaf(e.leaf)
		return
	}
	e.pidfd = started.PidFD
	ctx, cancel := context.WithTimeout(context.Background(), lateKillBound)
	defer cancel()
	if err := e.Kill(ctx); err != nil {
		e.c.pod.runtime.config.Log.Warn("a command that nobody waits for is left", "container", e.c.record.ID, "error", err)
	}
	e.Close()
}

func (e *Exec) ended(exit pause.Exit) {
	e.code = int32(exit.Status.ExitStatus())
	if exit.Status.Signaled() {
		e.code = 128 + int32(exit.Status.Signal())
	}
	close(e.done)
}

// Done is closed when the process has exited.
func (e *Exec) Done() <-chan struct{} { return e.done }

// Code is the exit code, 128 + signal if one killed it; valid after Done.
func (e *Exec) Code() int32 { return e.code }

// Kill kills the process and all its descendants as far as they have a leaf of their own, and waits for the process.
func (e *Exec) Kill(ctx context.Context) error {
	// Not left to the leaf: a container that may write its groups can have moved the process.
	err := unix.PidfdSendSignal(int(e.pidfd.Fd()), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	if e.leaf != nil {
		e.spent = true
		err = errors.Join(err, e.leaf.Kill(ctx))
	}
	if err != nil {
		return fmt.Errorf("kill exec: %w", err)
	}
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of exec: %w", ctx.Err())
	}
}

// Close gives back what the exec holds; it must be called once, after Done or Kill. Background children of the
// process live on.
func (e *Exec) Close() {
	closeFiles([]*os.File{e.pidfd})
	if e.spent {
		_ = e.leaf.Delete(context.Background()) // what stays goes with the container
		return
	}
	e.c.returnLeaf(e.leaf)
}

// maxSpareLeaves is for how many execs at once a container keeps leaves.
const maxSpareLeaves = 8

// takeLeaf gives an exec a leaf of its own: one that an earlier exec left empty, or a new one; nil if the container has
// forbidden more groups.
func (c *Container) takeLeaf() (*cgroup.Group, error) {
	for leaf := c.takeSpare(); leaf != nil; leaf = c.takeSpare() {
		if !leaf.Gone() { // a container that may write its groups can have removed it
			return leaf, nil
		}
	}
	leaf, err := c.group.Sub(fmt.Sprintf("exec-%d", c.pod.runtime.newTask()))
	if errors.Is(err, unix.EAGAIN) {
		return nil, nil
	}
	return leaf, err
}

func (c *Container) takeSpare() *cgroup.Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.spareLeaves) - 1
	if last < 0 {
		return nil
	}
	leaf := c.spareLeaves[last]
	c.spareLeaves = c.spareLeaves[:last]
	return leaf
}

// returnLeaf keeps some empty leaves for later execs and removes others. One that background processes still use goes with
// the container.
func (c *Container) returnLeaf(leaf *cgroup.Group) {
	if leaf == nil {
		return
	}
	if empty, err := leaf.Empty(); err != nil || !empty {
		return
	}
	c.mu.Lock()
	spare := len(c.spareLeaves) < maxSpareLeaves
	if spare {
		c.spareLeaves = append(c.spareLeaves, leaf)
	}
	c.mu.Unlock()
	if !spare {
		_ = leaf.Delete(context.Background()) // what stays goes with the container
	}
}
