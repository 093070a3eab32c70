package imageservice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/containerd/platforms"

	"github.com/criserver/criserver/imageservice/progress"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/imagedb"
)

// Config is what New needs. Zero values mean the defaults beside them.
type Config struct {
	Dir      string        // the database lies here; made if missing
	Layers   LayerStore    // not closed by Close
	Registry remote.Config // hosts.toml directories and patience
	Pinned   []string      // references of images that are not to be collected; a * at the end matches any rest
	Platform string        // "os/arch/variant" of the images to take; the node's
	Bounds   Bounds
	Limits   Limits
	Verify   Verification
	Recorder *stage.Recorder // nil: none
	Log      *slog.Logger    // nil: none
}

// Limits protect the node from an image. Zero values mean the defaults beside them. What an archive may hold is limited
// by the layer store.
type Limits struct {
	Config    int64 // bytes of an image's config, 8 MiB
	Layers    int   // of an image, 500, which is what overlayfs can stack
	Expansion int64 // bytes that may come out of decompressing for each byte that went in, 200
	Base      int64 // bytes that may come out beyond that, 4 GiB
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, to int64) {
		if *v == 0 {
			*v = to
		}
	}
	set(&l.Config, 8<<20)
	set(&l.Expansion, 200)
	set(&l.Base, 4<<30)
	if l.Layers == 0 {
		l.Layers = 500
	}
	return l
}

// expanded is how many bytes may have come out of a layer when read bytes of it went in.
func (l Limits) expanded(read int64) int64 { return l.Base + l.Expansion*read }

// Service serves images.
type Service struct {
	cfg      Config
	log      *slog.Logger
	platform platforms.MatchComparer
	layers   LayerStore
	db       *imagedb.DB
	holds    *holds

	images   sync.Mutex // makes a change of db one with that of holds; held during the database's sync
	pulls    *flights[string]
	fetches  *flights[*progress.Layer] // nil: the layer was there
	parts    *flights[part]            // of artifacts
	bounds   *bounds
	moving   atomic.Int32 // layers that are being transferred
	book     *progress.Book
	accounts sync.Map           // *account of each pull that runs, by its key in pulls
	close    context.CancelFunc // ends all work

	registries *remote.Registries
	pinned     atomic.Pointer[[]string]
	preloading atomic.Pointer[chan struct{}] // closed when the last Preload has ended; nil: there was none

	verification atomic.Pointer[Verification]
}

// New opens the database. Images of which a layer is missing are forgotten, layers that belong to nothing are removed:
// after a power loss that is what was not yet durable.
func New(cfg Config) (*Service, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	cfg.Bounds = cfg.Bounds.withDefaults()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Recorder == nil {
		cfg.Recorder = stage.NewRecorder(1) // says where a pull is when its caller gives up
	}
	platform, err := platformOf(cfg.Platform)
	if err != nil {
		return nil, err
	}
	pinned, err := normalisePinned(cfg.Pinned)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make image directory: %w", err)
	}
	db, recovery, err := imagedb.Open(filepath.Join(cfg.Dir, "images.db"))
	if err != nil {
		return nil, err
	}
	if recovery.SetAside != "" {
		cfg.Log.Error("image database was unusable; beginning anew, images will be pulled again",
			"set_aside", recovery.SetAside, "cause", recovery.Cause)
	}
	for _, lost := range recovery.Dropped {
		cfg.Log.Error("image forgotten: its record is damaged", "image", lost)
	}
	base, cancel := context.WithCancel(context.Background())
	s := &Service{
		cfg: cfg, log: cfg.Log, platform: platform, layers: cfg.Layers, db: db, holds: newHolds(cfg.Layers),
		pulls: newFlights[string](base, cfg.Recorder, "pull"), fetches: newFlights[*progress.Layer](base, cfg.Recorder, "fetch layer"),
		parts:  newFlights[part](base, cfg.Recorder, "fetch part of artifact"),
		bounds: newBounds(cfg.Bounds), book: progress.NewBook(), close: cancel,
	}
	s.cfg.Registry.Lanes = remote.NewLanes(s.bounds.connections, s.bounds.memory, cfg.Bounds.PerLayer)
	s.registries = remote.New(s.cfg.Registry)
	s.pinned.Store(&pinned)
	s.verification.Store(&cfg.Verify)
	if err := s.reconcile(base); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// reconcile makes database and layer store agree.
func (s *Service) reconcile(ctx context.Context) error {
	for _, img := range s.db.Snapshot().Images() {
		missing := 0
		for _, id := range img.DiffIDs {
			if !s.layers.Has(id) {
				missing++
			}
		}
		if missing == 0 {
			if err := s.holds.acquire(ctx, unique(img.DiffIDs)); err != nil {
				return err
			}
			continue
		}
		s.log.Warn("image forgotten: layers are missing", "image", img.ID, "names", img.Names, "missing", missing, "of", len(img.DiffIDs))
		if _, err := s.db.Remove(img.ID); err != nil {
			return err
		}
	}
	if err := s.holds.sweep(); err != nil {
		s.log.Warn("layers that belong to no image stay", "error", err)
	}
	return nil
}

// Close cancels all pulls and waits until they have cleaned up. No call may begin after it.
func (s *Service) Close() error {
	s.close()
	s.pulls.wait()
	s.fetches.wait()
	s.parts.wait()
	return s.db.Close()
}
