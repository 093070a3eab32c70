package sandbox

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox/volume"
)

// volumeDir is where the volumes of the container's image lie.
func (c *container) volumeDir() string { return filepath.Join(c.p.s.volumesDir(), string(c.id)) }

// makeVolumes gives every VOLUME of the image that no mount covers a directory of the container's own, with a copy of
// what the image has there.
func (b *building) makeVolumes(ctx context.Context) error {
	paths := b.volumePaths()
	if len(paths) == 0 {
		return nil
	}
	if err := os.Mkdir(b.volumeDir(), 0o700); err != nil {
		return err
	}
	for i, path := range paths {
		dir := filepath.Join(b.volumeDir(), strconv.Itoa(i))
		if err := volume.CopyUp(ctx, b.root, path, dir); err != nil {
			return fmt.Errorf("volume %s: %w", path, err)
		}
		b.volumes = append(b.volumes, &runtimev1.Mount{ContainerPath: path, HostPath: dir})
	}
	return nil
}

// volumePaths are the image's volumes that the request does not mount itself, sorted.
func (b *building) volumePaths() []string {
	var paths []string
	for asked := range b.image.Config.Config.Volumes {
		at := path.Clean("/" + asked)
		mounted := slices.ContainsFunc(b.config.Mounts, func(m *runtimev1.Mount) bool { return path.Clean("/"+m.ContainerPath) == at })
		if at != "/" && !mounted && !slices.Contains(paths, at) {
			paths = append(paths, at)
		}
	}
	slices.Sort(paths)
	return paths
}

func (b *building) removeVolumes(context.Context) error { return os.RemoveAll(b.volumeDir()) }
