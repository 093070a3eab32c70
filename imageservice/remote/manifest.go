package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

// MaxManifest is the largest manifest or index that is accepted, in bytes.
const MaxManifest = 4 << 20

// Manifest is a manifest or index as it was served.
type Manifest struct {
	Digest    digest.Digest // of Bytes, verified if it was asked for
	MediaType string        // as told by the Content-Type
	Bytes     []byte
}

// ManifestByTag asks the endpoints that may resolve names.
func (s *Session) ManifestByTag(ctx context.Context, tag string, accept []string) (Manifest, error) {
	return s.manifest(ctx, tag, "", accept, docker.HostCapabilityPull|docker.HostCapabilityResolve)
}

// ManifestByDigest asks all endpoints; the digest is verified.
func (s *Session) ManifestByDigest(ctx context.Context, d digest.Digest, accept []string) (Manifest, error) {
	return s.manifest(ctx, d.String(), d, accept, docker.HostCapabilityPull)
}

func (s *Session) capable(c docker.HostCapabilities) (hosts []*endpoint) {
	for _, h := range s.hosts {
		if h.Capabilities.Has(c) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

func (s *Session) manifest(ctx context.Context, object string, want digest.Digest, accept []string, c docker.HostCapabilities) (Manifest, error) {
	header := http.Header{"Accept": {strings.Join(accept, ", ")}}
	p := s.schedule("manifest "+object, s.capable(c))
	for {
		e, err := p.pick(ctx)
		if err != nil {
			return Manifest{}, err
		}
		address, name := s.url(e, "manifests", object)
		m, err := s.manifestFrom(ctx, e, address, header, want)
		if err == nil {
			return m, nil
		}
		if err := p.failed(ctx, name, err); err != nil {
			return Manifest{}, err
		}
	}
}

func (s *Session) manifestFrom(ctx context.Context, e *endpoint, address string, header http.Header, want digest.Digest) (Manifest, error) {
	resp, b, err := s.stream(ctx, e, address, header, http.StatusOK)
	if err != nil {
		return Manifest{}, err
	}
	defer func() { _ = b.Close() }() // read to its end, or abandoned
	data, err := io.ReadAll(io.LimitReader(b, MaxManifest+1))
	if err != nil {
		return Manifest{}, err
	}
	if len(data) > MaxManifest {
		return Manifest{}, fmt.Errorf("%w: manifest of more than %d bytes", ErrInvalid, MaxManifest)
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	m := Manifest{Digest: want, MediaType: strings.TrimSpace(mediaType), Bytes: data}
	if want == "" {
		// The registry's word for what the tag means; if it gives none, the bytes speak for themselves.
		m.Digest = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if m.Digest == "" {
			m.Digest = digest.FromBytes(data)
		}
	}
	if err := m.Digest.Validate(); err != nil {
		return Manifest{}, fmt.Errorf("%w: digest %q: %w", ErrInvalid, printable(m.Digest.String()), err)
	}
	if got := m.Digest.Algorithm().FromBytes(data); got != m.Digest {
		return Manifest{}, fmt.Errorf("%w: digest of the manifest is %s, not %s", ErrInvalid, got, m.Digest)
	}
	return m, nil
}
