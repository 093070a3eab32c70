package imageservice

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/imagedb"
)

// Expel takes a damaged layer out of the store and forgets the images that have it, so that a pull brings them anew. Containers that
// run on it go on with it; a pull that begins meanwhile waits for the end. What the images freed is without that layer. The error
// satisfies layer.ErrInUse if a pull or an export needed the layer already; the images are gone then.
func (s *Service) Expel(ctx context.Context, diffID digest.Digest) (gone []Removed, err error) {
	gone = []Removed{}
	err = s.holds.expel(ctx, diffID, func() error {
		for {
			images := s.db.Snapshot().Images() // again, for one that a pull has brought which held the layer before
			at := slices.IndexFunc(images, func(img *imagedb.Image) bool { return slices.Contains(img.DiffIDs, diffID) })
			if at < 0 {
				return nil
			}
			one, err := s.RemoveCounting(ctx, string(images[at].ID))
			if err != nil {
				return err
			}
			gone = append(gone, one)
		}
	})
	return gone, err
}
