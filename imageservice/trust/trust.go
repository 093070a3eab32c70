package trust

import (
	"context"
	"errors"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrRefused says that an image must not be used, in an error that names the rule.
var ErrRefused = errors.New("image refused")

// ErrAbsent is what a Source returns for a manifest or blob that the repository does not have.
var ErrAbsent = errors.New("not in the repository")

// Transports by which an image comes, as policy files name them.
const (
	Registry      = "docker"
	DockerArchive = "docker-archive"
	OCIArchive    = "oci-archive"
	OCILayout     = "oci"
)

// Image is what a pull or an import has resolved.
type Image struct {
	Transport string
	Name      reference.Named      // with the tag or digest that was asked for, or that it gets; nil if an archive gives none
	Chain     []ocispec.Descriptor // of what Name means, then of every manifest on the way to this node's, which is the last
}

// Source fetches what a repository, or an archive, has beside the image.
type Source interface {
	// Tagged returns the manifest with that tag, or an error that is ErrAbsent.
	Tagged(ctx context.Context, tag string) ([]byte, error)
	// Manifest returns a manifest, verified; or an error that is ErrAbsent.
	Manifest(ctx context.Context, d digest.Digest) ([]byte, error)
	// Referrers returns what says that it refers to a manifest; artifactType may be all that is of interest. None is no error.
	Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
	// Blob returns a whole blob of at most limit bytes, verified; or an error that is ErrAbsent.
	Blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error)
}

func (img Image) digests() []digest.Digest {
	var all []digest.Digest
	for _, d := range img.Chain {
		all = append(all, d.Digest)
	}
	return all
}

// clip makes a stranger's text fit for an error, with %q.
func clip(s string) string {
	const longest = 200
	if len(s) > longest {
		return s[:longest] + "..."
	}
	return s
}
