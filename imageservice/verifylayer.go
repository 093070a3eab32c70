package imageservice

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"
)

// VerifyLayer reads a layer from the disk and compares it with what was unpacked. The error satisfies layer.ErrDamaged if they
// differ, layer.ErrFrameDamaged if it could not be exported. If its last image is removed meanwhile, the layer goes when this has ended.
func (s *Service) VerifyLayer(ctx context.Context, diffID digest.Digest) error {
	held := []digest.Digest{diffID}
	if err := s.holds.acquire(ctx, held); err != nil {
		return err
	}
	err := s.layers.Verify(ctx, diffID)
	return errors.Join(err, s.holds.release(held))
}
