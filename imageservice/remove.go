package imageservice

import (
	"context"
	"fmt"
)

// Remove forgets the image that ref means, with all its names, and frees the space of the layers that no other image and
// no container uses before it returns. An image that is not there is no error.
func (s *Service) Remove(_ context.Context, ref string) error {
	s.images.Lock()
	img := find(s.db.Snapshot(), ref)
	if img == nil {
		s.images.Unlock()
		return nil
	}
	_, err := s.db.Remove(img.ID)
	s.images.Unlock()
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	if err := s.holds.release(unique(img.DiffIDs)); err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	return nil
}
