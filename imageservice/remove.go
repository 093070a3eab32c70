package imageservice

import (
	"context"
	"fmt"
)

// Remove forgets the image that ref means, with all its names, and frees the space of the layers that no other image and
// no container uses before it returns. An image that is not there is no error, the beginning of several ids is ErrInvalidReference.
func (s *Service) Remove(_ context.Context, ref string) error {
	s.images.Lock()
	img, err := lookUp(s.db.Snapshot(), ref)
	if err == nil && img == nil {
		s.images.Unlock()
		return nil
	}
	if err == nil {
		_, err = s.db.Remove(img.ID)
	}
	s.images.Unlock()
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	err = s.holds.release(unique(img.DiffIDs))
	if fillErr := s.db.Refill(); fillErr != nil {
		s.log.Warn("no space is held back for removals", "error", fillErr)
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	return nil
}
