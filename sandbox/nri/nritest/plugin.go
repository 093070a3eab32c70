// Package nritest has a plugin for tests: it connects to an NRI socket as a real one does, with NRI's own stub, remembers
// what it is told, and answers as the test wants.
package nritest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// Event is what a plugin was told.
type Event struct {
	Name      string
	Pod       *api.PodSandbox
	Container *api.Container // nil: it is about the pod
}

// String is "RunPodSandbox pod", "StartContainer pod/container".
func (e Event) String() string {
	if e.Container == nil {
		return e.Name + " " + e.Pod.GetName()
	}
	return e.Name + " " + e.Pod.GetName() + "/" + e.Container.GetName()
}

// Plugin is one plugin. Its functions are set before Connect, and may be nil.
type Plugin struct {
	Name, Index string             // empty: "test", "10"
	Policy      *api.FailurePolicy // nil: NRI's default
	On          func(context.Context, Event) error
	Sync        func(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error)
	Adjust      func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate)
	Update      func(c *api.Container, asked *api.LinuxResources) []*api.ContainerUpdate
	OnStop      func(*api.Container) []*api.ContainerUpdate

	stub   stub.Stub
	closed chan struct{}

	mu         sync.Mutex
	more       chan struct{} // closed at the next event
	events     []Event
	synced     bool
	pods       []*api.PodSandbox
	containers []*api.Container
}

// Connect registers p, waits until it was told of everything, and disconnects it at the end of the test.
func Connect(t testing.TB, socket string, p *Plugin) *Plugin {
	t.Helper()
	p.Dial(t, socket)
	p.AwaitSync(t)
	return p
}

// AwaitSync waits until p was told of everything.
func (p *Plugin) AwaitSync(t testing.TB) {
	t.Helper()
	p.await(t, "synchronisation", p.isSynced)
}

// IsSynced says whether it was.
func (p *Plugin) IsSynced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.isSynced()
}

func (p *Plugin) isSynced() bool { return p.synced }

// Dial registers p. It is told of everything later.
func (p *Plugin) Dial(t testing.TB, socket string) {
	t.Helper()
	if p.Name == "" {
		p.Name = "test"
	}
	if p.Index == "" {
		p.Index = "10"
	}
	p.more, p.closed = make(chan struct{}), make(chan struct{})
	options := []stub.Option{stub.WithSocketPath(socket), stub.WithPluginName(p.Name), stub.WithPluginIdx(p.Index), stub.WithLogger(silent{}),
		stub.WithOnClose(func() { close(p.closed) })}
	if p.Policy != nil {
		options = append(options, stub.WithFailurePolicy(p.Policy))
	}
	var err error
	if p.stub, err = stub.New(p, options...); err != nil {
		t.Fatalf("make plugin %s: %v", p.Name, err)
	}
	if err := p.stub.Start(context.Background()); err != nil {
		t.Fatalf("connect plugin %s: %v", p.Name, err)
	}
	t.Cleanup(p.Close)
}

// Close disconnects it.
func (p *Plugin) Close() { p.stub.Stop() }

// Closed is closed when the connection ends.
func (p *Plugin) Closed() <-chan struct{} { return p.closed }

// UpdateContainers is an update that nobody asked for.
func (p *Plugin) UpdateContainers(updates ...*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	return p.stub.UpdateContainers(updates)
}

// Events returns what it was told so far, but synchronisation.
func (p *Plugin) Events() []Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// Text is one line an event.
func (p *Plugin) Text() string {
	var lines []string
	for _, e := range p.Events() {
		lines = append(lines, e.String())
	}
	return strings.Join(lines, "\n")
}

// Last finds the newest event of a name.
func (p *Plugin) Last(t testing.TB, name string) Event {
	t.Helper()
	for _, e := range slices.Backward(p.Events()) {
		if e.Name == name {
			return e
		}
	}
	t.Fatalf("plugin %s was not told %s, but\n%s", p.Name, name, p.Text())
	return Event{}
}

// Synced returns what it was told when it connected.
func (p *Plugin) Synced() ([]*api.PodSandbox, []*api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods, p.containers
}

// Await waits until it was told n events of a name.
func (p *Plugin) Await(t testing.TB, name string, n int) {
	t.Helper()
	p.await(t, fmt.Sprintf("%d of %s", n, name), func() bool {
		told := 0
		for _, e := range p.events {
			if e.Name == name {
				told++
			}
		}
		return told >= n
	})
}

// await waits for a condition, which is looked at under mu.
func (p *Plugin) await(t testing.TB, what string, met func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		p.mu.Lock()
		done, more := met(), p.more
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("plugin %s waits in vain for %s; it was told\n%s", p.Name, what, p.Text())
		}
	}
}

func (p *Plugin) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.more)
	p.more = make(chan struct{})
}

func (p *Plugin) told(ctx context.Context, e Event) error {
	p.note(func() { p.events = append(p.events, e) })
	if p.On != nil {
		return p.On(ctx, e)
	}
	return nil
}

// Synchronize and what follows are what the stub calls.
func (p *Plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) (updates []*api.ContainerUpdate, err error) {
	if p.Sync != nil {
		updates, err = p.Sync(ctx, pods, containers)
	}
	p.note(func() { p.pods, p.containers, p.synced = pods, containers, true })
	return updates, err
}

func (p *Plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.told(ctx, Event{"RunPodSandbox", pod, nil})
}

func (p *Plugin) UpdatePodSandbox(ctx context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.told(ctx, Event{"UpdatePodSandbox", pod, nil})
}

func (p *Plugin) PostUpdatePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.told(ctx, Event{"PostUpdatePodSandbox", pod, nil})
}

func (p *Plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.told(ctx, Event{"StopPodSandbox", pod, nil})
}

func (p *Plugin) RemovePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.told(ctx, Event{"RemovePodSandbox", pod, nil})
}

func (p *Plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.told(ctx, Event{"CreateContainer", pod, c}); err != nil || p.Adjust == nil {
		return nil, nil, err
	}
	adjustment, updates := p.Adjust(pod, c)
	return adjustment, updates, nil
}

func (p *Plugin) PostCreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.told(ctx, Event{"PostCreateContainer", pod, c})
}

func (p *Plugin) StartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.told(ctx, Event{"StartContainer", pod, c})
}

func (p *Plugin) PostStartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.told(ctx, Event{"PostStartContainer", pod, c})
}

func (p *Plugin) UpdateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container, asked *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.told(ctx, Event{"UpdateContainer", pod, c}); err != nil || p.Update == nil {
		return nil, err
	}
	return p.Update(c, asked), nil
}

func (p *Plugin) PostUpdateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.told(ctx, Event{"PostUpdateContainer", pod, c})
}

func (p *Plugin) StopContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	if err := p.told(ctx, Event{"StopContainer", pod, c}); err != nil || p.OnStop == nil {
		return nil, err
	}
	return p.OnStop(c), nil
}

func (p *Plugin) RemoveContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.told(ctx, Event{"RemoveContainer", pod, c})
}

// silent is a stub's log.
type silent struct{}

func (silent) Debugf(context.Context, string, ...any) {}
func (silent) Infof(context.Context, string, ...any)  {}
func (silent) Warnf(context.Context, string, ...any)  {}
func (silent) Errorf(context.Context, string, ...any) {}
