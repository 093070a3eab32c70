package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const dockerFile = "manifest.json"

// Docker's media types.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// docker is manifest.json while it is read.
type docker struct {
	*Archive
	make    bool                     // false: the images are known from elsewhere, and only their names are taken
	digests map[string]digest.Digest // of packed layers by their names: images share them
}

// loadDocker reads manifest.json.
func (a *Archive) loadDocker(ctx context.Context, make bool) error {
	data, err := read(a.files, dockerFile, maxDocument)
	if err != nil {
		return err
	}
	var list []dockerImage
	if err := json.Unmarshal(data, &list); err != nil {
		return invalidf("%s: %w", dockerFile, err)
	}
	if len(list) > maxImages {
		return invalidf("%s: %d images, more than %d", dockerFile, len(list), maxImages)
	}
	d := docker{a, make, map[string]digest.Digest{}}
	for i, img := range list {
		if err := d.add(ctx, img); err != nil {
			return fmt.Errorf("%s: image %d: %w", dockerFile, i+1, err)
		}
	}
	return nil
}

func (a docker) add(ctx context.Context, img dockerImage) error {
	if len(img.RepoTags) > maxNames || len(img.Layers) > maxLayers {
		return invalidf("%d names and %d layers, more than %d and %d", len(img.RepoTags), len(img.Layers), maxNames, maxLayers)
	}
	name, config, err := a.readNamed(img.Config)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	id := digest.FromBytes(config)
	a.names[id] = append(a.names[id], img.RepoTags...)
	if n := len(a.names[id]); n > maxNames { // of several entries
		return invalidf("config %s: %d names, more than %d", id, n, maxNames)
	}
	if !a.make {
		return nil
	}
	var rootfs struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &rootfs); err != nil {
		return invalidf("config %s: %w", id, err)
	}
	diffIDs := rootfs.RootFS.DiffIDs
	if len(diffIDs) != len(img.Layers) {
		return invalidf("config %s: %d rootfs.diff_ids, there are %d layers", id, len(diffIDs), len(img.Layers))
	}
	a.blobs[id] = blob{name: name}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: dockerManifest,
		Config: ocispec.Descriptor{MediaType: dockerConfig, Digest: id, Size: int64(len(config))},
		Layers: []ocispec.Descriptor{},
	}
	for i, name := range img.Layers {
		desc, err := a.layer(ctx, name, diffIDs[i])
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		m.Layers = append(m.Layers, desc)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	a.blobs[desc.Digest] = blob{data: data}
	a.images = append(a.images, Image{Desc: desc, Made: true})
	return nil
}

func (a docker) readNamed(spelled string) (name string, data []byte, err error) {
	if name, err = clean(spelled); err != nil {
		return "", nil, err
	}
	data, err = read(a.files, name, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		err = invalidf("file %q is missing", name)
	}
	return name, data, err
}

// layer describes a layer. A plain one has the digest that the config says; a packed one is read for its own.
func (a docker) layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: dockerLayer, Digest: diffID}
	if err := diffID.Validate(); err != nil {
		return desc, invalidf("rootfs.diff_ids has %q: %w", diffID, err)
	}
	name, err := clean(name)
	if err != nil {
		return desc, err
	}
	f, err := a.files.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return desc, invalidf("file %q is missing", name)
	}
	if err != nil {
		return desc, err
	}
	defer func() { _ = f.Close() }() // only read
	desc.Size = f.Size()
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return desc, fmt.Errorf("read %q: %w", name, err)
	}
	if compression(head) != plain {
		if desc.Digest = a.digests[name]; desc.Digest == "" {
			if desc.Digest, err = digest.FromReader(&stopping{ctx, f}); err != nil {
				return desc, fmt.Errorf("read %q: %w", name, err)
			}
			a.digests[name] = desc.Digest
		}
		desc.MediaType = dockerLayer + ".gzip"
		if bytes.HasPrefix(head, magicZstd) {
			desc.MediaType = dockerLayer + ".zstd"
		}
	}
	a.blobs[desc.Digest] = blob{name: name}
	return desc, nil
}
