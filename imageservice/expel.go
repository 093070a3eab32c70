package imageservice

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Expel takes a damaged layer out of the store and forgets the images that have it, so that a pull brings them anew. Containers that
// run on it go on with it. The error satisfies layer.ErrInUse while a pull or an export needs the layer; the images are gone then.
func (s *Service) Expel(ctx context.Context, diffID digest.Digest) (gone []Removed, err error) {
	gone = []Removed{}
	for _, img := range s.db.Snapshot().Images() {
		if !slices.Contains(img.DiffIDs, diffID) {
			continue
		}
		one, err := s.RemoveCounting(ctx, string(img.ID))
		if err != nil {
			return gone, err
		}
		gone = append(gone, one)
	}
	return gone, s.holds.expel(diffID)
}
