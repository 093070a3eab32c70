package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/store/layer"
)

// node is what outlives a criserver: a machine of which tests see every piece. Each call is a boundary before and
// after its effect, at which it can fail or criserver can be killed.
type node struct {
	mu       sync.Mutex
	pods     map[string]*fakePod
	leaves   map[string]bool // cgroups
	pins     map[string]bool // network namespaces
	attached map[string]bool // addresses
	roots    map[string]bool
	points   map[string][]layer.MountPoint // of the roots
	fail     map[string]error              // by name of the call
	calls    []string
	adopted  []digest.Digest // layers
	at       func(string)
	behind   sync.WaitGroup // what Stop leaves to be done

	ignoresTerm, unkillable bool
}

func newNode() *node {
	return &node{pods: map[string]*fakePod{}, leaves: map[string]bool{}, pins: map[string]bool{}, attached: map[string]bool{},
		roots: map[string]bool{}, points: map[string][]layer.MountPoint{}, fail: map[string]error{}}
}

// effect is one call with an effect outside. The effect takes place unless the call is to fail.
func (n *node) effect(name string, effect func()) error {
	n.mu.Lock()
	at := n.at
	n.mu.Unlock()
	if at == nil {
		at = func(string) {}
	}
	at("before " + name)
	n.mu.Lock()
	err := n.fail[name]
	n.calls = append(n.calls, name)
	if err == nil && effect != nil {
		effect()
	}
	n.mu.Unlock()
	at("after " + name)
	return err
}

// left names everything that is on the node.
func (n *node) left() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for _, m := range []struct {
		kind string
		set  map[string]bool
	}{{"leaf", n.leaves}, {"pin", n.pins}, {"address", n.attached}, {"root", n.roots}} {
		for id := range m.set {
			all = append(all, m.kind+" "+id)
		}
	}
	for id := range n.pods {
		all = append(all, "pause "+id)
	}
	slices.Sort(all)
	return all
}

// be changes how the node behaves.
func (n *node) be(change func(*node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

func (n *node) failing(name string, err error) {
	n.be(func(n *node) { n.fail[name] = err })
}

func (n *node) StartPod(_ context.Context, c ociruntime.PodConfig) (RuntimePod, error) {
	p := &fakePod{n: n, id: c.ID, exited: make(chan struct{}), containers: map[string]*fakeContainer{}, kept: map[string]bool{}}
	err := n.effect("StartPod", func() { n.pods[c.ID], n.leaves[c.ID] = p, true })
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (n *node) AdoptPod(_ context.Context, c ociruntime.PodConfig) (RuntimePod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.fail["AdoptPod"]; err != nil {
		return nil, err
	}
	if p, ok := n.pods[c.ID]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("%w: refused", ociruntime.ErrPodGone)
}

func (n *node) CleanPod(_ context.Context, c ociruntime.PodConfig, containers []string) error {
	return n.effect("CleanPod", func() {
		if p := n.pods[c.ID]; p != nil {
			p.die()
		}
		for _, id := range append(containers, c.ID) {
			delete(n.leaves, id)
		}
	})
}

func (n *node) FindParent(string, []string) (string, error) { return "", n.effect("FindParent", nil) }

func (n *node) CleanContainer(_ context.Context, _ ociruntime.PodConfig, id string) error {
	return n.effect("CleanContainer", func() { delete(n.leaves, id) })
}

// fakePod is a pause.
type fakePod struct {
	n          *node
	id         string
	exited     chan struct{}
	starved    error
	containers map[string]*fakeContainer
	kept       map[string]bool
}

// die ends pause and all containers. n.mu is held.
func (p *fakePod) die() {
	if p.n.pods[p.id] != p {
		return
	}
	delete(p.n.pods, p.id)
	for _, c := range p.containers {
		c.end(ociruntime.Exit{Code: 137, Signal: unix.SIGKILL, At: time.Now()})
	}
	close(p.exited)
}

func (p *fakePod) Pid() int                 { return 42 }
func (p *fakePod) NetNS() (*os.File, error) { return os.Open(os.DevNull) }
func (p *fakePod) Exited() <-chan struct{}  { return p.exited }
func (p *fakePod) Starved() error           { return p.starved }
func (p *fakePod) Thaw() error              { return nil }
func (p *fakePod) Cgroup() *cgroup.Group    { return nil }
func (p *fakePod) Around() *cgroup.Group    { return nil }

// Stop leaves the leaf to go in the background.
func (p *fakePod) Stop(context.Context) error {
	err := p.n.effect("Stop", p.die)
	if err == nil {
		p.n.behind.Go(func() {
			time.Sleep(time.Millisecond)
			_ = p.n.effect("RemoveLeaf", func() { delete(p.n.leaves, p.id) })
		})
	}
	return err
}

func (p *fakePod) Create(_ context.Context, c ociruntime.ContainerConfig, _ RuntimeContainer) (RuntimeContainer, error) {
	_ = c.Root.Close()
	fc := &fakeContainer{n: p.n, p: p, id: c.ID, spec: c.Spec, exited: make(chan struct{})}
	// A crash may come after the leaf was made and before the runtime has recorded the container.
	if err := p.n.effect("CreateLeaf", func() { p.n.leaves[c.ID] = true }); err != nil {
		return nil, err
	}
	if err := p.n.effect("Create", func() { p.containers[c.ID] = fc }); err != nil {
		p.n.mu.Lock()
		defer p.n.mu.Unlock()
		delete(p.n.leaves, c.ID)
		return nil, err
	}
	return fc, nil
}

func (p *fakePod) Keep(_ context.Context, name string, _ ...*os.File) error {
	return p.n.effect("Keep", func() { p.kept[name] = true })
}

func (p *fakePod) Drop(_ context.Context, name string) error {
	return p.n.effect("Drop", func() { delete(p.kept, name) })
}

func (p *fakePod) Kept(string) []*os.File {
	f, err := os.Open(os.DevNull)
	if err != nil {
		panic(err)
	}
	return []*os.File{f}
}

func (p *fakePod) KeptNames() []string {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	return slices.Sorted(maps.Keys(p.kept))
}

func (p *fakePod) Containers() []RuntimeContainer {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	var all []RuntimeContainer
	for c := range maps.Values(p.containers) {
		all = append(all, c)
	}
	return all
}

// fakeContainer is one process, or none.
type fakeContainer struct {
	n       *node
	p       *fakePod
	id      string
	spec    *specs.Spec
	exited  chan struct{}
	running bool
	done    bool
	exit    ociruntime.Exit
	signals []unix.Signal
	limits  []ociruntime.Limits // of updates
}

// end is the end of the process. n.mu is held.
func (c *fakeContainer) end(e ociruntime.Exit) {
	if !c.running {
		return
	}
	c.running, c.done, c.exit = false, true, e
	close(c.exited)
}

// exits lets the process end by itself.
func (c *fakeContainer) exits(e ociruntime.Exit) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	e.At = time.Now()
	c.end(e)
}

func (c *fakeContainer) ID() string                 { return c.id }
func (c *fakeContainer) Cgroup() *cgroup.Group      { return nil }
func (c *fakeContainer) Spec() (*specs.Spec, error) { return c.spec, nil }
func (c *fakeContainer) Pid() int {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.running {
		return 43
	}
	return 0
}

func (c *fakeContainer) Start(context.Context) error {
	return c.n.effect("Start", func() { c.running = true })
}

func (c *fakeContainer) Signal(sig unix.Signal) error {
	return c.n.effect("Signal", func() {
		c.signals = append(c.signals, sig)
		if !c.n.ignoresTerm {
			c.end(ociruntime.Exit{Code: 128 + int32(sig), Signal: sig, At: time.Now()})
		}
	})
}

func (c *fakeContainer) Kill(ctx context.Context) error {
	c.n.mu.Lock()
	unkillable := c.n.unkillable
	c.n.mu.Unlock()
	if unkillable {
		<-ctx.Done()
		return fmt.Errorf("1 task in state D: %w", ctx.Err())
	}
	return c.n.effect("Kill", func() { c.end(ociruntime.Exit{Code: 137, Signal: unix.SIGKILL, At: time.Now()}) })
}

func (c *fakeContainer) Exited() <-chan struct{} { return c.exited }
func (c *fakeContainer) Exit() (ociruntime.Exit, bool) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	return c.exit, c.done
}

// Update has limits of its own, so that tests see what was put back.
func (c *fakeContainer) Update(l ociruntime.Limits) (func() error, error) {
	var before []ociruntime.Limits
	err := c.n.effect("Update", func() { before, c.limits = c.limits, append(c.limits[:len(c.limits):len(c.limits)], l) })
	if err != nil {
		return nil, err
	}
	return func() error { return c.n.effect("UndoUpdate", func() { c.limits = before }) }, nil
}

func (c *fakeContainer) ReopenLog(context.Context, string) error { return c.n.effect("ReopenLog", nil) }
func (c *fakeContainer) Delete(context.Context) error {
	return c.n.effect("Delete", func() {
		delete(c.p.containers, c.id)
		delete(c.n.leaves, c.id)
	})
}

// Exec runs a real command, in a process group of its own.
func (c *fakeContainer) Exec(_ context.Context, e ociruntime.ExecConfig) (RuntimeExec, error) {
	if err := c.n.effect("Exec", nil); err != nil {
		return nil, err
	}
	cmd := exec.Command(e.Args[0], e.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = orNull(e.Stdin), orNull(e.Stdout), orNull(e.Stderr)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	fe := &fakeExec{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(fe.done)
	}()
	return fe, nil
}

// orNull keeps a nil file from becoming an interface that is not nil.
func orNull(f *os.File) *os.File {
	if f == nil {
		f, _ = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	return f
}

func (c *fakeContainer) Terminal() (master, slave *os.File, err error) {
	return nil, nil, errors.New("no terminals here")
}

func (c *fakeContainer) Attach(context.Context, ociruntime.AttachConfig) (*ociruntime.Attachment, error) {
	return nil, errors.New("nobody can attach here")
}

func (c *fakeContainer) EndStdin(context.Context) error               { return nil }
func (c *fakeContainer) Resize(context.Context, uint16, uint16) error { return nil }

type fakeExec struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (e *fakeExec) Done() <-chan struct{} { return e.done }
func (e *fakeExec) Code() int32           { return int32(e.cmd.ProcessState.ExitCode()) }
func (e *fakeExec) Close()                {}
func (e *fakeExec) Kill(context.Context) error {
	_ = unix.Kill(-e.cmd.Process.Pid, unix.SIGKILL)
	<-e.done
	return nil
}

func (n *node) Plan(a cni.Attachment) (cni.Debt, error) {
	return cni.Debt{Attachment: a, ConfList: []byte("{}"), Since: time.Now()}, n.effect("Plan", nil)
}

func (n *node) Add(_ context.Context, d cni.Debt) (*cni.Result, error) {
	if err := n.effect("Add", func() { n.attached[d.Attachment.ContainerID] = true }); err != nil {
		// as of a chain whose second plugin failed and whose undoing failed as well
		return nil, &cni.AddError{Err: err, Undo: errors.New("DEL failed")}
	}
	return &cni.Result{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.7")}, Raw: []byte(`{"r":1}`)}, nil
}

func (n *node) Del(_ context.Context, d cni.Debt) error {
	return n.effect("Del", func() { delete(n.attached, d.Attachment.ContainerID) })
}

// GC drops addresses that are not in live, as plugins do.
func (n *node) GC(_ context.Context, live []cni.Attached) error {
	return n.effect("GC", func() {
		maps.DeleteFunc(n.attached, func(id string, _ bool) bool {
			return !slices.ContainsFunc(live, func(a cni.Attached) bool { return a.ContainerID == id })
		})
	})
}

// Kept and Adopt are those of a layer store.
func (n *node) Kept(digest.Digest) (*os.File, error) { return os.Open(os.DevNull) }

func (n *node) Adopt(f *os.File) (digest.Digest, error) {
	return testLayer, errors.Join(f.Close(), n.effect("Adopt", func() { n.adopted = append(n.adopted, testLayer) }))
}

// testLayer is the only layer of testImage.
var testLayer = digest.FromString("layer")

const testImage = "docker.io/library/test:1"

func (n *node) Config(ref string) (string, string, ocispec.Image, error) {
	if ref != testImage {
		return "", "", ocispec.Image{}, ErrNotFound
	}
	return "sha256:" + newID(), "docker.io/library/test@sha256:00", ocispec.Image{Config: ocispec.ImageConfig{
		Volumes: map[string]struct{}{"/data": {}}, StopSignal: "SIGQUIT"},
		RootFS: ocispec.RootFS{DiffIDs: []digest.Digest{testLayer}}}, nil
}

func (n *node) Volume(ref string) (string, error) {
	id, _, _, err := n.Config(ref)
	return id, err
}

func (n *node) Rootfs(_ context.Context, _, id string, o layer.RootOptions) (*os.File, error) {
	if err := n.effect("Rootfs", func() { n.roots[id], n.points[id] = true, o.MountPoints }); err != nil {
		return nil, err
	}
	return os.Open("/")
}

func (n *node) ReleaseRootfs(_ context.Context, id string) error {
	return n.effect("ReleaseRootfs", func() { delete(n.roots, id) })
}

func (n *node) rootIDs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.roots))
}

func (n *node) pin(_ *os.File, path string) error {
	return n.effect("Pin", func() { n.pins[filepath.Base(path)] = true })
}

func (n *node) unpin(path string) error {
	return n.effect("Unpin", func() { delete(n.pins, filepath.Base(path)) })
}
