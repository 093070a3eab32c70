package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/ociruntime/cdi"
	"github.com/criserver/criserver/ociruntime/selinux"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/sandbox/events"
	"github.com/criserver/criserver/sandbox/ledger"
	"github.com/criserver/criserver/sandbox/nri"
	"github.com/criserver/criserver/sandbox/stats"
	"github.com/criserver/criserver/sandbox/volume"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/layer"
)

var (
	// ErrNotFound says that no pod or container has the id, or that an image is not present.
	ErrNotFound = errors.New("not found")
	// ErrInvalid says that a request cannot be served whatever the state of the node; the text names the field.
	ErrInvalid = errors.New("invalid request")
	// ErrState says that the object is in a state that does not allow the request.
	ErrState = errors.New("wrong state")
	// ErrExecTimeout says that an ExecSync was killed because its timeout had passed.
	ErrExecTimeout = errors.New("command timed out")
)

// Images gives containers their images and roots; *imageservice.Service is one.
type Images interface {
	// Config finds a present image by id, tag or digest. It never pulls. The error says what ref means instead.
	Config(ref string) (id, repoDigest string, config ocispec.Image, err error)
	// Volume finds what can be mounted as a volume in the same way: images, and artifacts, which have no config.
	Volume(ref string) (id string, err error)
	// Rootfs makes a container's writable root, or by opts an image as a volume of it, and returns it as a detached mount; the
	// caller closes it. On error nothing is left.
	Rootfs(ctx context.Context, imageID, containerID string, opts layer.RootOptions) (*os.File, error)
	// ReleaseRootfs removes what Rootfs made. Unknown ids are no error.
	ReleaseRootfs(ctx context.Context, containerID string) error
}

// Network attaches pods; *cni.Network is one.
type Network interface {
	Plan(cni.Attachment) (cni.Debt, error)
	Add(context.Context, cni.Debt) (*cni.Result, error)
	Del(context.Context, cni.Debt) error
	GC(context.Context, []cni.Attached) error
}

// Config is what New needs.
type Config struct {
	StateDir string // on tmpfs; pods live here
	RootDir  string // durable: the ledger, volumes of containers
	NetNSDir string // where network namespaces are pinned; empty: /run/netns
	BootID   string // empty: that of the kernel
	Settings        // those that New begins with

	Runtime Runtime
	Images  Images
	Network Network
	Roots   func() []string // the containers that have a root, known or not; nil: nobody can tell

	CDI        *cdi.Registry     // nil: no container can ask for a CDI device
	AppArmor   *specgen.AppArmor // nil: not used
	SELinux    *selinux.Host     // nil: not used
	Categories int               // of SELinux, for the levels of pods; at least 2 if it is used

	StatsPeriod time.Duration                 // between samples for rates; 0: only when somebody asks
	LayerPeriod time.Duration                 // between measurements of a writable layer; 0: none are
	UpperDir    func(container string) string // the writable layer; nil: not to be measured
	// Written says what is in a writable layer where the file system counts it; nil: nowhere.
	Written  func(container string) (bytes, inodes uint64, ok bool)
	LayerDir string // a directory on the file system of writable layers

	Layers   LayerMounts     // nil: mounts of layers are made again after a restart
	Plugins  *nri.Plugins    // nil: none
	Recorder *stage.Recorder // nil: none
	Log      *slog.Logger    // nil: none
}

// Service is all pods and containers.
type Service struct {
	config  Config
	log     *slog.Logger
	ledger  *ledger.Ledger
	keeper  keeper
	news    events.Broadcaster[*Event]
	sources volume.Sources
	netns   namespaces
	host    specgen.Host
	levels  *selinux.Levels

	settings atomic.Pointer[Settings]

	collector *stats.Collector
	ends      *prometheus.CounterVec // of containers, by reason

	mu    sync.Mutex // taken to replace the table, also with a pod.mu held
	table atomic.Pointer[table]
	newer []*pod // that are not listed yet, guarded by mu

	runs        *stage.Group[ID]
	creates     *stage.Group[ContainerID]
	lastUpdate  atomic.Uint64
	updates     *stage.Group[struct{}]
	starts      *stage.Group[struct{}] // this and the following are joined while they run, and have no result
	removals    *stage.Group[struct{}] // of containers
	podStops    *stage.Group[struct{}]
	podRemovals *stage.Group[struct{}]

	swept      chan struct{} // closed when the network has been rid of what an earlier criserver left
	recovered  chan struct{} // closed when what an earlier criserver left is removed
	closed     chan struct{}
	halting    sync.RWMutex // taken to close closed, and to begin what must not begin after that
	background sync.WaitGroup

	plan     func(context.Context, *building) error                          // makes the spec; replaced by tests without a root file system
	see      func(ctx context.Context, source string) (file bool, err error) // seeToSource; replaced by tests of sources that are not there
	boundary func(string)                                                    // set by tests: called between all steps
	drain    time.Duration                                                   // drainBound, or what tests have instead
}

// namespaces finds and pins network namespaces; tests without root have their own.
type namespaces struct {
	pin   func(ns *os.File, path string) error
	unpin func(path string) error
	dial  func(ctx context.Context, ns *os.File, port uint16) (*net.TCPConn, error)
}

// New reads the records of an earlier criserver and adopts its pods: when it returns, all that is listed is true. What
// was half made or owed is undone in the background; see Recovered. If ctx ends before, pods are left as they are.
func New(ctx context.Context, config Config) (*Service, error) {
	s, err := newService(config)
	if err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		config.Plugins.Close() // nobody need wait for them
		s.Close(ctx)
		return nil, err
	}
	return s, nil
}

// connect makes a new Service one of this node, and recovers what there is on it.
func (s *Service) connect(ctx context.Context) (err error) {
	s.netns, s.plan = namespaces{pin: cni.PinNetNS, unpin: cni.UnpinNetNS, dial: cni.DialLocalhost}, s.makeSpec
	s.see = s.seeToSource
	if s.host, err = host(); err != nil {
		return fmt.Errorf("ask the node what it has: %w", err)
	}
	s.host.AppArmor = s.config.AppArmor
	s.Configure(s.config.Settings) // which warns of what the host cannot
	if err := s.recover(ctx); err != nil {
		return err
	}
	s.measuring()
	return s.openPlugins()
}

func newService(config Config) (*Service, error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.NetNSDir == "" {
		config.NetNSDir = "/run/netns"
	}
	if config.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("read the boot id: %w", err)
		}
		config.BootID = strings.TrimSpace(string(id))
	}
	s := &Service{config: config, log: config.Log, levels: selinux.NewLevels(config.Categories),
		collector:   stats.NewCollector(config.StatsPeriod),
		ends:        newEnds(),
		runs:        stage.NewGroup[ID]("RunPodSandbox", config.Recorder, config.Log),
		creates:     stage.NewGroup[ContainerID]("CreateContainer", config.Recorder, config.Log),
		updates:     stage.NewGroup[struct{}]("UpdateContainerResources", config.Recorder, config.Log),
		starts:      stage.NewGroup[struct{}]("StartContainer", config.Recorder, config.Log),
		removals:    stage.NewGroup[struct{}]("RemoveContainer", config.Recorder, config.Log),
		podStops:    stage.NewGroup[struct{}]("StopPodSandbox", config.Recorder, config.Log),
		podRemovals: stage.NewGroup[struct{}]("RemovePodSandbox", config.Recorder, config.Log),
		swept:       make(chan struct{}), recovered: make(chan struct{}), closed: make(chan struct{}), drain: drainBound}
	s.settings.Store(config.Settings.settled())
	s.keeper = keeper{layers: config.Layers, by: map[digest.Digest]ContainerID{}, names: map[ContainerID][]string{}}
	s.table.Store(&table{})
	for dir, mode := range map[string]os.FileMode{config.StateDir: 0o711, s.podsDir(): 0o711, s.volumesDir(): 0o700} { // see ociruntime: bundles are in pods
		if err := errors.Join(os.MkdirAll(dir, mode), os.Chmod(dir, mode)); err != nil {
			return nil, fmt.Errorf("prepare directories: %w", err)
		}
	}
	var err error
	s.ledger, err = ledger.Open(filepath.Join(config.RootDir, "ledger"), config.Network, config.Log)
	return s, err
}

func (s *Service) podsDir() string    { return filepath.Join(s.config.StateDir, "pods") }
func (s *Service) volumesDir() string { return filepath.Join(s.config.RootDir, "volumes") }

// Recovered is closed when what an earlier criserver left and nobody needs is removed.
func (s *Service) Recovered() <-chan struct{} { return s.recovered }

// newEnds counts how containers end.
func newEnds() *prometheus.CounterVec {
	ends := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "criserver_container_exits_total", Help: "Containers that have ended, by the reason in their status."}, []string{"reason"})
	for _, reason := range []string{ReasonCompleted, ReasonError, ReasonOOMKilled, ReasonStartError, ReasonUnknown} {
		ends.WithLabelValues(reason)
	}
	return ends
}

// Metrics are those of the ends of containers, for Prometheus.
func (s *Service) Metrics() prometheus.Collector { return s.ends }

// Close ends what the Service does by itself, after operations that run have ended or ctx has. Pods and containers live on.
func (s *Service) Close(ctx context.Context) {
	s.runs.Close(ctx) // those that use others first
	s.creates.Close(ctx)
	s.starts.Close(ctx)
	s.updates.Close(ctx)
	s.podRemovals.Close(ctx)
	s.podStops.Close(ctx)
	s.removals.Close(ctx)
	s.halt()
	s.background.Wait()
	s.config.Plugins.Close()
}

// halt ends what goes on beside operations, without waiting for it. It can be repeated.
func (s *Service) halt() {
	s.halting.Lock()
	defer s.halting.Unlock()
	if !s.halted() {
		close(s.closed)
	}
}

func (s *Service) halted() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// beside runs fn, which must end when s.closed is closed, beside everything else; not at all if it is closed already.
func (s *Service) beside(fn func()) {
	s.halting.RLock()
	defer s.halting.RUnlock()
	if !s.halted() {
		s.background.Go(fn)
	}
}

// spawn runs fn beside everything else, with a context that ends with the Service.
func (s *Service) spawn(fn func(context.Context)) {
	s.beside(func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			select {
			case <-s.closed:
				cancel()
			case <-ended:
			}
		}()
		fn(ctx)
	})
}

// at tells a test that a boundary between two effects is reached.
func (s *Service) at(boundary string) {
	if s.boundary != nil {
		s.boundary(boundary)
	}
}

// watched adds to every step what tests and a failing undo need: its boundaries, and a mark on objects that could
// not be undone whole, whose record must stay so that it is tried again.
func watched[S interface {
	service() *Service
	soil()
}](steps stage.Steps[S]) stage.Steps[S] {
	for i := range steps {
		name, do, undo := steps[i].Name, steps[i].Do, steps[i].Undo
		steps[i].Do = func(o S, ctx context.Context) error {
			o.service().at("before " + name)
			err := do(o, ctx)
			o.service().at("after " + name)
			return err
		}
		if undo == nil {
			continue
		}
		steps[i].Undo = func(o S, ctx context.Context) error {
			o.service().at("before undo " + name)
			err := undo(o, ctx)
			if err != nil {
				o.soil()
			}
			o.service().at("after undo " + name)
			return err
		}
	}
	return steps
}

// join makes a change to the object id, which the same change joins while it runs.
func join[S ~string](ctx context.Context, changes *stage.Group[struct{}], id S, change func(context.Context) error) error {
	_, err := changes.Join(ctx, string(id), "", stage.Work[struct{}]{
		Start: func(ctx context.Context) (struct{}, error) { return struct{}{}, change(ctx) },
		Undo:  func(context.Context, struct{}) error { return nil },
	})
	return err
}
