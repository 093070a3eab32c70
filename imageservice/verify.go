package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/imageservice/trust"
	"github.com/criserver/criserver/stage"
)

// verifyBound limits the verification of one pull: some small documents and the operator's programs.
const verifyBound = 5 * time.Minute

// Verification is what an image must stand before more of it is fetched than its manifests. The zero value asks nothing.
type Verification struct {
	Policy    *trust.Policy
	Verifiers *trust.Verifiers
	// AnyImport lets in whatever an archive has: then only pulls are asked about.
	AnyImport bool
}

// SetVerification replaces the verification for pulls and imports that begin from now on.
func (s *Service) SetVerification(v Verification) { s.verification.Store(&v) }

// verify returns nil if the image may come in.
func (v *Verification) verify(ctx context.Context, beside *trust.Evidence, img trust.Image) error {
	if v.Policy == nil && v.Verifiers == nil {
		return nil
	}
	return stage.Run(ctx, "verify", verifyBound, func(ctx context.Context) error {
		if v.Policy != nil {
			if err := v.Policy.Check(ctx, img, beside); err != nil {
				return err
			}
		}
		if v.Verifiers != nil {
			return v.Verifiers.Check(ctx, img)
		}
		return nil
	})
}

// verifyPull says whether what t has led to may come in.
func (v *Verification) verifyPull(ctx context.Context, session *remote.Session, t target, r *resolved) error {
	name, err := reference.ParseNamed(t.String())
	if err != nil {
		return err
	}
	return v.verify(ctx, trust.NewEvidence(beside{session}), trust.Image{Transport: trust.Registry, Name: name, Chain: r.chain})
}

// beside fetches what lies beside an image, from the same endpoints with the same credentials.
type beside struct{ *remote.Session }

func (b beside) Tagged(ctx context.Context, tag string) ([]byte, error) {
	m, err := b.ManifestByTag(ctx, tag, manifestTypes)
	return m.Bytes, absent(err)
}

func (b beside) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	m, err := b.ManifestByDigest(ctx, d, accepted)
	return m.Bytes, absent(err)
}

// Referrers asks for them by OCI's API, and where there is none, for the tag that stands in for it.
func (b beside) Referrers(ctx context.Context, d digest.Digest, artifactType string) (all []ocispec.Descriptor, err error) {
	pages, err := b.Session.Referrers(ctx, d, artifactType)
	if errors.Is(err, remote.ErrNotFound) || errors.Is(err, remote.ErrInvalid) {
		var m remote.Manifest
		m, err = b.ManifestByTag(ctx, referrersTag(d), indexTypes)
		pages = [][]byte{m.Bytes}
	}
	if err != nil {
		return nil, absent(err)
	}
	for _, page := range pages {
		list, err := parseReferrers(page)
		if err != nil {
			return nil, fmt.Errorf("%w: referrers of %s: %w", remote.ErrInvalid, d, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// referrersTag is that of an index of what refers to a manifest.
func referrersTag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) }

// parseReferrers reads an index.
func parseReferrers(data []byte) ([]ocispec.Descriptor, error) {
	var index struct{ Manifests descriptors }
	err := json.Unmarshal(data, &index)
	return index.Manifests, err
}

func (b beside) Blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	data, err := b.ReadBlob(ctx, desc, limit)
	return data, absent(err)
}

// absent tells package trust that something is not there.
func absent(err error) error {
	if errors.Is(err, remote.ErrNotFound) {
		return fmt.Errorf("%w: %v", trust.ErrAbsent, err) // not ErrNotFound: it is not the image that is missing
	}
	return err
}
