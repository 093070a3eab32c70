package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/layer"
)

// Rootfs makes the writable root of a container from an image, which is given by its id, and returns it as a detached
// mount; the caller closes it. With opts.ReadOnly it is a volume of a container, and containerID a name that the caller
// gives it. The image's layers stay until ReleaseRootfs, also if the image is removed and over restarts of criserver.
// ErrNotFound if the image is not present, layer.ErrExists if the container has a root.
func (s *Service) Rootfs(ctx context.Context, imageID, containerID string, opts layer.RootOptions) (*os.File, error) {
	img := s.db.Snapshot().ByID(digest.Digest(imageID))
	if img == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, imageID)
	}
	diffIDs := unique(img.DiffIDs)
	if err := s.holds.acquire(ctx, diffIDs); err != nil {
		return nil, fmt.Errorf("make root of container %s: %w", containerID, err)
	}
	root, err := s.makeRoot(ctx, img.ID, containerID, img.DiffIDs, opts)
	if releaseErr := s.holds.release(diffIDs); releaseErr != nil {
		s.log.Warn("layers of a removed image stay", "image", imageID, "error", releaseErr)
	}
	if err != nil {
		return nil, fmt.Errorf("make root of container %s: %w", containerID, err)
	}
	return root, nil
}

// makeRoot is called with the layers held, so that an image that is still there cannot lose them.
func (s *Service) makeRoot(ctx context.Context, id digest.Digest, containerID string, diffIDs []digest.Digest, opts layer.RootOptions) (*os.File, error) {
	if s.db.Snapshot().ByID(id) == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	root, err := s.layers.Root(ctx, containerID, diffIDs, opts)
	if errors.Is(err, layer.ErrNotFound) { // the store gave up a layer that the disk would not take
		err = errors.Join(err, s.Remove(ctx, string(id))) // so that the image is pulled again
	}
	return root, err
}

// ReleaseRootfs removes what Rootfs made, and the layers that were kept only for it. An unknown container is no error.
func (s *Service) ReleaseRootfs(_ context.Context, containerID string) error {
	err := s.layers.RemoveRoot(containerID)
	if err = errors.Join(err, s.holds.removeDoomed()); err != nil {
		return fmt.Errorf("remove root of container %s: %w", containerID, err)
	}
	return nil
}
