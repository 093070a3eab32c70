package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/store/record"
)

// preloadedFile remembers what archives of the preload directory had, so that they are not read at each start.
const preloadedFile = "preloaded"

// preloaded is what is known of an archive: while file and images are the same, there is nothing to do.
type preloaded struct {
	Size     int64
	Modified time.Time
	Images   []Imported
}

// Preload imports the archives and layouts that lie in dir, one after the other by name. What is wrong with one is logged with
// its name and stops nothing. An archive whose images are all present is not read again unless it has changed. Pull
// waits for a Preload that runs before it says that a registry cannot be reached.
func (s *Service) Preload(ctx context.Context, dir string) {
	done := make(chan struct{})
	s.preloading.Store(&done)
	defer close(done)
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.log.Error("preload: images are not imported", "error", err)
		return
	}
	path := filepath.Join(s.cfg.Dir, preloadedFile)
	former, now := map[string]preloaded{}, map[string]preloaded{}
	if err := record.Read(path, &former); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("preload: what was imported before is not known", "error", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return
		}
		known, err := s.preload(ctx, filepath.Join(dir, e.Name()), former[e.Name()])
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("preload: archive is not imported", "archive", filepath.Join(dir, e.Name()), "error", err)
			}
			continue
		}
		now[e.Name()] = known
	}
	if err := record.Write(path, now); err != nil {
		s.log.Warn("preload: what was imported is not remembered", "error", err)
	}
}

// preload imports one archive.
func (s *Service) preload(ctx context.Context, path string, former preloaded) (preloaded, error) {
	info, err := os.Stat(path)
	if err != nil {
		return preloaded{}, err
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return preloaded{}, errors.New("it is neither a file nor a directory")
	}
	if index, err := os.Stat(filepath.Join(path, ocispec.ImageIndexFile)); err == nil { // the directory stays as it is when this is written anew
		info = index
	}
	now := preloaded{Size: info.Size(), Modified: info.ModTime().UTC()}
	gone := slices.ContainsFunc(former.Images, func(i Imported) bool {
		return !s.hasAll(digest.Digest(i.ID), slices.Concat(i.Names, i.RepoDigests))
	})
	if len(former.Images) > 0 && !gone && now.Size == former.Size && now.Modified.Equal(former.Modified) {
		return former, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return preloaded{}, err
	}
	began := time.Now()
	a, err := archive.Open(ctx, f, archive.Spool(s.cfg.Dir))
	if err != nil {
		return preloaded{}, err
	}
	defer func() { _ = a.Close() }() // only read
	if now.Images, err = s.Import(ctx, a, ImportRequest{}); err != nil {
		return preloaded{}, err
	}
	for _, i := range now.Images {
		s.log.Info("preload: image is present", "archive", filepath.Base(path), "image", i.ID, "names", i.Names, "before", i.Present, "after", time.Since(began))
	}
	return now, nil
}

// underWay is closed when the Preload that runs has ended; nil if none runs.
func (s *Service) underWay() <-chan struct{} {
	running := s.preloading.Load()
	if running == nil {
		return nil
	}
	select {
	case <-*running:
		return nil
	default:
		return *running
	}
}

// fromPreload waits for a Preload that ran when a pull of t began and returns the image that t means then. cause is why
// the pull failed.
func (s *Service) fromPreload(ctx context.Context, running <-chan struct{}, t target, cause error) (string, error) {
	if running == nil {
		return "", cause
	}
	select {
	case <-running:
	case <-ctx.Done():
		return "", fmt.Errorf("%w; images are being preloaded", cause)
	}
	img := s.db.Snapshot().ByName(t.String())
	if img == nil {
		return "", cause
	}
	return string(img.ID), nil
}
