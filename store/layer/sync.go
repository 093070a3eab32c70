package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/record"
)

// syncDelay bounds how long a committed layer waits for others that are being unpacked, and for HoldSync. Syncing would compete
// with them for the disk and for the file system's journal, and a pull waits for them, but for no sync.
const syncDelay = 5 * time.Second

// Run makes layers durable after they are committed, see syncDelay, and lets go of their page cache later, until ctx is done.
// What fails is logged.
func (s *Store) Run(ctx context.Context) {
	cool := time.NewTimer(warmTime)
	defer cool.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-cool.C:
			if next, ok := s.cool(time.Now()); ok {
				cool.Reset(time.Until(next))
			}
			continue
		case <-s.dirty:
		}
		s.settle(ctx)
		cool.Reset(warmTime)
		if err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			s.config.Log.Error("layer store: layers are not durable", "error", err)
		}
	}
}

// HoldSync makes Run wait as if a layer were being unpacked, until let is called, once: for who records what layers belong to,
// and waits for the disk with that.
func (s *Store) HoldSync() (let func()) {
	s.unpacking.Add(1)
	return s.letSync
}

// letSync ends one reason for not syncing.
func (s *Store) letSync() {
	if s.unpacking.Add(-1) > 0 {
		return
	}
	select {
	case s.unpacked <- struct{}{}:
	default:
	}
}

// settle waits until nothing is being unpacked, or syncDelay has passed.
func (s *Store) settle(ctx context.Context) {
	bound := time.NewTimer(syncDelay)
	defer bound.Stop()
	for s.unpacking.Load() > 0 {
		select {
		case <-s.unpacked:
		case <-bound.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Sync makes all layers durable that were committed before the call. A layer whose data cannot be written is removed
// from the store: what runs on it goes on, a later pull fetches it again.
func (s *Store) Sync(ctx context.Context) error {
	select {
	case s.syncing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("sync layers: %w", ctx.Err())
	}
	defer func() { <-s.syncing }()
	pending := s.pending()
	if len(pending) == 0 {
		return nil
	}
	var errs []error
	once := sync.OnceValue(func() error { return s.whileTreeSyncs(func() error { return syncTree(s.path("layers")) }) })
	for _, e := range pending {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("sync layers: %w", err))...)
		}
		if err := s.syncLayer(e, once); err != nil {
			errs = append(errs, err)
		}
	}
	if err := syncFile(s.path("layers")); err != nil {
		errs = append(errs, fmt.Errorf("sync layers: %w", err))
	}
	return errors.Join(errs...)
}

// syncLayer makes one layer durable, unless it is removed meanwhile. all syncs everything, for layers of many files.
// It works below the layer's directory as it was opened: its path may be that of a younger layer by now, whose data is
// not synced.
func (s *Store) syncLayer(e *entry, all func() error) error {
	dir, err := s.openEntry(e)
	if err == nil && dir == nil {
		return nil
	}
	if err == nil {
		defer e.closeEntry(dir)
		if e.Format == EROFS {
			err = errors.Join(syncFile(below(dir, dataFile)), syncFile(below(dir, metaFile)), syncFile(below(dir, frameFile)))
			if e.sums != nil {
				err = errors.Join(err, syncFile(below(dir, sumsFile)))
			}
		} else {
			err = all()
		}
	}
	if err != nil && !s.isRemoved(e) {
		return errors.Join(fmt.Errorf("sync layer %s, which is now removed: %w", e.DiffID, err), s.expel(e))
	}
	if err == nil {
		err = s.promote(e, dir)
	}
	if err != nil && !s.isRemoved(e) {
		return fmt.Errorf("record layer %s as durable: %w", e.DiffID, err) // tried again next time
	}
	return nil
}

// openEntry opens the directory of a layer for a sync, which the caller ends with closeEntry; it is nil if the layer is removed.
func (s *Store) openEntry(e *entry) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.removed {
		return nil, nil
	}
	dir, err := os.Open(e.dir)
	if err == nil && e.Format == EROFS {
		e.syncs.Add(1)
	}
	return dir, err
}

func (e *entry) closeEntry(dir *os.File) {
	_ = dir.Close() // only a handle
	if e.Format == EROFS {
		e.syncs.Done()
	}
}

// freeBound is how long a removal waits for a sync of the layer. A disk may take minutes, or forever, and with the removal wait that of a
// container and the next pull of the layer.
const freeBound = 10 * time.Second

// awaitSyncs waits for what holds the space of a removed layer that is deleted already: a sync of it has files of an image open, and one
// of the whole file system holds every inode that it found dirty.
func (s *Store) awaitSyncs(e *entry) {
	s.mu.Lock()
	tree := s.treeSync
	s.mu.Unlock()
	synced := make(chan struct{})
	go func() {
		defer close(synced)
		e.syncs.Wait()
		if tree != nil {
			<-tree
		}
	}()
	select {
	case <-synced:
	case <-time.After(freeBound):
	}
}

// whileTreeSyncs runs a sync of the file system, which removals wait for. The caller holds s.syncing.
func (s *Store) whileTreeSyncs(all func() error) error {
	ended := make(chan struct{})
	defer close(ended)
	s.mu.Lock()
	s.treeSync = ended
	s.mu.Unlock()
	return all()
}

// below names a file of an open directory.
func below(dir *os.File, name string) string { return filepath.Join(procPath(dir), name) }

func (s *Store) pending() (list []*entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.layers {
		if !e.Durable {
			list = append(list, e)
		}
	}
	return list
}

// promote records that e, which lies in dir, is durable; its data is.
func (s *Store) promote(e *entry, dir *os.File) error {
	r := layerRecord{Layer: e.Layer, UUID: e.uuid, Sums: e.sums, Frame: e.frame}
	r.Durable = true
	path := below(dir, layerFile)
	if err := s.writeRecord(e, path, r); err != nil {
		return err
	}
	if err := errors.Join(syncFile(path), dir.Sync()); err != nil {
		return err
	}
	s.mu.Lock()
	e.Durable = true
	s.mu.Unlock()
	return nil
}

// writeRecord replaces the record of e, unless e is removed.
func (s *Store) writeRecord(e *entry, path string, r layerRecord) error {
	s.mu.Lock()
	if e.removed {
		s.mu.Unlock()
		return ErrNotFound
	}
	e.writes.Add(1)
	s.mu.Unlock()
	defer e.writes.Done()
	return record.Write(path, r)
}

func (s *Store) isRemoved(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.removed
}

// expel removes a layer that nothing can be said about. An overlay directory that is in use is only put aside: its
// containers go on, and the next boot deletes it.
func (s *Store) expel(e *entry) error {
	s.mu.Lock()
	if e.removed {
		s.mu.Unlock()
		return nil
	}
	if e.refs > 0 && e.Format == Overlay {
		defer s.mu.Unlock()
		e.removed = true
		delete(s.layers, e.DiffID)
		return os.Rename(e.dir, fmt.Sprintf("%s%s%d", e.dir, asideMark, s.discarded.Add(1)))
	}
	doomed, mount := s.forget(e)
	s.mu.Unlock()
	e.writes.Wait() // a record that came after its directory was read would be left
	err := os.RemoveAll(doomed)
	if mount != nil {
		err = errors.Join(err, mount.Close())
	}
	return err
}

// syncFile syncs a file or the names in a directory.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncTree syncs the file system that dir is on.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only a handle
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return nil
}
