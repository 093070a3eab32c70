package imageservice

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/store/imagedb"
)

// Image is one present image. It is the caller's own, but Config is shared and must not be changed.
type Image struct {
	ID          string   // sha256:<hex> of the config, of an artifact's manifest
	RepoTags    []string // normalised, sorted
	RepoDigests []string // normalised, sorted
	Size        uint64   // bytes on disk if no layer were shared; never 0
	User        string   // as in the config: "name", "uid", "uid:gid" or empty
	Pinned      bool     // not to be collected
	Config      []byte   // as the registry served it; nil for an artifact
	DiffIDs     []digest.Digest
	PulledAt    time.Time // or imported, last

	ArtifactType string // empty for an image, of which containers can be made
	Manifest     []byte // as the registry served it
}

// Platform is what the image was made for, "os/arch/variant"; empty for an artifact.
func (i *Image) Platform() string {
	config, err := parseConfig(i.Config)
	if err != nil { // an artifact's: an image's was parsed before it was stored
		return ""
	}
	return platforms.Format(config.Platform)
}

// List returns the present images ordered by id.
func (s *Service) List() []*Image {
	images := s.db.Snapshot().Images()
	list := make([]*Image, len(images))
	for i, img := range images {
		list[i] = s.image(img)
	}
	return list
}

// Find finds an image by id, beginning of an id, tag, digest or unqualified name. The error is ErrNotFound, or ErrInvalidReference if
// ref is the beginning of several ids.
func (s *Service) Find(ref string) (*Image, error) {
	img, err := s.present(ref)
	if err != nil {
		return nil, err
	}
	return s.image(img), nil
}

func (s *Service) present(ref string) (*imagedb.Image, error) {
	img, err := lookUp(s.db.Snapshot(), ref)
	if err == nil && img == nil {
		err = fmt.Errorf("%w: %s", ErrNotFound, ref)
	}
	return img, err
}

// Volume returns the id of a present image or artifact that is to be mounted. Errors are those of Find.
func (s *Service) Volume(ref string) (id string, err error) {
	img, err := s.present(ref)
	if err != nil {
		return "", err
	}
	return string(img.ID), nil
}

// Config returns the id, the first repository digest (the id if there is none) and the parsed config, without history, of
// a present image. Errors are those of Find; an artifact, which is no image, is ErrInvalidReference.
func (s *Service) Config(ref string) (id, repoDigest string, config ocispec.Image, err error) {
	img, err := s.present(ref)
	if err == nil && img.ArtifactType != "" {
		err = fmt.Errorf("%w: %s is an artifact, which can be mounted as a volume; no container can be made of it", ErrInvalidReference, ref)
	}
	if err == nil {
		config, err = parseConfig(img.Config)
	}
	if err != nil {
		return "", "", ocispec.Image{}, err
	}
	repoDigest = string(img.ID)
	if len(img.RepoDigests) > 0 {
		repoDigest = img.RepoDigests[0]
	}
	return string(img.ID), repoDigest, config, nil
}

func (s *Service) image(img *imagedb.Image) *Image {
	return &Image{
		ID: string(img.ID), RepoTags: slices.Clone(img.Names), RepoDigests: slices.Clone(img.RepoDigests),
		Size: uint64(img.Size), User: img.User, Pinned: img.Pinned || s.isPinned(img), Config: img.Config,
		DiffIDs: img.DiffIDs, PulledAt: img.PulledAt,
		ArtifactType: img.ArtifactType, Manifest: img.Manifest,
	}
}

// normalisePinned checks the configured references.
func normalisePinned(refs []string) ([]string, error) {
	var pinned []string
	for _, ref := range refs {
		if strings.HasSuffix(ref, "*") {
			pinned = append(pinned, ref)
			continue
		}
		t, err := parse(ref)
		if err != nil {
			return nil, fmt.Errorf("pinned image %q: %w", ref, err)
		}
		pinned = append(pinned, t.String())
	}
	return pinned, nil
}

// CheckPinned says whether references can be pinned.
func CheckPinned(refs []string) error {
	_, err := normalisePinned(refs)
	return err
}

// SetPinned replaces the references of images that are not to be collected.
func (s *Service) SetPinned(refs []string) error {
	pinned, err := normalisePinned(refs)
	if err == nil {
		s.pinned.Store(&pinned)
	}
	return err
}

func (s *Service) isPinned(img *imagedb.Image) bool {
	matches := func(name string) bool {
		return slices.ContainsFunc(*s.pinned.Load(), func(pin string) bool {
			prefix, any := strings.CutSuffix(pin, "*")
			return name == pin || any && strings.HasPrefix(name, prefix)
		})
	}
	return slices.ContainsFunc(img.Names, matches) || slices.ContainsFunc(img.RepoDigests, matches)
}

// unique returns the digests without repetitions, in the order of their first.
func unique(ids []digest.Digest) []digest.Digest {
	var once []digest.Digest
	for _, id := range ids {
		if !slices.Contains(once, id) {
			once = append(once, id)
		}
	}
	return once
}
