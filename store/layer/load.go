package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/record"
)

const (
	layerFile = "layer" // record of a layer
	rootFile  = "root"  // record of a container's root
	metaFile  = "meta"
	dataFile  = "data"
	frameFile = "frame" // package frame
	sumsFile  = "sums"  // checksums of both, or the inventory of a directory
	fsDir     = "fs"
	upperDir  = "upper"
	workDir   = "work"

	footingsDir = "footings"

	asideMark = ".aside-" // after the name of a layer's directory that only containers use
)

// layerRecord is what a layer's record holds.
type layerRecord struct {
	Layer
	Boot string     // while it is pending: the boot that unpacked it
	UUID [16]byte   // of an EROFS image
	Sums *checksums `json:",omitempty"` // nil: none were kept

	Frame *frameSum `json:",omitempty"` // nil: none was kept
}

// checksums says what there are of a layer.
type checksums struct {
	Data, Meta int64  // of an EROFS image: length of its files in blocks
	Sums       uint32 `json:",omitempty"` // of an EROFS image: of the checksums themselves; 0: from before that was kept
}

// rootRecord is what a container's root was built from.
type rootRecord struct {
	Boot    string
	Layers  []digest.Digest
	Project uint32 `json:",omitempty"` // of upper and work
	Footing string `json:",omitempty"` // "": none
}

// prepare makes the directories and dooms leftovers.
func (s *Store) prepare() error {
	for _, dir := range []string{"", "layers", "containers", "trash", "tmp", "empty", footingsDir} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	if err := os.Chmod(s.path("empty"), 0o755); err != nil {
		return err
	}
	if err := spread(s.path("containers")); err != nil {
		s.config.Log.Warn("layer store: roots may be slow to make", "error", err)
	}
	for _, dir := range []string{"tmp", "trash"} {
		left, err := os.ReadDir(s.path(dir))
		if err != nil {
			return err
		}
		for _, f := range left {
			doomed := s.path(dir, f.Name())
			s.deleteLater(doomed)
		}
	}
	return nil
}

// maxDeleting is how many directories are deleted at a time. A power loss leaves one for each container, each of which would keep a
// thread waiting for the disk, and threads that a process has made stay.
const maxDeleting = 4

// deleteLater deletes a directory that means nothing any more.
func (s *Store) deleteLater(dir string) {
	s.cleanup.Go(func() {
		s.deleting <- struct{}{}
		defer func() { <-s.deleting }()
		if err := removeAll(dir); err != nil {
			s.config.Log.Warn("layer store: leftover stays", "dir", dir, "error", err)
		}
	})
}

// load reads layers and container roots; what cannot be trusted is dropped.
func (s *Store) load() error {
	dirs, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := s.loadLayer(s.path("layers", d.Name())); err != nil {
			s.config.Log.Info("layer store: layer dropped", "layer", d.Name(), "reason", err)
			s.deleteLater(s.discard(s.path("layers", d.Name())))
		}
	}
	if err := s.loadFootings(); err != nil {
		return err
	}
	defer s.dropFootings()
	dirs, err = os.ReadDir(s.path("containers"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !s.loadRoot(d.Name()) {
			s.deleteLater(s.discard(s.path("containers", d.Name())))
		}
	}
	return nil
}

// loadLayer returns why the layer is dropped, or nil. One that was put aside in this boot or whose format cannot be
// mounted now stays but is not listed.
func (s *Store) loadLayer(dir string) error {
	var r layerRecord
	if err := record.Read(filepath.Join(dir, layerFile), &r); err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(filepath.Base(dir), dirName(r.DiffID)+asideMark) && r.Boot == s.config.BootID:
		return nil
	case dirName(r.DiffID) != filepath.Base(dir):
		return fmt.Errorf("its record is that of %s", r.DiffID)
	case !r.Durable && r.Boot != s.config.BootID:
		return errors.New("it was not yet synced when the machine stopped")
	case !s.formats[r.Format]:
		s.config.Log.Warn("layer store: layer cannot be mounted on this kernel", "layer", r.DiffID, "format", r.Format)
		return nil
	}
	s.layers[r.DiffID] = &entry{Layer: r.Layer, dir: dir, uuid: r.UUID, sums: r.Sums, frame: r.Frame}
	return nil
}

// loadRoot says whether the container's root can be alive.
func (s *Store) loadRoot(id string) bool {
	var r rootRecord
	if err := record.Read(s.path("containers", id, rootFile), &r); err != nil || r.Boot != s.config.BootID {
		return false
	}
	s.users[id] = nil
	if _, there := s.footings.users[r.Footing]; there {
		s.footings.take(id, r.Footing)
	}
	if r.Project != 0 && s.quota != nil {
		s.projects[id] = r.Project
	}
	for _, l := range r.Layers {
		if e := s.layers[l]; e != nil {
			e.refs++
			s.users[id] = append(s.users[id], e)
		}
	}
	return true
}

// dirName is the name of a layer's directory.
func dirName(id digest.Digest) string { return strings.Replace(string(id), ":", "-", 1) }
