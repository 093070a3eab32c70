package imageservice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/distribution/reference"
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
}

// SetVerification replaces the verification for pulls that begin from now on.
func (s *Service) SetVerification(v Verification) { s.verification.Store(&v) }

// verify returns nil if the image may come in.
func (v *Verification) verify(ctx context.Context, session *remote.Session, t target, r *resolved) error {
	if v.Policy == nil && v.Verifiers == nil {
		return nil
	}
	return stage.Run(ctx, "verify", verifyBound, func(ctx context.Context) error {
		name, err := reference.ParseNamed(t.String())
		if err != nil {
			return err
		}
		img := trust.Image{Name: name, Chain: r.chain}
		if v.Policy != nil {
			if err := v.Policy.Check(ctx, img, beside{session}); err != nil {
				return err
			}
		}
		if v.Verifiers != nil {
			return v.Verifiers.Check(ctx, img)
		}
		return nil
	})
}

// beside fetches what lies beside an image, from the same endpoints with the same credentials.
type beside struct{ *remote.Session }

func (b beside) Tagged(ctx context.Context, tag string) ([]byte, error) {
	m, err := b.ManifestByTag(ctx, tag, manifestTypes)
	return m.Bytes, absent(err)
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
