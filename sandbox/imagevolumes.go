package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/store/layer"
)

// imageTree is an image that is mounted as a volume.
type imageTree struct {
	at   int // index of the mount in the config
	tree ociruntime.Tree
}

// findImages finds the images that the config mounts; the result has one id for each mount, "" where that is none of an image.
// It is nil if there is none.
func (s *Service) findImages(config *runtimev1.ContainerConfig) ([]string, error) {
	var ids []string
	for i, m := range config.Mounts {
		ref := m.GetImage().GetImage()
		if ref == "" {
			continue
		}
		id, err := s.config.Images.Volume(ref)
		if err != nil {
			return nil, volumeFailed(m, err)
		}
		if ids == nil {
			ids = make([]string, len(config.Mounts))
		}
		ids[i] = id
	}
	return ids, nil
}

// volumeFailed begins as clients expect of the errors of image volumes.
func volumeFailed(m *runtimev1.Mount, err error) error {
	return fmt.Errorf("%w: image %s on %s: %w", crierrors.ErrImageVolumeMountFailed, m.Image.Image, m.ContainerPath, err)
}

// rootSuffix separates a container's id from the index of a mount in the name under which the image of that is mounted.
const rootSuffix = "-"

func imageRootName(id ContainerID, i int) string { return string(id) + rootSuffix + strconv.Itoa(i) }

// rootOwner is the container that a root is of: its own, or that of an image that it mounts.
func rootOwner(name string) string {
	id, _, _ := strings.Cut(name, rootSuffix)
	return id
}

// mountImages mounts the images that the container has as volumes. They are read-only and belong to it alone: what images
// have in common is shared below, by their layers.
func (b *building) mountImages(ctx context.Context) error {
	for i, id := range b.status.Load().ImageVolumes {
		if id == "" {
			continue
		}
		m := b.config.Mounts[i]
		opts := b.rootOptions()
		opts.ReadOnly, opts.SubPath = true, m.ImageSubPath
		f, err := b.p.s.config.Images.Rootfs(ctx, id, imageRootName(b.id, i), opts)
		if err != nil {
			return volumeFailed(m, err)
		}
		source := filepath.Join(b.p.dir(), "image-volumes", string(b.id), strconv.Itoa(i)) // a name; nothing is there
		b.images = append(b.images, imageTree{i, ociruntime.Tree{Source: source, File: f}})
	}
	return nil
}

// rootOptions are what the root and mounted images have in common.
func (b *building) rootOptions() layer.RootOptions {
	opts := layer.RootOptions{Label: b.labels.Mount}
	if m := b.p.spec.userNS; m != nil {
		opts.UIDs, opts.GIDs = layerMap(m.UIDs), layerMap(m.GIDs)
	}
	return opts
}

// unmountImages undoes mountImages, for a container of which nothing is known too.
func (b *building) unmountImages(ctx context.Context) error {
	for _, v := range b.takeTrees() {
		_ = v.File.Close() // of a mount: nothing to lose
	}
	var names []string
	st := b.status.Load()
	for i, id := range st.ImageVolumes {
		if id != "" {
			names = append(names, imageRootName(b.id, i))
		}
	}
	if st.Metadata == nil && b.p.s.config.Roots != nil {
		names = slices.DeleteFunc(b.p.s.config.Roots(), func(name string) bool { return !strings.HasPrefix(name, string(b.id)+rootSuffix) })
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, b.p.s.config.Images.ReleaseRootfs(ctx, name))
	}
	return errors.Join(errs...)
}

// takeTrees hands the mounted images over.
func (b *building) takeTrees() []ociruntime.Tree {
	var trees []ociruntime.Tree
	for _, v := range b.images {
		trees = append(trees, v.tree)
	}
	b.images = nil
	return trees
}

// imageSources are the sources of the mounted images in the spec, by the index of the mount.
func (b *building) imageSources() map[int]string {
	sources := map[int]string{}
	for _, v := range b.images {
		sources[v.at] = v.tree.Source
	}
	return sources
}
