package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/hook"
	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// passing collects the descriptors that travel with a Program.
type passing struct {
	files []*os.File // in the order of their indices
	owned []*os.File // to be closed when the start is over
}

// give passes a file that somebody else closes.
func (p *passing) give(f *os.File) program.FD {
	p.files = append(p.files, f)
	return program.FD(len(p.files) - 1)
}

// own passes a file that is closed when the start is over.
func (p *passing) own(f *os.File) program.FD {
	p.owned = append(p.owned, f)
	return p.give(f)
}

func (p *passing) close() { closeFiles(p.owned) }

// start is one attempt to start a container.
type start struct {
	passing
	c       *Container
	spec    *specs.Spec
	trees   []Tree
	place   *cgroup.Placement       // nil: not opened yet
	watched bool                    // the leaf's files for pause are in add
	ahead   map[int][]compile.Mount // made already, by their index in the spec
	devpts  *os.File
	console bool
	add     pause.Container
	stdio   [3]program.FD
	hooking *hooking  // nil: there are no hooks
	ante    *anteroom // nil: no volume propagates
}

// newStart begins a start that has done nothing yet.
func (c *Container) newStart(spec *specs.Spec) *start {
	return &start{c: c, spec: spec, console: c.record.Process.Terminal && len(c.stdio) == 0}
}

// Start makes the container run. It can be tried once; after an error the container is as good as exited.
func (c *Container) Start(ctx context.Context) (err error) {
	c.mu.Lock()
	spec, root, trees := c.spec, c.root, c.trees
	c.spec, c.root, c.trees = nil, nil, nil
	c.mu.Unlock()
	if spec == nil || root == nil {
		return errors.New("container was started before")
	}
	s := c.takeAhead()
	s.spec, s.trees = spec, trees
	for _, t := range trees {
		s.owned = append(s.owned, t.File)
	}
	defer s.close()
	if c.hooks != nil {
		defer func() { err = errors.Join(err, c.pod.detachBundle(c.record.ID)) }()
		if root, err = s.prepareHooks(root); err != nil {
			return fmt.Errorf("prepare for hooks: %w", err)
		}
	}
	rootFD := s.own(root)
	if err := s.openStdio(); err != nil {
		return err
	}
	if err := s.openMonitors(); err != nil {
		return err
	}
	registered := s.register(ctx)
	prog, err := s.compile(ctx, rootFD)
	err = errors.Join(err, <-registered)
	if err == nil {
		err = s.run(ctx, prog)
	}
	if err != nil {
		return errors.Join(c.pod.short(c.group, err), c.pod.forget(context.WithoutCancel(ctx), c.record.ID, s.add.Task))
	}
	c.mu.Lock()
	c.record.Spec = nil
	c.mu.Unlock()
	go c.dropRoot()
	if c.hooks != nil {
		c.pod.runAfter(ctx, hook.Poststart, c.hooks.Poststart, c.hooks.state(c.pod, specs.StateRunning, c.Pid()))
	}
	return nil
}

// dropRoot makes pause close the root, which is attached now. Nobody need wait for it.
func (c *Container) dropRoot() {
	if c.pod.conn.Drop(context.Background(), keptRoot+c.record.ID) == nil { // a pause that is gone keeps nothing
		c.dropped.Store(true)
	}
}

// register tells pause of the container while everything else is prepared. The channel gives one error or nil; until then
// the files of s.add must stay open.
func (s *start) register(ctx context.Context) <-chan error {
	record := s.c.record
	s.add.Task, s.add.Name, s.add.ExitSlot, s.add.LineMax = s.c.pod.runtime.newTask(), record.ID, record.Slot, record.LineMax
	done := make(chan error, 1)
	go func() {
		err := s.c.pod.conn.Add(ctx, s.add)
		if err != nil {
			err = fmt.Errorf("register with pause: %w", err)
		}
		done <- err
	}()
	return done
}

// Explain prints the Program that Start would run, for people.
func (c *Container) Explain() (string, error) {
	c.mu.Lock()
	spec, root, trees := c.spec, c.root, c.trees
	c.mu.Unlock()
	if spec == nil || root == nil {
		return "", errors.New("container was started before")
	}
	s := c.newStart(spec)
	s.trees = trees
	defer s.close()
	rootFD := s.give(root)
	if c.hooks != nil {
		s.hooking = &hooking{in: &compile.Hooks{Host: rootFD, Sync: rootFD, Confine: len(c.hooks.StartContainer) > 0}} // the numbers do not matter
	}
	if err := s.openStdio(); err != nil {
		return "", err
	}
	prog, err := s.compile(context.Background(), rootFD)
	if err != nil {
		return "", err
	}
	return prog.Text(), nil
}

func (s *start) compile(ctx context.Context, root program.FD) (*program.Program, error) {
	if err := s.openPlace(); err != nil {
		return nil, err
	}
	process := s.c.process(&s.passing, s.place)
	mounts, err := s.mounts(ctx)
	if err != nil {
		return nil, err
	}
	covers, err := s.ownCovers()
	if err != nil {
		return nil, fmt.Errorf("make what covers masked paths: %w", err)
	}
	process.Stdio = s.stdio
	linux := s.spec.Linux
	in := compile.Container{
		Process:      process,
		Root:         root,
		RootReadonly: s.spec.Root != nil && s.spec.Root.Readonly,
		Mounts:       mounts,
		Masked:       linux.MaskedPaths,
		Covers:       covers,
		Readonly:     linux.ReadonlyPaths,
		CgroupNS:     hasNamespace(linux, specs.CgroupNamespace),
		Console:      s.console,
		Sysctls:      linux.Sysctl,
		MemoryPolicy: linux.MemoryPolicy,
		Personality:  linux.Personality,
	}
	if s.hooking != nil {
		in.Hooks = s.hooking.in
	}
	if s.ante != nil {
		in.Anteroom = s.ante.in
	}
	if strings.Contains(linux.RootfsPropagation, "shared") {
		in.RootShared = unix.MS_SHARED
	} else if strings.Contains(linux.RootfsPropagation, "slave") {
		in.RootShared = unix.MS_SLAVE
	}
	return compile.Start(in)
}

// openPlace opens what the process gets into the leaf by.
func (s *start) openPlace() (err error) {
	if s.place == nil {
		s.place, err = s.c.openPlace(&s.passing, s.c.group)
	}
	return err
}

// openPlace opens what a process gets into a group by; pass owns it.
func (c *Container) openPlace(pass *passing, group *cgroup.Group) (*cgroup.Placement, error) {
	open := group.Placement
	if c.pod.config.UserNS != nil { // from where CLONE_INTO_CGROUP is not permitted
		open = group.PlacementByWrite
	}
	place, err := open()
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	pass.owned = append(append(pass.owned, place.Tasks...), place.Dir)
	return place, nil
}

// process fills what start and exec have in common.
func (c *Container) process(pass *passing, place *cgroup.Placement) compile.Process {
	r := c.pod.runtime
	p := compile.Process{
		Spec:         c.processSpec(),
		Keyring:      c.record.ID,
		Seccomp:      c.record.Filter,
		CapLast:      r.caps.last,
		CapPermitted: r.caps.permitted,
		Rlimits:      r.own.rlimits,
		OOMScoreAdj:  &r.own.oomScore,
		UserNS:       c.pod.config.UserNS != nil,
	}
	if p.UserNS {
		p.CapPermitted = ^uint64(0)
	}
	for _, f := range place.Tasks {
		p.Tasks = append(p.Tasks, pass.give(f))
	}
	return p
}

func hasNamespace(linux *specs.Linux, kind specs.LinuxNamespaceType) bool {
	for _, n := range linux.Namespaces {
		if n.Type == kind && n.Path == "" {
			return true
		}
	}
	return false
}

// abortBound is how long pause may take to answer for a start whose context has ended and whose process was killed.
const abortBound = 10 * time.Second

// run starts the container, which is registered.
func (s *start) run(ctx context.Context, prog *program.Program) error {
	c, p := s.c, s.c.pod
	sealed, err := pause.Seal(prog.Encode())
	if err != nil {
		return err
	}
	defer sealed.Close()
	request, err := s.request(sealed)
	if err != nil {
		return err
	}
	p.watch(request.Task, c.ended)
	fresh, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	defer context.AfterFunc(ctx, func() { // pause goes on, and nothing may run that nobody knows of
		time.AfterFunc(abortBound, abandon)
		_ = c.group.Kill(fresh) // then pause answers
	})()
	started, err := s.withHooks(ctx, func() (pause.Started, error) {
		return s.withAnteroom(func() (pause.Started, error) {
			started, err := p.conn.Start(fresh, request)
			if err != nil {
				err = errors.Join(context.Cause(ctx), explain(prog, err))
			}
			return started, err
		})
	})
	if err != nil {
		p.unwatch(request.Task)
		return err
	}
	c.mu.Lock()
	c.task, c.pid, c.pidfd = request.Task, started.PID, started.PidFD
	c.mu.Unlock()
	return nil
}

// request says into which namespaces the process is born.
func (s *start) request(sealed *os.File) (pause.Start, error) {
	c := s.c
	req := pause.Start{Task: s.add.Task, CloneFlags: unix.CLONE_NEWNS, Cgroup: s.place.Dir, Program: sealed, Files: s.files}
	switch {
	case c.record.TargetPID != "":
		target, err := c.pod.target(c.record.TargetPID)
		if err != nil {
			return req, err
		}
		req.Join = target
	case c.record.SharedPID:
		if req.Join = c.pod.sharedPID(); req.Join == nil {
			return req, errors.New("the pod has no pid namespace for its containers")
		}
	case hasNamespace(s.spec.Linux, specs.PIDNamespace):
		req.CloneFlags |= unix.CLONE_NEWPID
	}
	return req, nil
}

// target returns the pidfd of a running container of the pod.
func (p *Pod) target(id string) (*os.File, error) {
	p.mu.Lock()
	c := p.containers[id]
	p.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("target container %s does not exist", id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, exited := c.Exit(); c.pidfd == nil || exited {
		return nil, fmt.Errorf("target container %s: %w", id, ErrNotRunning)
	}
	return c.pidfd, nil
}

// openMonitors opens what pause watches the leaf by.
func (s *start) openMonitors() error {
	if s.watched {
		return nil
	}
	m, err := s.c.group.MonitorFiles()
	if err != nil {
		return fmt.Errorf("open cgroup files: %w", err)
	}
	s.owned = append(s.owned, m.Events, m.Kill, m.Freezer, m.Procs, m.OOM)
	s.watched = true
	s.add.Events, s.add.Kill, s.add.Freezer, s.add.Procs, s.add.OOM = m.Events, m.Kill, m.Freezer, m.Procs, m.OOM
	return nil
}
