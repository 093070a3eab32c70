package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/record"
)

// Run makes layers durable as they are committed and lets go of their page cache later, until ctx is done.
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
		cool.Reset(warmTime)
		if err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			s.config.Log.Error("layer store: layers are not durable", "error", err)
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
	synced := false // directories are synced all at once
	for _, e := range pending {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("sync layers: %w", err))...)
		}
		var err error
		switch {
		case e.Format == EROFS:
			err = errors.Join(syncFile(filepath.Join(e.dir, dataFile)), syncFile(filepath.Join(e.dir, metaFile)))
		case !synced:
			err = syncTree(s.path("layers"))
			synced = err == nil
		}
		if err != nil && !s.isRemoved(e) {
			errs = append(errs, fmt.Errorf("sync layer %s, which is now removed: %w", e.DiffID, err), s.expel(e))
			continue
		}
		if err := s.promote(e); err != nil && !s.isRemoved(e) {
			errs = append(errs, fmt.Errorf("record layer %s as durable: %w", e.DiffID, err)) // tried again next time
		}
	}
	if err := syncFile(s.path("layers")); err != nil {
		errs = append(errs, fmt.Errorf("sync layers: %w", err))
	}
	return errors.Join(errs...)
}

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

// promote records that e is durable; its data is.
func (s *Store) promote(e *entry) error {
	r := layerRecord{Layer: e.Layer, UUID: e.uuid}
	r.Durable = true
	path := filepath.Join(e.dir, layerFile)
	if err := record.Write(path, r); err != nil {
		return err
	}
	if err := errors.Join(syncFile(path), syncFile(e.dir)); err != nil {
		return err
	}
	s.mu.Lock()
	e.Durable = true
	s.mu.Unlock()
	return nil
}

func (s *Store) isRemoved(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.removed
}

// expel removes a layer that nothing can be said about. An overlay directory that is in use stays on disk as long as
// its record says pending, that is until the next boot.
func (s *Store) expel(e *entry) error {
	s.mu.Lock()
	if e.removed {
		s.mu.Unlock()
		return nil
	}
	if e.refs > 0 && e.Format == Overlay {
		e.removed = true
		delete(s.layers, e.DiffID)
		s.mu.Unlock()
		return nil
	}
	doomed, mount := s.forget(e)
	s.mu.Unlock()
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
