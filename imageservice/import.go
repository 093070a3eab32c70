package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/imageservice/progress"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/stage"
)

// ImportRequest says what of an archive is wanted.
type ImportRequest struct {
	Names        []string // instead of those in the archive, which must have one image then
	Platform     string   // "os/arch/variant" of the images to take, also if it is not the node's; "": the node's
	AllPlatforms bool     // all that there are; names are given to what fits the node best
	Progress     *Progress
}

// Imported is an image that was in an archive.
type Imported struct {
	ID          string   `json:"id"`
	Names       []string `json:"repoTags"`
	RepoDigests []string `json:"repoDigests"`
	Platform    string   `json:"platform"` // of an image

	ArtifactType string `json:"artifactType,omitempty"` // of an artifact

	Present bool `json:"present"` // before, with all these names
}

// Import brings the images of an archive onto the node: everything is verified as if it came from a registry, and layers
// that are present are not read. Images before one that fails stay.
func (s *Service) Import(ctx context.Context, a *archive.Archive, r ImportRequest) (list []Imported, err error) {
	wanted := s.platform
	if r.Platform != "" {
		if wanted, err = platformOf(r.Platform); err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
	}
	from := arriving(a, s.verification.Load())
	images := from.images
	if len(images) == 0 {
		return nil, fmt.Errorf("import: %w: the archive has no image", ErrInvalidImage)
	}
	if len(r.Names) > 0 && len(images) > 1 {
		return nil, fmt.Errorf("import: %w: names were given for one image, the archive has %d", ErrInvalidReference, len(images))
	}
	for i, img := range images {
		all, err := s.importImage(ctx, from, img, r, wanted)
		list = append(list, all...)
		if err != nil {
			return list, fmt.Errorf("import: image %d of %d, %s: %w", i+1, len(images), img.Desc.Digest, err)
		}
	}
	return list, nil
}

// importImage brings what one entry of the archive's index leads to.
func (s *Service) importImage(ctx context.Context, src *incoming, img archive.Image, r ImportRequest, wanted platforms.MatchComparer) (list []Imported, err error) {
	m, err := src.manifest(img.Desc)
	if err != nil {
		return nil, err
	}
	bring := func(found *resolved) error {
		if slices.ContainsFunc(list, func(i Imported) bool { return i.ID == string(found.id()) }) {
			return nil
		}
		one, err := s.importOne(ctx, src, img, found, r, len(list) == 0)
		if err == nil {
			list = append(list, one)
		}
		return err
	}
	best, err := s.fromArchive(ctx, src, m, wanted)
	switch {
	case err == nil:
		err = bring(&best)
	case r.AllPlatforms && (errors.Is(err, ErrNotFound) || errors.Is(err, fs.ErrNotExist)):
		err = nil // names go to the first of the others
	}
	if err == nil && r.AllPlatforms {
		err = s.eachBelow(ctx, src, m, 0, map[digest.Digest]bool{}, bring)
	}
	return list, err
}

// fromArchive resolves m to the manifest of the wanted platform, or of an artifact, and reads its config.
func (s *Service) fromArchive(ctx context.Context, src *incoming, m remote.Manifest, wanted platforms.MatchComparer) (resolved, error) {
	r, err := s.descend(ctx, src, m, wanted)
	switch {
	case err != nil:
	case r.artifact:
		err = s.keepConfig(ctx, src, &r)
	default:
		err = s.fetchConfig(ctx, src, &r, wanted)
	}
	return r, err
}

// eachBelow resolves every manifest of a container image below m and calls do for it. seen are the digests of those that were met:
// indexes can name one many times.
func (s *Service) eachBelow(ctx context.Context, src *incoming, m remote.Manifest, depth int, seen map[digest.Digest]bool, do func(*resolved) error) error {
	if seen[m.Digest] {
		return nil
	}
	seen[m.Digest] = true
	doc, index, err := parseDocument(m)
	if err != nil {
		return err
	}
	if !index {
		r, err := s.fromArchive(ctx, src, m, platforms.All)
		if err != nil {
			return err
		}
		return do(&r)
	}
	if depth == maxIndexDepth {
		return invalidf("index %s: more than %d indexes before a manifest", m.Digest, maxIndexDepth)
	}
	for _, e := range doc.Manifests {
		if !slices.Contains(accepted, e.MediaType) || isAttestation(e) || !src.archive.Has(e.Digest) { // an archive may have only some
			continue
		}
		next, err := src.manifest(e)
		if err == nil {
			err = s.eachBelow(ctx, src, next, depth+1, seen, do)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// importOne brings the layers of an image or artifact and records it.
func (s *Service) importOne(ctx context.Context, src *incoming, img archive.Image, r *resolved, request ImportRequest, named bool) (one Imported, err error) {
	one = Imported{ID: string(r.id()), Names: []string{}, RepoDigests: []string{}}
	if r.artifact {
		one.ArtifactType = artifactKind(r.doc)
	} else {
		one.Platform = platforms.Format(r.image.Platform)
	}
	if err := s.original(ctx, src, img, r); err != nil {
		return one, err
	}
	if named {
		claimed, err := s.claims(ctx, src, img, r)
		if err != nil {
			return one, err
		}
		if one.Names, one.RepoDigests, err = importNames(img, src.archive.NamesOf(r.doc.Config.Digest), r, request.Names, claimed); err != nil {
			return one, err
		}
	}
	if err := src.verify(ctx, img, r, one.Names, one.RepoDigests); err != nil {
		return one, err
	}
	one.Present = s.hasAll(r.id(), slices.Concat(one.Names, one.RepoDigests))
	if one.Present {
		return one, nil
	}
	subject := one.ID
	if len(one.Names) > 0 {
		subject = one.Names[0]
	}
	ctx, op := s.cfg.Recorder.Start(ctx, "import", subject)
	defer func() { op.End(err) }()
	if r.artifact {
		return one, s.importArtifact(ctx, src, r, one, request.Progress)
	}
	return one, s.importLayers(ctx, src, r, one, request.Progress)
}

// importLayers brings the layers of an image and records it.
func (s *Service) importLayers(ctx context.Context, src *incoming, r *resolved, one Imported, p *Progress) error {
	diffIDs := unique(r.image.RootFS.DiffIDs)
	if err := s.holds.acquire(ctx, diffIDs); err != nil {
		return err
	}
	p.expect(r)
	defer s.layers.HoldSync()()
	err := stage.Run(ctx, stageLayers, 0, func(ctx context.Context) error {
		return s.eachLayer(ctx, r, func(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) error {
			return s.take(ctx, src, desc, diffID, p)
		})
	})
	if err == nil {
		err = stage.Run(ctx, "record", 0, func(context.Context) error { return s.put(r, one.Names, one.RepoDigests, diffIDs) })
	}
	if err != nil {
		if releaseErr := s.holds.release(diffIDs); releaseErr != nil {
			s.log.Warn("layers of a failed import stay", "image", one.ID, "error", releaseErr)
		}
	}
	return err
}

// importArtifact brings the parts of an artifact and records it.
func (s *Service) importArtifact(ctx context.Context, src *incoming, r *resolved, one Imported, p *Progress) error {
	parts, err := artifactParts(r.manifest.Digest, r.doc, s.cfg.Limits.Layers)
	if err != nil {
		return err
	}
	total := int64(0)
	for _, a := range parts {
		total += a.desc.Size
	}
	p.begin(one.ID, total)
	return s.putArtifact(ctx, r, parts, one.Names, one.RepoDigests, func(ctx context.Context, a artifactPart) (digest.Digest, error) {
		done, err := s.part(ctx, a, func(ctx context.Context) (part, bool, error) {
			return s.parts.do(ctx, a.key(), true, func(ctx context.Context) (part, error) {
				return s.bringPart(ctx, a, func(ctx context.Context, what wanted) (digest.Digest, error) {
					return s.unpackFrom(ctx, src, &transfer{wanted: what}, p)
				})
			})
		})
		if err == nil && done.entry == nil {
			p.add(a.desc.Size)
		}
		return done.id, err
	})
}

// hasAll says whether the image is present and has all these names.
func (s *Service) hasAll(id digest.Digest, names []string) bool {
	present := s.db.Snapshot().ByID(id)
	return present != nil && !slices.ContainsFunc(names, func(n string) bool {
		return !slices.Contains(present.Names, n) && !slices.Contains(present.RepoDigests, n)
	})
}

// take returns when the layer is present. The caller holds it.
func (s *Service) take(ctx context.Context, src *incoming, desc ocispec.Descriptor, diffID digest.Digest, p *Progress) error {
	for try := 1; ; try++ {
		if s.layers.Has(diffID) {
			p.add(desc.Size) // a part that was counted already is counted twice; it is only shown
			return nil
		}
		_, ours, err := s.fetches.do(ctx, string(diffID), true, func(ctx context.Context) (*progress.Layer, error) {
			return s.once(ctx, desc, diffID, func(ctx context.Context, entry *progress.Layer) error {
				_, err := s.unpackFrom(ctx, src, &transfer{wanted: wanted{desc: desc, diffID: diffID, entry: entry}}, p)
				return err
			})
		})
		if err == nil && ours {
			return nil
		}
		if err != nil && (ours || ctx.Err() != nil || try == fetchTries) {
			return err
		}
	}
}

// unpackFrom brings one layer from the archive into the store.
func (s *Service) unpackFrom(ctx context.Context, src *incoming, t *transfer, p *Progress) (id digest.Digest, err error) {
	desc := t.desc
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, err := src.archive.Blob(desc.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return "", invalidf("blob %s is missing in the archive", desc.Digest)
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	if f.Size() != desc.Size {
		return "", invalidf("blob %s has %d bytes, the manifest says %d", desc.Digest, f.Size(), desc.Size)
	}
	t.blob = &counted{ctx, f, p}
	id, err = s.unpack(ctx, cancel, t)
	var content contentError
	if errors.As(err, &content) {
		err = fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	return id, err
}

// counted is a blob that is being read.
type counted struct {
	ctx context.Context // ends the reading
	r   io.Reader
	p   *Progress
}

func (c *counted) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(b)
	c.p.add(int64(n))
	return n, err
}

// shelf is an archive as a place where documents come from.
type shelf struct{ archive *archive.Archive }

func (s shelf) manifest(desc ocispec.Descriptor) (remote.Manifest, error) {
	data, err := s.archive.Document(desc.Digest, remote.MaxManifest)
	if err != nil {
		return remote.Manifest{}, err
	}
	if desc.Size != int64(len(data)) {
		return remote.Manifest{}, invalidf("manifest %s: %d bytes, the index says %d", desc.Digest, len(data), desc.Size)
	}
	return remote.Manifest{Digest: desc.Digest, MediaType: desc.MediaType, Bytes: data}, nil
}

// ManifestByDigest reads a manifest, whose media type is what it says itself.
func (s shelf) ManifestByDigest(_ context.Context, d digest.Digest, _ []string) (remote.Manifest, error) {
	if !s.archive.Has(d) {
		return remote.Manifest{}, invalidf("manifest %s is missing: %w", d, fs.ErrNotExist)
	}
	data, err := s.archive.Document(d, remote.MaxManifest)
	return remote.Manifest{Digest: d, Bytes: data}, err
}

// ReadBlob reads a small blob, verified.
func (s shelf) ReadBlob(_ context.Context, desc ocispec.Descriptor, most int64) ([]byte, error) {
	data, err := s.archive.Document(desc.Digest, most)
	if err == nil && desc.Size != int64(len(data)) {
		err = invalidf("blob %s: %d bytes, the manifest says %d", desc.Digest, len(data), desc.Size)
	}
	return data, err
}
