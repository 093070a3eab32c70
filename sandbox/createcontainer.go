package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/layer"
)

// imageFacts is what a container needs to know of its image.
type imageFacts struct {
	ID     string // sha256:<hex>
	Ref    string // repository@digest, or ID if there is none
	Config ocispec.Image
}

// building is a container while it is made. To undo, container alone suffices.
type building struct {
	*container
	config  *runtimev1.ContainerConfig
	pod     *runtimev1.PodSandboxConfig
	rtPod   RuntimePod
	image   imageFacts
	files   []bool             // which mounts of config are of files
	root    *os.File           // a detached mount; nil when somebody else has it
	points  []layer.MountPoint // that root may have
	keeping sync.WaitGroup     // keepLayers
	target  RuntimeContainer
	volumes []*runtimev1.Mount // of the image, to be mounted beside those of config
	images  []imageTree        // mounted as volumes; empty when somebody else has them
	labels  specgen.Labels
	spec    *specs.Spec
	planned []specs.Mount // of spec, before devices and plugins
}

// containerSteps make a container and, undone in reverse, remove it. The record stands before anything that a crash
// could leave, and goes last.
var containerSteps = watched(stage.Steps[*building]{
	{Name: "record", Bound: 30 * time.Second, Do: (*building).begin, Undo: (*building).forget},
	{Name: "sources", Bound: 30 * time.Second, Do: (*building).seeToSources},
	{Name: "rootfs", Bound: 2 * time.Minute, Do: (*building).makeRoot, Undo: (*building).releaseRoot},
	{Name: "layers", Bound: 30 * time.Second, Do: (*building).keepLayers, Undo: (*building).dropLayers},
	{Name: "volumes", Bound: 10 * time.Minute, Do: (*building).makeVolumes, Undo: (*building).removeVolumes},
	{Name: "image volumes", Bound: 2 * time.Minute, Do: (*building).mountImages, Undo: (*building).unmountImages},
	{Name: "spec", Bound: 30 * time.Second, Do: (*building).plan},
	{Name: "plugins", Bound: 2 * time.Minute, Do: (*building).adjust, Undo: (*building).unmade},
	{Name: "mount points", Bound: 2 * time.Minute, Do: (*building).reviseRoot},
	{Name: "relabel", Bound: time.Hour, Do: (*building).relabel},
	{Name: "create", Bound: time.Minute, Do: (*building).create, Undo: (*building).delete},
	{Name: "publish", Bound: 30 * time.Second, Do: (*building).publish},
})

// CreateContainer makes a container in a pod that is ready, of an image that is present. podConfig is the request's
// copy of the pod's config: only its log directory is used.
func (s *Service) CreateContainer(ctx context.Context, podID ID, config *runtimev1.ContainerConfig, podConfig *runtimev1.PodSandboxConfig) (ContainerID, error) {
	if err := checkContainerConfig(config); err != nil {
		return "", err
	}
	p, err := s.pod(podID)
	if err != nil {
		return "", err
	}
	logs := podConfig.GetLogDirectory()
	print, err := fingerprint(logs, config)
	if err != nil {
		return "", err
	}
	work := s.containerWork()
	work.Start = func(ctx context.Context) (ContainerID, error) {
		asked := config
		config = nil // the group keeps this function as long as the container is there
		return p.createContainer(ctx, asked, logs, print)
	}
	return s.creates.Join(ctx, containerKey(p.id, config.Metadata), print, work)
}

// containerWork is the operation that made a container, as it is known after it ended.
func (s *Service) containerWork() stage.Work[ContainerID] {
	return stage.Work[ContainerID]{Undo: s.RemoveContainer, Valid: func(id ContainerID) bool {
		st, err := s.ContainerStatus(id)
		return err == nil && st.State == ContainerCreated
	}}
}

func (p *pod) createContainer(ctx context.Context, config *runtimev1.ContainerConfig, logs, print string) (ContainerID, error) {
	ctx, rtPod, leave, err := p.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	b := &building{config: config, pod: p.spec.Config(), rtPod: rtPod}
	if b.container, err = p.newContainer(b, logs, print); err != nil {
		return "", err
	}
	p.addMember(b.container)
	if err := containerSteps.Do(ctx, b); err != nil {
		p.abandon(b.container)
		return "", err
	}
	return b.id, nil
}

// newContainer decides all about a container that needs no effect outside.
func (p *pod) newContainer(b *building, logs, print string) (*container, error) {
	config := b.config
	var err error
	if b.image.ID, b.image.Ref, b.image.Config, err = p.s.config.Images.Config(config.Image.Image); err != nil {
		return nil, fmt.Errorf("config.image.image: %w", err)
	}
	spec, err := newContainerSpec(config)
	if err != nil {
		return nil, err
	}
	spec.ImageID, spec.ImageRef = b.image.ID, b.image.Ref
	if spec.ImageVolumes, err = p.s.findImages(config); err != nil {
		return nil, err
	}
	if spec.StopSignal, err = stopSignal(config, b.image.Config); err != nil {
		return nil, err
	}
	if logs == "" {
		logs = b.pod.LogDirectory
	}
	if config.LogPath != "" && logs != "" {
		spec.LogPath = filepath.Join(logs, config.LogPath)
	}
	if b.target, err = p.pidTarget(config); err != nil {
		return nil, err
	}
	if b.labels, err = p.s.labels(b.pod, config, p.level); err != nil {
		return nil, fmt.Errorf("container config: %w", err)
	}
	c := &container{p: p, id: ContainerID(newID()), fingerprint: print, exited: make(chan struct{}), turns: newTurns(), phase: containerCreating}
	c.status.Store(&ContainerStatus{ID: c.id, Pod: p.id, State: ContainerCreated, CreatedAt: time.Now(), containerSpec: spec})
	return c, nil
}

// pidMode is the container's, or the pod's if the container has no namespace options.
func pidMode(config *runtimev1.ContainerConfig, pod *runtimev1.PodSandboxConfig) runtimev1.NamespaceMode {
	if ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions(); ns != nil {
		return ns.Pid
	}
	return namespaceOptions(pod).GetPid()
}

// joinsPodPIDs says whether a container has its processes in the pod's pid namespace, which is not the host's.
func joinsPodPIDs(config *runtimev1.ContainerConfig, pod *runtimev1.PodSandboxConfig) bool {
	return pidMode(config, pod) == runtimev1.NamespaceMode_POD && namespaceOptions(pod).GetPid() != runtimev1.NamespaceMode_NODE
}

// pidTarget finds the container whose pid namespace is to be joined; nil if none is asked for.
func (p *pod) pidTarget(config *runtimev1.ContainerConfig) (RuntimeContainer, error) {
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimev1.NamespaceMode_TARGET {
		return nil, nil
	}
	c, err := p.s.container(ContainerID(ns.TargetId))
	if err != nil {
		return nil, fmt.Errorf("%w: namespace_options.target_id: %w", ErrInvalid, err)
	}
	phase, rt := c.look()
	if c.p != p || phase != containerRunning {
		return nil, fmt.Errorf("%w: namespace_options.target_id: container %s is not a running one of this pod", ErrInvalid, c.id)
	}
	return rt, nil
}

// abandon drops a container that could not be made; what could not be undone of it is undone in the background.
func (p *pod) abandon(c *container) {
	if !c.takeSoil() {
		p.dropMember(c)
		return
	}
	c.removeLater()
}

func (c *container) soil() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.dirty = true
}

// takeSoil says whether an undo has failed since it was last asked.
func (c *container) takeSoil() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	dirty := c.dirty
	c.dirty = false
	return dirty
}

func (b *building) begin(context.Context) error { return b.write(b.status.Load()) }

// forget removes the record unless something before it could not be undone, for which it is needed again.
func (b *building) forget(context.Context) error {
	b.p.mu.Lock()
	dirty := b.dirty
	b.p.mu.Unlock()
	if dirty {
		return nil
	}
	return b.container.forget()
}

func (b *building) makeRoot(ctx context.Context) error {
	b.points = b.mountPoints()
	return b.openRoot(ctx)
}

func (b *building) openRoot(ctx context.Context) (err error) {
	opts := b.rootOptions()
	opts.MountPoints = b.points
	b.root, err = b.p.s.config.Images.Rootfs(ctx, b.image.ID, string(b.id), opts)
	return err
}

func layerMap(maps []specs.LinuxIDMapping) []layer.IDMap {
	var all []layer.IDMap
	for _, m := range maps {
		all = append(all, layer.IDMap{Inside: m.ContainerID, Outside: m.HostID, Count: m.Size})
	}
	return all
}

func (b *building) releaseRoot(ctx context.Context) error {
	if b.root != nil {
		_ = b.root.Close() // of a mount: nothing to lose
		b.root = nil
	}
	b.layer.Remove()
	return b.p.s.config.Images.ReleaseRootfs(ctx, string(b.id))
}

func (b *building) plan(ctx context.Context) error {
	if err := b.p.s.plan(ctx, b); err != nil {
		return err
	}
	b.planned = slices.Clone(b.spec.Mounts)
	return b.p.s.injectDevices(b)
}

func (b *building) create(ctx context.Context) error {
	st := b.status.Load()
	if b.spec != nil { // nobody else has seen the status yet
		u := b.spec.Process.User
		st.Limits, st.User = specLimits(b.spec), User{UID: u.UID, GID: u.GID, Groups: u.AdditionalGids}
	}
	if st.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(st.LogPath), 0o755); err != nil {
			return fmt.Errorf("make the directory of the log: %w", err)
		}
	}
	root := b.root
	b.root = nil // taken over
	rt, err := b.rtPod.Create(ctx, ociruntime.ContainerConfig{ID: string(b.id), Spec: b.spec, Root: root, Trees: b.takeTrees(), LogPath: st.LogPath,
		LineMax: b.p.s.settings.Load().LineMax, Stdin: b.config.Stdin, SharedPID: joinsPodPIDs(b.config, b.pod)}, b.target)
	if err != nil {
		return ofLimits(err)
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.rt = rt
	return nil
}

func (b *building) delete(ctx context.Context) error {
	_, rt := b.look()
	if rt == nil { // there may be something nevertheless that a crash left
		return b.p.s.config.Runtime.CleanContainer(ctx, b.p.runtimeConfig(b.p.spec.Config()), string(b.id))
	}
	return rt.Delete(ctx)
}

func (b *building) publish(ctx context.Context) error {
	b.measureLayer(ctx)
	b.keeping.Wait()
	done, err := b.turns.take(ctx) // nobody else knows the container yet
	if err != nil {
		return err
	}
	defer done()
	if err := b.advance(containerCreated, nil); err != nil {
		return err
	}
	b.informCreated(ctx)
	return nil
}
