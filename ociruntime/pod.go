package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/pause"
)

// Files in a pod's directory.
const (
	socketName  = "pause.sock"
	exitsName   = "exits"
	parentsName = "cgroup-parents" // one a line
	// ShmName is the source, in the pod's directory, by which a spec asks for the pod's /dev/shm.
	ShmName = "shm"
)

// Names of descriptors that pause keeps for this package; others begin with callerPrefix.
const (
	keptShm      = "shm"
	keptReaper   = "reaper"
	keptRoot     = "root/"
	callerPrefix = "x/"
)

const defaultShmSize = 64 << 20

// IDMap is the mapping of a pod's user namespace.
type IDMap struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// PodConfig says what a pod's sandbox is to be.
type PodConfig struct {
	ID           string            // 64 hex digits
	UID          string            // the kubelet's; a CgroupParent that is named after it is this pod's alone
	Dir          string            // existing directory of this pod
	Hostname     string            // in the pod's uts namespace
	HostNetwork  bool              // no network namespace of its own
	HostIPC      bool              // no ipc namespace of its own
	SharedPID    bool              // the pid namespace for all containers that ask for it, with a PID 1 that reaps, is there from the begin
	CgroupParent string            // as the CRI gives it; "" is the root
	Sysctls      map[string]string // dotted or slashed names
	UserNS       *IDMap            // nil: the host's
	ShmSize      int64             // bytes of /dev/shm; 0: 64 MiB
	MountLabel   string            // SELinux label of /dev/shm and /dev/mqueue; "": the policy's
}

// Pod is a running pause and what belongs to it.
type Pod struct {
	runtime *Runtime
	config  PodConfig
	conn    *pause.Conn
	group   *cgroup.Group
	scope   *cgroup.Scope // with systemd
	parent  string        // cgroup in which containers get their leaves
	parents []string      // cgroup directories above the leaves that were made for this pod
	reaper  *os.File      // pidfd of PID 1 of the shared pid namespace, or nil
	shm     *os.File      // tmpfs, or nil with the host's ipc namespace
	shmNS   *os.File      // mount namespace that shm is attached in alone; nil: it is detached, or attached on the host
	native  bool          // its pause was born in the minimal namespace of this Runtime, not of an earlier one
	exited  chan struct{}
	turn    chan struct{} // has one value; whoever makes the shared pid namespace takes it meanwhile

	forsaken atomic.Bool           // its adoption has failed; its pause lives and is nobody's business
	starved  atomic.Pointer[error] // see Starved; stored before the ends of containers are told and exited is closed

	mu         sync.Mutex                  // also for group and scope, which enterScope sets while pause is followed already
	tasks      map[uint64]func(pause.Exit) // whom to tell of an exit
	early      map[uint64]pause.Exit       // during adoption: those that there was nobody to tell of yet; else nil
	containers map[string]*Container
	slots      []bool // exit slots in use
	kept       map[string][]*os.File
}

// Pid is pause's, in criserver's pid namespace.
func (p *Pod) Pid() int { return p.conn.Hello().PID }

// Exited is closed when pause is gone.
func (p *Pod) Exited() <-chan struct{} { return p.exited }

// Starved is an ErrPodStarved if that is how pause ended; nil if not, or as long as Exited is open.
func (p *Pod) Starved() error {
	if err := p.starved.Load(); err != nil {
		return *err
	}
	return nil
}

// NetNS opens the pod's network namespace.
func (p *Pod) NetNS() (*os.File, error) { return p.namespace("net") }

func (p *Pod) namespace(kind string) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/%s", p.Pid(), kind))
}

// needReaper makes the shared pid namespace for a container that asks for it, unless it is there.
func (p *Pod) needReaper(ctx context.Context) error {
	select {
	case <-p.turn:
		defer func() { p.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.sharedPID() != nil {
		return nil
	}
	if err := p.startReaper(ctx); err != nil {
		return fmt.Errorf("start PID 1 of the pod: %w", err)
	}
	return nil
}

// sharedPID is the shared pid namespace, nil if there is none.
func (p *Pod) sharedPID() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reaper
}

func (p *Pod) startReaper(ctx context.Context) error {
	task := p.runtime.newTask()
	p.watch(task, func(pause.Exit) {})
	started, err := p.conn.Start(ctx, pause.Start{Task: task, Reaper: true, CloneFlags: unix.CLONE_NEWPID})
	if err != nil {
		p.unwatch(task)
		return err
	}
	defer started.PidFD.Close()
	// The namespace itself, not a pidfd: from inside a user namespace the latter would need rights over the reaper.
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", started.PID))
	if err != nil {
		return err
	}
	if err := p.conn.Keep(ctx, keptReaper, []*os.File{ns}); err != nil {
		_ = ns.Close()
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaper = ns
	return nil
}

// watch says whom to tell of the exit of a task; it must come before the start.
func (p *Pod) watch(task uint64, tell func(pause.Exit)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks[task] = tell
}

func (p *Pod) unwatch(task uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tasks, task)
}

// follow passes exits on until pause is gone.
func (p *Pod) follow() {
	defer close(p.exited)
	for {
		exit, err := p.conn.Next()
		if err != nil {
			p.lost()
			return
		}
		p.mu.Lock()
		tell := p.tasks[exit.Task]
		delete(p.tasks, exit.Task)
		if tell == nil && p.early != nil {
			p.early[exit.Task] = exit
		}
		p.mu.Unlock()
		if tell != nil {
			tell(exit)
		}
	}
}

// lost runs when the connection has ended. Unless criserver closed it, pause is dying: its containers are killed with
// it by the kernel, what they left in their leaves is killed by the owner of the pod.
func (p *Pod) lost() {
	if p.forsaken.Load() {
		return
	}
	if err := p.starvation(); err != nil { // asked while pause is dying: when it is dead systemd removes what counts the kill
		p.starved.Store(&err)
	}
	waitDead(p.conn.PidFD())
	p.mu.Lock()
	tasks := p.tasks
	p.tasks = map[uint64]func(pause.Exit){}
	p.mu.Unlock()
	for task, tell := range tasks {
		tell(pause.Exit{Task: task, Status: unix.WaitStatus(unix.SIGKILL)})
	}
}

// waitDead blocks until the process behind a pidfd is dead and reaps it if it is criserver's child.
func waitDead(pidfd *os.File) {
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), nil, unix.WEXITED, nil) // ECHILD after a restart: init reaps
}

// Stop kills pause, with it everything that is left of the pod. It may be repeated. What is empty then, pause's cgroup leaf, goes in
// the background; CleanPod and Runtime.Close wait for that.
func (p *Pod) Stop(ctx context.Context) error {
	if err := p.Thaw(); err != nil {
		return err
	}
	if err := p.killPause(ctx); err != nil {
		return err
	}
	if err := p.killRest(ctx); err != nil {
		return err
	}
	if p.scope != nil { // systemd forgets it only when it is told
		if err := p.removeGroup(ctx); err != nil {
			return err
		}
		p.release()
		return nil
	}
	p.runtime.endings.begin(p.config.ID, func() {
		p.release()
		if err := p.removeGroup(context.WithoutCancel(ctx)); err != nil { // CleanPod tries again
			p.runtime.config.Log.Warn("cannot remove what is left of a stopped pod", "pod", p.config.ID, "error", err)
		}
	})
	return nil
}

// killPause returns when pause is dead. One that is known to be dead is left alone: what an earlier Stop does in the background
// closes its pidfd.
func (p *Pod) killPause(ctx context.Context) error {
	select {
	case <-p.exited:
		return nil
	default:
	}
	if err := unix.PidfdSendSignal(int(p.conn.PidFD().Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill pause: %w", err)
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of pause %d: %w", p.Pid(), ctx.Err())
	}
}

// Thaw lets pause work again if somebody has frozen the pod.
func (p *Pod) Thaw() error {
	if p.group == nil {
		return nil
	}
	return p.group.Thaw()
}

// killRest kills what pause left in its leaf.
func (p *Pod) killRest(ctx context.Context) error {
	if p.group == nil {
		return nil
	}
	if empty, err := p.group.Empty(); err == nil && empty {
		return nil
	}
	if err := p.group.Kill(ctx); err != nil {
		return fmt.Errorf("kill what is left in the sandbox's cgroup: %w", err)
	}
	return nil
}

// removeGroup removes pause's leaf, which is empty, and the scope around it.
func (p *Pod) removeGroup(ctx context.Context) error {
	if p.group != nil {
		p.mu.Lock()
		parents := p.parents
		p.mu.Unlock()
		if err := p.group.Delete(ctx, parents...); err != nil {
			return fmt.Errorf("remove the sandbox's cgroup: %w", err)
		}
	}
	if p.scope != nil {
		return p.removeScope(ctx)
	}
	return nil
}

// removeScope kills whoever is in the scope that nobody knows of, and has systemd remove it. Without a connection to systemd,
// which is no longer the driver then, it does so in its own time.
func (p *Pod) removeScope(ctx context.Context) error {
	group, err := p.runtime.config.Cgroups.Open(path.Split(p.scope.Path()))
	if err != nil {
		return err
	}
	if err := group.Kill(ctx); err != nil {
		return fmt.Errorf("kill what is left in the pod's scope: %w", err)
	}
	if p.runtime.config.Systemd == nil {
		return nil
	}
	if err := p.scope.Stop(ctx, p.runtime.config.Systemd); err != nil {
		return err
	}
	if err := group.Delete(ctx); err != nil { // systemd tries once, and in v1 what has just ended may still be in a leaf
		return fmt.Errorf("remove the pod's scope: %w", err)
	}
	return nil
}

// release closes what criserver holds of the pod.
func (p *Pod) release() {
	p.mu.Lock()
	kept, own := p.kept, []*os.File{p.shm, p.shmNS, p.reaper}
	p.kept, p.shm, p.shmNS, p.reaper = nil, nil, nil, nil
	p.mu.Unlock()
	for _, files := range kept {
		closeFiles(files)
	}
	closeFiles(own)
	_ = p.conn.Close()
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Keep lets pause keep descriptors under a name, so that they outlive criserver.
func (p *Pod) Keep(ctx context.Context, name string, files ...*os.File) error {
	return p.conn.Keep(ctx, callerPrefix+name, files)
}

// Drop ends Keep.
func (p *Pod) Drop(ctx context.Context, name string) error {
	return p.conn.Drop(ctx, callerPrefix+name)
}

// Kept returns, once and only after AdoptPod, the descriptors that an earlier criserver gave to Keep. They are the caller's.
func (p *Pod) Kept(name string) []*os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := p.kept[callerPrefix+name]
	delete(p.kept, callerPrefix+name)
	return files
}

// KeptNames lists the names that Kept would answer.
func (p *Pod) KeptNames() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for n := range p.kept {
		if name, ok := strings.CutPrefix(n, callerPrefix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// takeSlot reserves an exit slot.
func (p *Pod) takeSlot() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, used := range p.slots {
		if !used {
			p.slots[i] = true
			return i, nil
		}
	}
	return 0, fmt.Errorf("the pod has %d containers, exited ones included, and cannot have more", len(p.slots))
}

func (p *Pod) freeSlot(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots[i] = false
}

func (p *Pod) path(name string) string { return filepath.Join(p.config.Dir, name) }

// root is the host's id of the namespace's root.
func (m *IDMap) root() (uid, gid uint32) {
	if m == nil {
		return 0, 0
	}
	return hostID(m.UIDs, 0), hostID(m.GIDs, 0)
}

// hostID maps an id of the namespace; one that is not mapped becomes the overflow id.
func hostID(maps []specs.LinuxIDMapping, id uint32) uint32 {
	if len(maps) == 0 {
		return id
	}
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID
		}
	}
	return 65534
}
