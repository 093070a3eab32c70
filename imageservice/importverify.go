package imageservice

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/imageservice/trust"
)

// incoming is an archive that is being imported, and what of it lies beside its images.
type incoming struct {
	shelf
	verification *Verification
	images       []archive.Image                        // those entries of the archive's index that are not attached to other ones
	tagged       map[string]digest.Digest               // the first manifest with each tag
	signatures   digest.Digest                          // the first manifest that is marked so; empty if none is
	referrers    map[digest.Digest][]ocispec.Descriptor // by what they refer to
}

// attachedTag is that of what is attached to an image: signatures, attestations, a list of referrers.
var attachedTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\.[a-z]+)?$`)

// What `cosign save` says of the entries of an index.
const (
	annotationKind = "kind"
	kindSignatures = "dev.cosignproject.cosign/sigs"
)

var attachedKinds = []string{kindSignatures, "dev.cosignproject.cosign/atts", "dev.cosignproject.cosign/sboms"}

// arriving reads each manifest of the archive's index once.
func arriving(a *archive.Archive, v *Verification) *incoming {
	s := &incoming{shelf: shelf{a}, verification: v, tagged: map[string]digest.Digest{}, referrers: map[digest.Digest][]ocispec.Descriptor{}}
	for _, img := range a.Images() {
		if !s.attached(img) {
			s.images = append(s.images, img)
		}
	}
	return s
}

// attached says whether an entry is attached to another one, and takes down what it is to that.
func (s *incoming) attached(img archive.Image) (is bool) {
	for _, name := range append(slices.Clone(img.Names), img.Tag) {
		tag := tagOf(name)
		if _, taken := s.tagged[tag]; !taken {
			s.tagged[tag] = img.Desc.Digest
		}
		is = is || attachedTag.MatchString(tag)
	}
	kind := img.Desc.Annotations[annotationKind]
	if kind == kindSignatures && s.signatures == "" {
		s.signatures = img.Desc.Digest
	}
	subject, artifactType := s.refersTo(img.Desc)
	if subject != "" {
		img.Desc.ArtifactType = artifactType
		s.referrers[subject] = append(s.referrers[subject], img.Desc)
	}
	return is || slices.Contains(attachedKinds, kind) || subject != "" && s.archive.Has(subject)
}

func tagOf(name string) string { return name[strings.LastIndexByte(name, ':')+1:] }

// refersTo is what a manifest refers to, empty if it is none that does, and of which artifact type it is.
func (s *incoming) refersTo(desc ocispec.Descriptor) (subject digest.Digest, artifactType string) {
	data, err := s.archive.Document(desc.Digest, remote.MaxManifest)
	if err != nil {
		return "", "" // told when it is imported
	}
	var m struct {
		Subject      *ocispec.Descriptor
		ArtifactType string
		Config       ocispec.Descriptor
	}
	if json.Unmarshal(data, &m) != nil || m.Subject == nil || m.Subject.Digest.Validate() != nil {
		return "", ""
	}
	return m.Subject.Digest, cmp.Or(m.ArtifactType, m.Config.MediaType)
}

// verify says whether an image may come in under all of these names, each as if it were pulled by it.
func (s *incoming) verify(ctx context.Context, img archive.Image, r *resolved, names, repoDigests []string) error {
	if s.verification.AnyImport {
		return nil
	}
	asked := slices.Clone(names)
	for _, name := range repoDigests {
		repo, _, _ := strings.Cut(name, "@")
		if !slices.ContainsFunc(names, func(n string) bool { return n[:strings.LastIndexByte(n, ':')] == repo }) {
			asked = append(asked, name)
		}
	}
	one, beside := trust.Image{Transport: s.transport(img), Chain: r.chain}, trust.NewEvidence(s)
	if len(asked) == 0 {
		if err := s.verification.verify(ctx, beside, one); err != nil {
			return fmt.Errorf("without a name: %w", importRefusal(err))
		}
	}
	for _, name := range asked {
		var err error
		if one.Name, err = reference.ParseNamed(name); err != nil {
			return err
		}
		if err := s.verification.verify(ctx, beside, one); err != nil {
			return fmt.Errorf("as %s: %w", name, importRefusal(err))
		}
	}
	return nil
}

// importRefusal names the key of the configuration that holds archives to what pulls are held to: the rule alone is one for pulls.
func importRefusal(err error) error {
	if errors.Is(err, trust.ErrRefused) {
		err = fmt.Errorf(`%w (images.verify.imports = "verify" asks this of archives too; "allow" takes them as they are)`, err)
	}
	return err
}

func (s *incoming) transport(img archive.Image) string {
	switch {
	case img.Made:
		return trust.DockerArchive
	case s.archive.IsDir():
		return trust.OCILayout
	}
	return trust.OCIArchive
}

// Tagged finds signatures by their tag, or as `cosign save` marks them: whose they are, they say themselves.
func (s *incoming) Tagged(ctx context.Context, tag string) ([]byte, error) {
	d := s.tagged[tag]
	if d == "" && strings.HasSuffix(tag, ".sig") {
		d = s.signatures
	}
	if d == "" {
		return nil, trust.ErrAbsent
	}
	return s.Manifest(ctx, d)
}

// Manifest reads a manifest or index.
func (s *incoming) Manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	if !s.archive.Has(d) {
		return nil, trust.ErrAbsent
	}
	return s.archive.Document(d, remote.MaxManifest)
}

// Referrers finds what the archive's index has that refers to a manifest, and what the list of such a tag has.
func (s *incoming) Referrers(ctx context.Context, d digest.Digest, artifactType string) (all []ocispec.Descriptor, err error) {
	for _, desc := range s.referrers[d] {
		if desc.ArtifactType == artifactType {
			all = append(all, desc)
		}
	}
	data, err := s.Tagged(ctx, referrersTag(d))
	if err != nil {
		return all, nil // there is no such list
	}
	more, err := parseReferrers(data)
	if err != nil {
		return nil, invalidf("referrers of %s: %w", d, err)
	}
	return append(all, more...), nil
}

// Blob reads a small blob.
func (s *incoming) Blob(_ context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if !s.archive.Has(desc.Digest) {
		return nil, trust.ErrAbsent
	}
	return s.archive.Document(desc.Digest, limit)
}
