package imageservice

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/imagedb"
)

// Removed is an image that is gone.
type Removed struct {
	ID       string   `json:"id"`
	RepoTags []string `json:"repoTags"`
	Freed    int64    `json:"freedBytes"` // of the disk, when the call returned; 0 in a dry run
}

// PruneRequest says which images may go.
type PruneRequest struct {
	DryRun    bool                      // only say what would happen
	OlderThan time.Duration             // since the image was last pulled or imported
	Used      func(imageID string) bool // by a container; asked right before each removal
}

// RemoveCounting is Remove and says what that freed: nothing while a container or another image needs the layers.
func (s *Service) RemoveCounting(ctx context.Context, ref string) (Removed, error) {
	img, err := lookUp(s.db.Snapshot(), ref)
	if img == nil {
		return Removed{ID: ref, RepoTags: []string{}}, err
	}
	one := Removed{ID: string(img.ID), RepoTags: slices.Concat([]string{}, img.Names)}
	before := s.sizes()
	err = s.Remove(ctx, string(img.ID))
	after := s.sizes()
	for _, id := range unique(img.DiffIDs) {
		if _, still := after[id]; !still {
			one.Freed += before[id]
		}
	}
	return one, err
}

// Prune removes the images that no container uses and that are not pinned. freed are the bytes that the disk has more, or would
// have.
func (s *Service) Prune(ctx context.Context, r PruneRequest) (gone []Removed, freed int64, err error) {
	gone = []Removed{}
	unused := func(img *imagedb.Image) bool {
		return !img.Pinned && !s.isPinned(img) && time.Since(img.PulledAt) >= r.OlderThan && !r.Used(string(img.ID))
	}
	if r.DryRun {
		var kept []*imagedb.Image
		for _, img := range s.db.Snapshot().Images() {
			if unused(img) {
				gone = append(gone, Removed{ID: string(img.ID), RepoTags: slices.Concat([]string{}, img.Names)})
			} else {
				kept = append(kept, img)
			}
		}
		return gone, s.only(gone, kept), nil
	}
	for _, img := range s.db.Snapshot().Images() {
		if ctx.Err() != nil {
			return gone, freed, context.Cause(ctx)
		}
		if !unused(img) {
			continue
		}
		one, err := s.RemoveCounting(ctx, string(img.ID))
		if err != nil {
			return gone, freed, err
		}
		gone, freed = append(gone, one), freed+one.Freed
	}
	return gone, freed, nil
}

// only is what the layers of images that are to go take, without those that others need.
func (s *Service) only(gone []Removed, kept []*imagedb.Image) (sum int64) {
	needed := map[digest.Digest]bool{}
	for _, img := range kept {
		for _, id := range img.DiffIDs {
			needed[id] = true
		}
	}
	for _, u := range s.layers.Users() {
		for _, id := range u.Layers {
			needed[id] = true
		}
	}
	sizes := s.sizes()
	for _, one := range gone {
		img := s.db.Snapshot().ByID(digest.Digest(one.ID))
		if img == nil {
			continue // removed meanwhile
		}
		for _, id := range img.DiffIDs {
			if !needed[id] {
				needed[id] = true
				sum += sizes[id]
			}
		}
	}
	return sum
}

// sizes are the bytes that each layer takes on disk.
func (s *Service) sizes() map[digest.Digest]int64 {
	sizes := map[digest.Digest]int64{}
	for _, l := range s.layers.List() {
		sizes[l.DiffID] = l.Bytes
	}
	return sizes
}
