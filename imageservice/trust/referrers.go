package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationPredicate says, of a bundle, what kind of statement it has. Not every tool keeps it.
const annotationPredicate = "dev.sigstore.bundle.predicateType"

const (
	maxBundles = 64        // of one manifest that are looked at
	maxBundle  = 256 << 10 // bytes
)

// attached is a bundle that refers to a manifest, as the registry lists it.
type attached struct {
	desc   ocispec.Descriptor // of its manifest
	loaded bool
	bundle bundle
	err    error // it cannot count
}

// bundlesOf returns the bundles that refer to a manifest, but for those that say they are something else than a signature: to
// believe that can only refuse. None is no error.
func (e *Evidence) bundlesOf(ctx context.Context, d digest.Digest) ([]*attached, error) {
	if all, known := e.bundles[d]; known {
		return all, nil
	}
	list, err := e.src.Referrers(ctx, d, bundleType)
	if err != nil && !errors.Is(err, ErrAbsent) {
		return nil, fmt.Errorf("look for bundles of %s: %w", d, err)
	}
	var all []*attached
	for _, desc := range list {
		kind := desc.Annotations[annotationPredicate]
		if desc.ArtifactType != bundleType || kind != "" && kind != signPredicate || len(all) == maxBundles {
			continue
		}
		all = append(all, &attached{desc: desc})
	}
	e.bundles[d] = all
	return all, nil
}

// acceptBundle says whether a bundle that refers to d counts.
func (s *signed) acceptBundle(ctx context.Context, img Image, e *Evidence, d digest.Digest, a *attached) error {
	if err := a.load(ctx, e.src, d); err != nil {
		return err
	}
	b := &a.bundle
	if !b.envelope {
		message, err := e.manifest(ctx, d)
		if err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		if !b.matches(message) {
			return fmt.Errorf("%w: it is for something else than the manifest", errDoesNotCount)
		}
		if err := s.byKey(message, b.signature); err != nil {
			return err
		}
		return doesNotCount(s.match.holds(img.Name, nil))
	}
	if err := s.byKey(b.signedBytes(), b.signature); err != nil {
		return err
	}
	name, err := parseStatement(b.payload, d)
	if err != nil {
		return fmt.Errorf("%w: statement: %w", errDoesNotCount, err)
	}
	return doesNotCount(s.match.holds(img.Name, name))
}

func doesNotCount(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", errDoesNotCount, err)
	}
	return err
}

// load fetches the bundle, once if that tells what it is.
func (a *attached) load(ctx context.Context, src Source, d digest.Digest) error {
	if a.loaded {
		return a.err
	}
	if err := a.desc.Digest.Validate(); err != nil {
		return doesNotCount(err)
	}
	manifest, err := src.Manifest(ctx, a.desc.Digest)
	if err != nil {
		return err
	}
	desc, err := parseAttached(manifest, d)
	if err != nil {
		a.loaded, a.err = true, doesNotCount(err)
		return a.err
	}
	data, err := src.Blob(ctx, desc, maxBundle)
	if err != nil {
		return err
	}
	a.loaded = true
	a.bundle, err = parseBundle(data)
	a.err = doesNotCount(err)
	return a.err
}

// parseAttached reads the manifest of a bundle that refers to d and returns where the bundle is.
func parseAttached(manifest []byte, d digest.Digest) (desc ocispec.Descriptor, err error) {
	var m struct {
		Subject *ocispec.Descriptor
		Layers  []json.RawMessage
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return desc, err
	}
	if m.Subject == nil || m.Subject.Digest != d {
		return desc, errors.New("its manifest does not refer to the image's")
	}
	if len(m.Layers) != 1 {
		return desc, fmt.Errorf("its manifest has %d layers instead of one", len(m.Layers))
	}
	if err := json.Unmarshal(m.Layers[0], &desc); err != nil {
		return desc, err
	}
	if desc.MediaType != bundleType {
		return desc, fmt.Errorf("its layer is of type %q instead of %q", clip(desc.MediaType), bundleType)
	}
	if desc.Size < 0 || desc.Size > maxBundle {
		return desc, fmt.Errorf("it has %d bytes, at most %d are read", desc.Size, maxBundle)
	}
	return desc, desc.Digest.Validate()
}

// manifest is one of the image's own.
func (e *Evidence) manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	if data, known := e.manifests[d]; known {
		return data, nil
	}
	data, err := e.src.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	e.manifests[d] = data
	return data, nil
}
