package imagedb

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// Image is one image. Images of a Snapshot are shared and read-only.
type Image struct {
	ID             digest.Digest   // of Config; of an artifact, of Manifest
	Names          []string        // normalised repository:tag, sorted
	RepoDigests    []string        // normalised repository@digest, sorted
	DiffIDs        []digest.Digest // of the uncompressed layers, bottom first
	Size           int64           // bytes that the layers take when nothing is shared, config and manifest
	PulledAt       time.Time       // of the last pull that came to this image
	User           string          // as in Config, so that listing need not parse it
	Pinned         bool            // not to be collected
	ArtifactType   string          `json:",omitempty"` // empty for an image; an artifact has no Config
	Parts          []string        `json:",omitempty"` // of an artifact: what each of DiffIDs was made of
	ManifestDigest digest.Digest   // of Manifest
	Config         []byte          `json:"-"` // as the registry served it
	Manifest       []byte          `json:"-"` // as the registry served it; of the last pull if several name this config

	// Documents are small ones that only an export needs: indexes by which the image was reached, an artifact's config. Put
	// keeps at most maxDocuments, none larger than MaxDocument, those of the last pull before others.
	Documents [][]byte `json:",omitempty"`
}

// MaxDocument bounds one of an image's Documents, in bytes.
const MaxDocument = 256 << 10

const maxDocuments = 8

var errDamaged = errors.New("value does not match its checksum")

// encode makes the value of the record bucket: the SHA-256 of the JSON, then the JSON.
func (img *Image) encode() ([]byte, error) {
	payload, err := json.Marshal(img)
	if err != nil {
		return nil, fmt.Errorf("encode image %s: %w", img.ID, err)
	}
	sum := sha256.Sum256(payload)
	return append(sum[:], payload...), nil
}

// decode verifies all three values of an image and copies what it keeps, for they lie in the mapped file.
func decode(id string, record, config, manifest []byte) (*Image, error) {
	if len(record) < sha256.Size || sha256.Sum256(record[sha256.Size:]) != [sha256.Size]byte(record) {
		return nil, errDamaged
	}
	img := &Image{}
	if err := json.Unmarshal(record[sha256.Size:], img); err != nil {
		return nil, err
	}
	img.Config, img.Manifest = append([]byte{}, config...), append([]byte{}, manifest...)
	if string(img.ID) != id {
		return nil, fmt.Errorf("record is of image %s", img.ID)
	}
	return img, img.validate()
}

// validate says whether the image vouches for its own bytes.
func (img *Image) validate() error {
	if err := img.matchesID(); err != nil {
		return err
	}
	if err := matches(img.ManifestDigest, img.Manifest); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for i, d := range img.DiffIDs {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("diff id %d: %w", i, err)
		}
	}
	return nil
}

func (img *Image) matchesID() error {
	if img.ArtifactType == "" {
		if err := matches(img.ID, img.Config); err != nil {
			return fmt.Errorf("config: %w", err)
		}
		return nil
	}
	if img.ID != img.ManifestDigest || len(img.Config) > 0 || len(img.Parts) != len(img.DiffIDs) {
		return fmt.Errorf("%w: not an artifact", errDamaged)
	}
	return nil
}

func matches(want digest.Digest, data []byte) error {
	if err := want.Validate(); err != nil {
		return err
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return fmt.Errorf("%w: digest is %s, not %s", errDamaged, got, want)
	}
	return nil
}
