package imageservice

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
)

const (
	maxIndexDepth  = 3    // indexes before a manifest
	maxDescriptors = 1000 // in a manifest or index
)

var (
	indexTypes    = []string{ocispec.MediaTypeImageIndex, images.MediaTypeDockerSchema2ManifestList}
	manifestTypes = []string{ocispec.MediaTypeImageManifest, images.MediaTypeDockerSchema2Manifest}
	accepted      = slices.Concat(manifestTypes, indexTypes)
	configTypes   = []string{ocispec.MediaTypeImageConfig, images.MediaTypeDockerSchema2Config}
	vagueTypes    = []string{"", "application/json", "text/plain", "application/octet-stream"} // say nothing
)

// document is a manifest or an index; which of the two is decided by kind.
type document struct {
	SchemaVersion int                `json:"schemaVersion"`
	MediaType     string             `json:"mediaType"`
	ArtifactType  string             `json:"artifactType"`
	Config        ocispec.Descriptor `json:"config"`
	Layers        descriptors        `json:"layers"`
	Manifests     descriptors        `json:"manifests"`
	FSLayers      json.RawMessage    `json:"fsLayers"` // only in schema 1
}

// descriptors are decoded one by one, because each may take fifty times as much memory as JSON.
type descriptors []ocispec.Descriptor

// UnmarshalJSON stops at maxDescriptors.
func (d *descriptors) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	switch begin, err := dec.Token(); {
	case err != nil || begin == nil: // null
		return err
	case begin != json.Delim('['):
		return fmt.Errorf("%v instead of a list of descriptors", begin)
	}
	*d = descriptors{}
	for dec.More() {
		if len(*d) == maxDescriptors {
			return fmt.Errorf("more than %d descriptors in a list", maxDescriptors)
		}
		var next ocispec.Descriptor
		if err := dec.Decode(&next); err != nil {
			return err
		}
		*d = append(*d, next)
	}
	return nil
}

// parseConfig reads an image's config without its history, which is of no use here and may be long.
func parseConfig(data []byte) (ocispec.Image, error) {
	var c struct {
		ocispec.Image
		History json.RawMessage `json:"history"` // in place of Image's
	}
	err := json.Unmarshal(data, &c)
	return c.Image, err
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalidImage, fmt.Errorf(format, args...))
}

// parseDocument reads what the registry served and refuses what two readers could understand in two ways.
func parseDocument(m remote.Manifest) (doc document, index bool, err error) {
	if err := json.Unmarshal(m.Bytes, &doc); err != nil {
		return doc, false, invalidf("manifest %s: %w", m.Digest, err)
	}
	if err := repeated(m.Bytes); err != nil {
		return doc, false, invalidf("manifest %s: %w", m.Digest, err)
	}
	kind := doc.MediaType
	if kind == "" {
		kind = m.MediaType
	} else if kind != m.MediaType && !slices.Contains(vagueTypes, m.MediaType) {
		return doc, false, invalidf("manifest %s: served as %q, calls itself %q", m.Digest, m.MediaType, kind)
	}
	isIndex, isManifest := doc.Manifests != nil, doc.Layers != nil || doc.Config.Digest != ""
	switch {
	case doc.SchemaVersion == 1 || doc.FSLayers != nil:
		return doc, false, invalidf("manifest %s: schema 1 is no longer supported, the image must be built anew", m.Digest)
	case isIndex && isManifest:
		return doc, false, invalidf("manifest %s: it is both a manifest and an index", m.Digest)
	case isIndex && (slices.Contains(indexTypes, kind) || slices.Contains(vagueTypes, kind)):
		return doc, true, nil
	case isManifest && (slices.Contains(manifestTypes, kind) || slices.Contains(vagueTypes, kind)):
		return doc, false, nil
	case slices.Contains(accepted, kind):
		return doc, false, invalidf("manifest %s: its content is not that of a %s", m.Digest, kind)
	}
	return doc, false, invalidf("manifest %s: media type %q is not a container image's", m.Digest, kind)
}

// resolved is what a reference led to.
type resolved struct {
	top      digest.Digest        // of what the reference names: manifest or index
	chain    []ocispec.Descriptor // from top to manifest
	manifest remote.Manifest
	doc      document
	artifact bool // there is no image's config
	config   []byte
	image    ocispec.Image

	kept [][]byte // indexes of the chain, an artifact's config
}

// id is what the image, or artifact, is known by.
func (r *resolved) id() digest.Digest {
	if r.artifact {
		return r.manifest.Digest
	}
	return r.doc.Config.Digest
}

// documents is where manifests and configs come from.
type documents interface {
	ManifestByDigest(ctx context.Context, d digest.Digest, accepted []string) (remote.Manifest, error)
	ReadBlob(ctx context.Context, desc ocispec.Descriptor, most int64) ([]byte, error)
}

// resolve walks from the reference to the manifest of this node's platform.
func (s *Service) resolve(ctx context.Context, src *remote.Session, t target) (r resolved, err error) {
	var m remote.Manifest
	if t.digest != "" {
		m, err = src.ManifestByDigest(ctx, t.digest, accepted)
	} else {
		m, err = src.ManifestByTag(ctx, t.tag, accepted)
	}
	if err != nil {
		return r, err
	}
	return s.descend(ctx, src, m, s.platform)
}

// descend walks from a manifest or index to the manifest of the wanted platform.
func (s *Service) descend(ctx context.Context, src documents, m remote.Manifest, wanted platforms.MatchComparer) (r resolved, err error) {
	r.top = m.Digest
	for depth := 0; ; depth++ {
		doc, index, err := parseDocument(m)
		if err != nil {
			return r, err
		}
		r.chain = append(r.chain, ocispec.Descriptor{MediaType: cmp.Or(doc.MediaType, m.MediaType), Digest: m.Digest, Size: int64(len(m.Bytes))})
		if !index {
			r.manifest, r.doc = m, doc
			if r.artifact = isArtifact(doc, cmp.Or(doc.MediaType, m.MediaType)); r.artifact {
				return r, nil
			}
			return r, s.checkManifest(m.Digest, doc)
		}
		r.kept = append(r.kept, m.Bytes)
		if depth == maxIndexDepth {
			return r, invalidf("index %s: more than %d indexes before a manifest", m.Digest, maxIndexDepth)
		}
		desc, err := choose(m.Digest, doc.Manifests, wanted)
		if err != nil {
			return r, err
		}
		if m, err = src.ManifestByDigest(ctx, desc.Digest, accepted); err != nil {
			return r, err
		}
		if desc.Size != int64(len(m.Bytes)) {
			return r, invalidf("manifest %s: %d bytes, the index says %d", m.Digest, len(m.Bytes), desc.Size)
		}
	}
}

// annotationOf says what an entry of an index is to another one, such as an attestation.
const annotationOf = "vnd.docker.reference.type"

func isAttestation(e ocispec.Descriptor) bool {
	return e.Annotations[annotationOf] != "" || e.Platform != nil && e.Platform.OS == "unknown"
}

// choose takes the entry of an index that fits the wanted platform best. Entries without a platform are taken if no other
// fits, but no artifact in the place of an image for other platforms.
func choose(index digest.Digest, entries []ocispec.Descriptor, wanted platforms.MatchComparer) (ocispec.Descriptor, error) {
	var best *ocispec.Descriptor
	var offered []string
	for i, e := range entries {
		if !slices.Contains(accepted, e.MediaType) {
			continue
		}
		if isAttestation(e) {
			continue
		}
		if err := e.Digest.Validate(); err != nil {
			return e, invalidf("index %s: entry %d: %w", index, i, err)
		}
		switch {
		case e.Platform == nil:
			if best == nil {
				best = &entries[i]
			}
			continue
		case !wanted.Match(*e.Platform):
			offered = append(offered, platforms.FormatAll(*e.Platform))
			continue
		}
		if best == nil || best.Platform == nil || wanted.Less(*e.Platform, *best.Platform) {
			best = &entries[i]
		}
	}
	if best == nil || best.Platform == nil && best.ArtifactType != "" && len(offered) > 0 {
		return ocispec.Descriptor{}, fmt.Errorf("%w: index %s has no image for this platform, only for %q", ErrNotFound, index, offered)
	}
	return *best, nil
}

// checkManifest looks at everything that a manifest promises before anything of it is fetched.
func (s *Service) checkManifest(d digest.Digest, doc document) error {
	if !slices.Contains(configTypes, doc.Config.MediaType) {
		return invalidf("manifest %s: config has media type %q: not a container image", d, doc.Config.MediaType)
	}
	if len(doc.Layers) > s.cfg.Limits.Layers {
		return invalidf("manifest %s: %d layers are more than the %d allowed", d, len(doc.Layers), s.cfg.Limits.Layers)
	}
	for i, l := range doc.Layers {
		if err := l.Digest.Validate(); err != nil {
			return invalidf("manifest %s: layer %d: digest %q: %w", d, i, l.Digest, err)
		}
		if l.Size <= 0 {
			return invalidf("manifest %s: layer %d: size is %d", d, i, l.Size)
		}
		if _, known := layerCompressions[l.MediaType]; !known {
			return invalidf("manifest %s: layer %d: media type %q is not a layer's", d, i, l.MediaType)
		}
	}
	return nil
}

// fetchConfig fetches and checks the config, against the manifest and the wanted platform.
func (s *Service) fetchConfig(ctx context.Context, src documents, r *resolved, wanted platforms.MatchComparer) (err error) {
	if r.config, err = src.ReadBlob(ctx, r.doc.Config, s.cfg.Limits.Config); err != nil {
		return err
	}
	id := r.doc.Config.Digest
	if r.image, err = parseConfig(r.config); err != nil {
		return invalidf("config %s: %w", id, err)
	}
	if err := repeated(r.config); err != nil {
		return invalidf("config %s: %w", id, err)
	}
	if r.image.RootFS.Type != "layers" {
		return invalidf("config %s: rootfs.type is %q", id, r.image.RootFS.Type)
	}
	if got, want := len(r.image.RootFS.DiffIDs), len(r.doc.Layers); got != want {
		return invalidf("config %s: %d rootfs.diff_ids, the manifest has %d layers", id, got, want)
	}
	for i, d := range r.image.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return invalidf("config %s: rootfs.diff_ids[%d] %q: %w", id, i, d, err)
		}
	}
	if r.image.OS != "" && r.image.Architecture != "" && !wanted.Match(r.image.Platform) {
		return fmt.Errorf("%w: config %s is for platform %s, which is not the wanted one", ErrNotFound, id, platforms.Format(r.image.Platform))
	}
	return nil
}

// platformOf returns what matches the given platform, this node's if it is empty.
func platformOf(name string) (platforms.MatchComparer, error) {
	if name == "" {
		return platforms.Only(platforms.DefaultSpec()), nil
	}
	p, err := platforms.Parse(name)
	if err != nil {
		return nil, errors.New("platform is not os/arch/variant: " + name)
	}
	return platforms.Only(p), nil
}
