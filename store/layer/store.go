package layer

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/quota"
	"github.com/criserver/criserver/store/layer/readahead"
	"github.com/criserver/criserver/store/layer/tarstream"
)

// Format is how a layer lies on disk.
type Format string

// The formats. Auto is for Config only: EROFS if the kernel can mount it from files in Root, Overlay otherwise.
const (
	Auto    Format = "auto"
	EROFS   Format = "erofs"
	Overlay Format = "overlay"
)

// Errors on which callers act.
var (
	ErrNotFound = errors.New("layer is not in the store")
	ErrInUse    = errors.New("layer is in use")
	ErrExists   = errors.New("container has a root already")
)

// Config says where and how layers are kept.
type Config struct {
	Root   string           // directory for layers and writable container directories; made if missing
	Format Format           // of new layers; "" is Auto
	Limits tarstream.Limits // of one layer; the zero value means tarstream.DefaultLimits
	BootID string           // "" asks the kernel
	Log    *slog.Logger     // what Open drops and Run fails at; nil is silent

	// WritableLimit is how many bytes a container may write to its root; 0: as many as there are. Open fails with ErrNoQuota
	// where the file system has no project quotas.
	WritableLimit int64

	roots rootMode // tests force a way; "" probes
}

// Layer is an unpacked layer.
type Layer struct {
	DiffID  digest.Digest
	Format  Format
	Bytes   int64 // on disk
	Inodes  int64
	Durable bool // survives a power loss
}

// Store keeps layers. Use Open.
type Store struct {
	config    Config          // Format and roots are what was found
	formats   map[Format]bool // that can be mounted
	direct    bool            // EROFS mounts take directio
	ns        *namespace      // nil if roots is rootsDetached
	dirty     chan struct{}   // wakes Run
	syncing   chan struct{}   // held by the Sync that runs
	treeSync  chan struct{}   // closed when the last sync of the whole file system has ended; nil: there was none. Guarded by mu
	unpacking atomic.Int32    // Writers that have not ended
	unpacked  chan struct{}   // wakes Run when the last one ends
	cleanup   sync.WaitGroup
	deleting  chan struct{} // held by each directory that deleteLater deletes
	quota     *quota.FS     // nil: nothing counts writable directories
	disk      readahead.Disk

	discarded atomic.Uint64 // names what lies in trash, unlike anything that an earlier process left there

	mu       sync.Mutex
	layers   map[digest.Digest]*entry
	users    map[string][]*entry // layers of each container root
	projects map[string]uint32   // of the writable directories that are counted, by container; of a removed root, by its directory
	footings footings
	removals []string // directories of removed roots, to be deleted; one goroutine is at it while removing is set
	removing bool
	closed   bool
}

// entry is a layer of a Store. Its fields are guarded by Store.mu, but for mounting.
type entry struct {
	Layer
	dir      string
	uuid     [16]byte
	sums     *checksums // nil: none were kept
	frame    *frameSum  // nil: none was kept
	refs     int        // container roots and borrowed lowers
	mount    *lowerMount
	mounting sync.Mutex // one mounts or remounts, others wait
	warm     time.Time  // until then what was unpacked may stay in page cache; zero: it was let go
	removed  bool
	writes   sync.WaitGroup // of its record; none begins once it is removed
	syncs    sync.WaitGroup // which have files of an image open; none begins once it is removed
}

// Open reads the store at c.Root, drops what a crash or a power loss left unfinished, and asks the kernel what it can.
func Open(c Config) (*Store, error) {
	s := &Store{
		config:   c,
		dirty:    make(chan struct{}, 1),
		syncing:  make(chan struct{}, 1),
		unpacked: make(chan struct{}, 1),
		deleting: make(chan struct{}, maxDeleting),
		layers:   map[digest.Digest]*entry{},
		users:    map[string][]*entry{},
		projects: map[string]uint32{},
		footings: newFootings(),
	}
	s.discarded.Store(uint64(time.Now().UnixNano()))
	if err := s.defaults(); err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	err := s.prepare()
	if err == nil {
		err = s.openQuota()
	}
	if err == nil {
		err = s.probe()
	}
	if err == nil {
		err = s.load()
	}
	if err != nil {
		return nil, fmt.Errorf("open layer store %s: %w", c.Root, errors.Join(err, s.Close()))
	}
	return s, nil
}

func (s *Store) defaults() (err error) {
	if s.config.Format == "" {
		s.config.Format = Auto
	}
	if s.config.Format != Auto && s.config.Format != EROFS && s.config.Format != Overlay {
		return fmt.Errorf("format %q is not auto, erofs or overlay", s.config.Format)
	}
	if s.config.Limits == (tarstream.Limits{}) {
		s.config.Limits = tarstream.DefaultLimits()
	}
	if s.config.Log == nil {
		s.config.Log = slog.New(slog.DiscardHandler)
	}
	if s.config.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return fmt.Errorf("read boot id: %w", err)
		}
		s.config.BootID = strings.TrimSpace(string(id))
	}
	s.config.Root, err = filepath.Abs(s.config.Root)
	return err
}

// Close waits for deletions and closes every mount that the store holds. Roots and kept mounts live on. Nothing else
// may run or come later, but Close may be called again.
func (s *Store) Close() error {
	s.cleanup.Wait()
	s.mu.Lock()
	again := s.closed
	s.closed = true
	var mounts []*lowerMount
	for _, e := range s.layers {
		if e.mount != nil {
			mounts = append(mounts, e.mount)
			e.mount = nil
		}
	}
	s.mu.Unlock()
	if again {
		return nil
	}
	var errs []error
	for _, m := range mounts {
		errs = append(errs, m.Close())
	}
	if s.ns != nil {
		s.ns.close()
	}
	if s.quota != nil {
		errs = append(errs, s.quota.Close())
	}
	return errors.Join(errs...)
}

// Has says whether the layer can be used.
func (s *Store) Has(id digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[id] != nil
}

// Stat gives the layer, or ErrNotFound.
func (s *Store) Stat(id digest.Digest) (Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.layers[id]; e != nil {
		return e.Layer, nil
	}
	return Layer{}, fmt.Errorf("layer %s: %w", id, ErrNotFound)
}

// List gives all layers by digest.
func (s *Store) List() []Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Layer, 0, len(s.layers))
	for _, id := range slices.Sorted(maps.Keys(s.layers)) {
		list = append(list, s.layers[id].Layer)
	}
	return list
}

// Describe says in one line how layers are kept and roots are built here.
func (s *Store) Describe() string {
	how := "directories, one inode per file"
	if s.config.Format == EROFS {
		how = "erofs from files, page cache kept twice (no directio)"
		if s.direct {
			how = "erofs from files with directio"
		}
	}
	counted := "walked through"
	if s.quota != nil {
		counted = "counted by project quotas"
	}
	return fmt.Sprintf("layers: %s; roots: %s; writable directories: %s", how, s.config.roots.describe(), counted)
}

// Remove deletes the layer and returns when its space is free, but for what a disk is slow to sync (freeBound); freed is in bytes.
// The error is ErrInUse while a container's root is built on it or a Lower is not released, ErrNotFound if there is none.
// A mount that was given to a pod (Kept) still holds the space until it is closed.
func (s *Store) Remove(id digest.Digest) (freed int64, err error) {
	s.mu.Lock()
	e := s.layers[id]
	if e == nil || e.refs > 0 {
		s.mu.Unlock()
		if e == nil {
			return 0, fmt.Errorf("remove layer %s: %w", id, ErrNotFound)
		}
		return 0, fmt.Errorf("remove layer %s: %w", id, ErrInUse)
	}
	doomed, mount := s.forget(e)
	s.mu.Unlock()
	e.writes.Wait() // a record that came after its directory was read would be left
	if mount != nil {
		err = mount.Close()
	}
	err = errors.Join(err, os.RemoveAll(doomed))
	s.awaitSyncs(e)
	if err != nil {
		return 0, fmt.Errorf("remove layer %s: %w", id, err)
	}
	return e.Bytes, nil
}

// forget takes e out of the store; the caller deletes the directory and closes the mount. s.mu is held.
func (s *Store) forget(e *entry) (doomed string, m *lowerMount) {
	e.removed = true
	delete(s.layers, e.DiffID)
	m, e.mount = e.mount, nil
	return s.discard(e.dir), m
}

// discard makes dir meaningless at once and says what is to be deleted.
func (s *Store) discard(dir string) (doomed string) {
	doomed = s.path("trash", fmt.Sprintf("%s.%d", filepath.Base(dir), s.discarded.Add(1)))
	if err := unix.Rename(dir, doomed); err == nil {
		return doomed
	}
	return dir // a full disk may refuse; deleting in place works
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.config.Root}, elem...)...)
}
