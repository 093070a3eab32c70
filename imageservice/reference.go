package imageservice

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/imagedb"
)

// maxReference bounds a reference, in bytes: a name has at most 255 and a tag 128.
const maxReference = 1024

// target is what a reference asks a registry for.
type target struct {
	repo   reference.Named // without tag and digest
	tag    string          // empty if there is a digest
	digest digest.Digest
}

// parse normalises a reference as users write it: docker.io and library/ where nothing else is said, and :latest unless
// there is a tag or a digest. A digest beats a tag.
func parse(ref string) (target, error) {
	if len(ref) > maxReference {
		return target{}, fmt.Errorf("%w: longer than %d bytes", ErrInvalidReference, maxReference)
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return target{}, fmt.Errorf("%w %q: %w", ErrInvalidReference, ref, err)
	}
	t := target{repo: reference.TrimNamed(named)}
	switch r := named.(type) {
	case reference.Canonical:
		t.digest = r.Digest()
	case reference.Tagged:
		t.tag = r.Tag()
	}
	return t, nil
}

// String is the normalised reference.
func (t target) String() string {
	if t.digest != "" {
		return t.repo.Name() + "@" + t.digest.String()
	}
	return t.repo.Name() + ":" + t.tag
}

// lookUp returns the present image that ref means: an id, a name or digest as one would pull it, or the beginning of an id that
// fits only one image. nil if there is none; ErrInvalidReference, which names them, if several are meant.
func lookUp(s *imagedb.Snapshot, ref string) (*imagedb.Image, error) {
	if img := s.ByID(digest.Digest(ref)); img != nil {
		return img, nil
	}
	if t, err := parse(ref); err == nil {
		if img := s.ByName(t.String()); img != nil {
			return img, nil
		}
	}
	if strings.ContainsFunc(strings.TrimPrefix(ref, "sha256:"), func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		return nil, nil
	}
	img, err := s.ByPrefix(ref)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrInvalidReference, ref, err)
	}
	return img, nil
}
