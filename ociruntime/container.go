package ociruntime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/seccomp"
	"github.com/criserver/criserver/pause"
)

// ContainerConfig says what a container is to be.
type ContainerConfig struct {
	ID        string
	Spec      *specs.Spec // complete; not changed and not kept after Start
	Root      *os.File    // detached mount of the root file system; Create takes it over, also when it fails
	LogPath   string      // absolute; "": the output is read and thrown away
	LineMax   int         // bytes of content in a log record; 0: 16 KiB
	Stdin     bool        // a pipe or the terminal instead of /dev/null
	SharedPID bool        // joins the pod's pid namespace
	TargetPID *Container  // joins the pid namespace of that one
	Trees     []Tree      // what mounts of the spec name as source and is no path of the host; taken over like Root
	Stdio     []*os.File  // three, instead of the log and pipes to pause; the caller closes them after Start
}

// Tree is a detached mount that a bind mount of a spec attaches as it is, instead of a clone of a path.
type Tree struct {
	Source string // as in the spec; absolute
	File   *os.File
}

// Exit is the end of a container.
type Exit struct {
	Code      int32 // 128 + signal if one killed it
	Signal    unix.Signal
	At        time.Time
	OOMKilled bool   // the kernel killed in it for want of memory, or pause and so all of it
	LogBehind bool   // the log had not taken everything when this was recorded
	Message   string // what the rest does not say; may be empty
}

// Container is one container of a pod.
type Container struct {
	pod    *Pod
	record record
	group  *cgroup.Group
	hooks  *hooks // nil: none
	exited chan struct{}

	mu    sync.Mutex
	spec  *specs.Spec // until Start
	root  *os.File    // until Start
	trees []Tree      // until Start
	ahead *ahead      // until Start or aheadBound; nil: nothing was made ahead
	stdio []*os.File  // until Start; see ContainerConfig
	task  uint64      // 0 before Start
	pid   int
	pidfd *os.File
	exit  Exit

	stdins map[*os.File]struct{} // what attached clients write to

	spareLeaves []*cgroup.Group // of earlier execs, empty
	dropped     atomic.Bool     // pause is known not to keep the root any more
}

// record is what must be known of a container after a restart of criserver.
type record struct {
	ID        string
	Slot      int
	LogPath   string
	LineMax   int
	Stdin     bool
	SharedPID bool
	TargetPID string          `json:",omitempty"` // container id
	Trees     []string        `json:",omitempty"` // sources, in the order in which pause keeps the trees behind the root
	Label     string          `json:",omitempty"` // SELinux label of its file systems and streams
	Process   *specs.Process  // its Env is here only in memory
	Env       [][]byte        // JSON would change what is not UTF-8
	Filter    *compile.Filter `json:",omitempty"`
	Spec      *specs.Spec     `json:",omitempty"` // without process; of a container that was started only on disk
}

// ID is the container's.
func (c *Container) ID() string { return c.record.ID }

// Spec is what the container was made of, with the limits that it has now. It is read from disk.
func (c *Container) Spec() (*specs.Spec, error) {
	var r record
	if err := readRecord(c.pod.recordPath(c.record.ID), &r); err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.record.ID, err)
	}
	if r.Spec == nil {
		return nil, fmt.Errorf("record of container %s has no spec", c.record.ID)
	}
	r.Spec.Process = r.Process
	return r.Spec, nil
}

// Pid is that of the first process in criserver's pid namespace, 0 before Start.
func (c *Container) Pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// Exited is closed when the exit is recorded and the leaf is empty.
func (c *Container) Exited() <-chan struct{} { return c.exited }

// Exit is valid once Exited is closed.
func (c *Container) Exit() (Exit, bool) {
	select {
	case <-c.exited:
		return c.exit, true
	default:
		return Exit{}, false
	}
}

// Create prepares a container: cgroup leaf with its limits, root file system, record. On error nothing is left.
func (p *Pod) Create(ctx context.Context, cc ContainerConfig) (_ *Container, err error) {
	c := &Container{pod: p, exited: make(chan struct{}), spec: cc.Spec, root: cc.Root, trees: cc.Trees, stdio: cc.Stdio}
	undo := undoList{}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	undo.add(func() error { closeFiles(cc.roots()); return nil })
	kept := p.keepRoot(ctx, cc)
	undo.add(func() error { <-kept; return p.forget(context.WithoutCancel(ctx), cc.ID, 0) })
	if c.record, err = newRecord(cc); err != nil {
		return nil, err
	}
	if cc.SharedPID {
		if err = p.needReaper(ctx); err != nil {
			return nil, err
		}
	}
	if c.record.Slot, err = p.takeSlot(); err != nil {
		return nil, err
	}
	undo.add(func() error { p.freeSlot(c.record.Slot); return nil })
	noted := p.note(cc, c.record)
	undo.add(func() error { return p.forgetRecord(cc.ID) })
	c.group, err = p.createLeaf(p.parent, cc.ID, cc.Spec.Linux.Resources)
	if c.group != nil {
		undo.add(func() error { return c.group.Delete(context.WithoutCancel(ctx)) })
	}
	if err != nil {
		err = fmt.Errorf("create cgroup: %w", err)
	}
	if err = errors.Join(err, <-noted); err != nil {
		return nil, err
	}
	if c.hooks = hooksOf(cc.ID, cc.Spec); c.hooks != nil {
		undo.add(func() error { return os.RemoveAll(p.bundle(cc.ID)) })
		if err = p.writeBundle(cc.ID, cc.Spec); err != nil {
			return nil, fmt.Errorf("write the bundle: %w", err)
		}
	}
	if err = <-kept; err != nil {
		return nil, fmt.Errorf("keep the root: %w", p.short(p.group, err))
	}
	p.mu.Lock()
	p.containers[cc.ID] = c
	p.mu.Unlock()
	c.startAhead()
	return c, nil
}

// note prepares the root and writes the record, while the leaf is made. The channel gives one error or nil; until then the root must
// stay open.
func (p *Pod) note(cc ContainerConfig, r record) <-chan error {
	noted := make(chan error, 1)
	go func() {
		err := p.prepareRoot(cc.Spec, cc.Root)
		if err != nil {
			err = fmt.Errorf("prepare root file system: %w", err)
		} else {
			err = writeRecord(p.recordPath(cc.ID), r)
		}
		noted <- err
	}()
	return noted
}

// forgetRecord removes a record, if there is one.
func (p *Pod) forgetRecord(id string) error {
	if err := os.Remove(p.recordPath(id)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// roots are the root and the trees.
func (cc ContainerConfig) roots() []*os.File {
	files := []*os.File{cc.Root}
	for _, t := range cc.Trees {
		files = append(files, t.File)
	}
	return files
}

// keepRoot lets pause keep the root and the trees, so that they outlive criserver, while the rest is prepared. The channel gives one error
// or nil and is closed; until then the root must stay open.
func (p *Pod) keepRoot(ctx context.Context, cc ContainerConfig) <-chan error {
	kept := make(chan error, 1)
	go func() {
		defer close(kept)
		kept <- p.conn.Keep(ctx, keptRoot+cc.ID, cc.roots())
	}()
	return kept
}

func newRecord(cc ContainerConfig) (record, error) {
	if cc.Spec == nil || cc.Spec.Process == nil || cc.Spec.Linux == nil {
		return record{}, errors.New("spec lacks process or linux")
	}
	if err := checkFields(cc.Spec); err != nil {
		return record{}, err
	}
	filter, err := compileFilter(cc.Spec.Linux.Seccomp)
	if err != nil {
		return record{}, err
	}
	rest := *cc.Spec
	rest.Process = nil
	r := record{ID: cc.ID, LogPath: cc.LogPath, LineMax: cc.LineMax, Stdin: cc.Stdin, SharedPID: cc.SharedPID,
		Label: cc.Spec.Linux.MountLabel, Process: cc.Spec.Process, Filter: filter, Spec: &rest}
	for _, t := range cc.Trees {
		r.Trees = append(r.Trees, t.Source)
	}
	if cc.TargetPID != nil {
		r.TargetPID = cc.TargetPID.ID()
	}
	return r, nil
}

func compileFilter(profile *specs.LinuxSeccomp) (*compile.Filter, error) {
	if profile == nil {
		return nil, nil
	}
	f, err := seccomp.Compile(profile)
	if err != nil {
		return nil, fmt.Errorf("compile seccomp profile: %w", err)
	}
	return &compile.Filter{Code: f.Code, Flags: f.Flags}, nil
}

func (p *Pod) recordPath(id string) string { return p.path("oci-" + id + ".json") }

// writeRecord replaces a record in one step. It is not synced: after a reboot it is worthless.
func writeRecord(path string, r record) error {
	process := *r.Process
	for _, e := range process.Env {
		r.Env = append(r.Env, []byte(e))
	}
	process.Env = nil
	r.Process = &process
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readRecord(path string, r *record) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, r); err != nil {
		return fmt.Errorf("decode record %s: %w", path, err)
	}
	if r.Process == nil {
		return fmt.Errorf("decode record %s: it has no process", path)
	}
	for _, e := range r.Env {
		r.Process.Env = append(r.Process.Env, string(e))
	}
	r.Env = nil
	return nil
}

// Containers lists those that this pod has.
func (p *Pod) Containers() []*Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*Container, 0, len(p.containers))
	for _, c := range p.containers {
		all = append(all, c)
	}
	return all
}

// ended records the exit. It is called once, by the goroutine that follows pause or by adoption.
func (c *Container) ended(e pause.Exit) {
	exit := Exit{Code: int32(e.Status.ExitStatus()), At: e.At, LogBehind: e.LogBehind}
	if e.Status.Signaled() {
		exit.Signal = e.Status.Signal()
		exit.Code = 128 + int32(exit.Signal)
	}
	exit.OOMKilled = e.OOMKills > 0 && exit.Code != 0
	if err := c.pod.Starved(); err != nil && exit.Signal == unix.SIGKILL {
		exit.OOMKilled, exit.Message = true, err.Error()
	}
	if e.At.IsZero() {
		exit.At = time.Now()
	}
	c.exit = exit
	close(c.exited)
}

// Signal sends a signal to the first process.
func (c *Container) Signal(sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd == nil {
		return ErrNotRunning
	}
	if err := unix.PidfdSendSignal(int(c.pidfd.Fd()), sig, nil, 0); errors.Is(err, unix.ESRCH) {
		return ErrNotRunning
	} else if err != nil {
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	return nil
}

// Kill kills everything in the container's leaf and returns when it is empty, or with ctx's error.
func (c *Container) Kill(ctx context.Context) error { return c.group.Kill(ctx) }

// ReopenLog makes the log go on in a new file at path, created if it is missing.
func (c *Container) ReopenLog(ctx context.Context, path string) error {
	c.mu.Lock()
	task := c.task
	c.mu.Unlock()
	if _, exited := c.Exit(); task == 0 || exited {
		return ErrNotRunning
	}
	f, err := openLog(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.pod.conn.ReopenLog(ctx, task, f)
}

const logMode = 0o640

func openLog(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, logMode)
	if err != nil {
		return nil, &os.PathError{Op: "open log", Path: path, Err: err}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Delete forgets a container that is not running and removes its leaf. It may be repeated.
func (c *Container) Delete(ctx context.Context) error {
	c.dropAhead()
	c.mu.Lock()
	task, held := c.task, append(ContainerConfig{Root: c.root, Trees: c.trees}.roots(), c.pidfd)
	c.root, c.trees, c.pidfd = nil, nil, nil
	c.mu.Unlock()
	closeFiles(held)
	var errs []error
	if err := c.forget(ctx, task); err != nil {
		errs = append(errs, fmt.Errorf("make pause forget: %w", err))
	}
	if err := c.group.Delete(ctx); err != nil {
		errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
	}
	if c.hooks != nil {
		if err := c.pod.removeBundle(ctx, c.record.ID, c.hooks); err != nil {
			errs = append(errs, fmt.Errorf("remove the bundle: %w", err))
		}
	}
	if err := c.pod.forgetRecord(c.record.ID); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if c.pod.containers[c.record.ID] == c {
		delete(c.pod.containers, c.record.ID)
		c.pod.slots[c.record.Slot] = false
	}
	return nil
}

// forget is Pod.forget, without asking for what is known to be dropped.
func (c *Container) forget(ctx context.Context, task uint64) error {
	if !c.dropped.Load() {
		return c.pod.forget(ctx, c.record.ID, task)
	}
	return gone(c.pod.conn.Remove(ctx, task))
}

// forget makes pause drop a container; a pause that is gone has forgotten everything.
func (p *Pod) forget(ctx context.Context, id string, task uint64) error {
	err := gone(p.conn.Drop(ctx, keptRoot+id))
	if err == nil && task != 0 {
		err = gone(p.conn.Remove(ctx, task))
	}
	return err
}

// gone turns the error that there is nothing to forget into nil.
func gone(err error) error {
	if errors.Is(err, pause.ErrGone) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// undoList holds what gives back what was taken, undone in reverse.
type undoList []func() error

func (u *undoList) add(f func() error) { *u = append(*u, f) }

func (u undoList) run() error {
	var errs []error
	for i := len(u) - 1; i >= 0; i-- {
		errs = append(errs, u[i]())
	}
	return errors.Join(errs...)
}
