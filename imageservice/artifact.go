package imageservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/imagedb"
)

// Annotations of an artifact's layers.
const (
	annotationUnpack   = "io.deis.oras.content.unpack" // "true": the named layer is an archive of a directory
	annotationFilepath = "org.cncf.model.filepath"
)

// maxName bounds the name of a file of an artifact, in bytes.
const maxName = 4000

// artifactPart is a layer of an artifact that a volume shows.
type artifactPart struct {
	desc ocispec.Descriptor
	file string // its name, if the layer is one file; else it is an archive
}

// key is the same for parts that look the same in a volume.
func (p artifactPart) key() string { return p.desc.Digest.String() + "\x00" + p.file }

func (p artifactPart) String() string {
	if p.file != "" {
		return fmt.Sprintf("file %q", p.file)
	}
	return "archive " + p.desc.Digest.String()
}

// isArtifact says whether a manifest is one of an artifact: content of any kind, which can be a volume and never a root.
func isArtifact(doc document, mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest && (doc.ArtifactType != "" || !slices.Contains(configTypes, doc.Config.MediaType))
}

// artifactKind is the type of an artifact, which older ones have in place of their config's.
func artifactKind(doc document) string { return cmp.Or(doc.ArtifactType, doc.Config.MediaType) }

// artifactParts says what of an artifact a volume shows: layers that are named as files under their names, archives without a
// name, or to be unpacked, as what they have. A layer of neither kind is not shown.
func artifactParts(d digest.Digest, doc document, most int) ([]artifactPart, error) {
	var parts []artifactPart
	names := map[string]bool{}
	for i, l := range doc.Layers {
		if l.MediaType == ocispec.MediaTypeEmptyJSON {
			continue
		}
		if err := l.Digest.Validate(); err != nil {
			return nil, invalidf("artifact %s: layer %d: digest %q: %w", d, i, l.Digest, err)
		}
		if l.Size < 0 {
			return nil, invalidf("artifact %s: layer %d: size is %d", d, i, l.Size)
		}
		p, shown := partOf(l)
		if !shown {
			continue
		}
		if p.file == "" {
			parts = append(parts, p)
			continue
		}
		name := p.file
		if err := checkFileName(name); err != nil {
			return nil, invalidf("artifact %s: layer %d: name %q: %w", d, i, name, err)
		}
		if names[name] {
			return nil, invalidf("artifact %s: layer %d: name %q is that of another layer", d, i, name)
		}
		names[name] = true
		parts = append(parts, p)
	}
	if len(parts) > most {
		return nil, invalidf("artifact %s: %d layers are more than the %d allowed", d, len(parts), most)
	}
	if len(parts) == 0 {
		return nil, invalidf("artifact %s of type %q has nothing that a volume can show: no layer is an archive, or has a name in annotation %s", d, artifactKind(doc), ocispec.AnnotationTitle)
	}
	return parts, nil
}

// partOf says what of a layer a volume shows, if it shows it.
func partOf(l ocispec.Descriptor) (p artifactPart, shown bool) {
	_, archive := archiveCompression(l.MediaType)
	name := l.Annotations[ocispec.AnnotationTitle]
	if name == "" && !archive {
		name = l.Annotations[annotationFilepath]
	}
	if archive && (name == "" || l.Annotations[annotationUnpack] == "true") {
		return artifactPart{desc: l}, true
	}
	return artifactPart{desc: l, file: name}, name != ""
}

// keepConfig reads an artifact's config if it is small enough to be kept. Only an export needs it.
func (s *Service) keepConfig(ctx context.Context, src documents, r *resolved) error {
	c := r.doc.Config
	if c.Digest == ocispec.DescriptorEmptyJSON.Digest || c.Digest.Validate() != nil || c.Size > imagedb.MaxDocument {
		return nil
	}
	data, err := src.ReadBlob(ctx, c, imagedb.MaxDocument)
	if err == nil {
		r.kept = append(r.kept, data)
	}
	return err
}

// checkFileName wants a path below the root that means the same to everybody.
func checkFileName(name string) error {
	switch {
	case len(name) > maxName:
		return fmt.Errorf("longer than %d bytes", maxName)
	case strings.ContainsRune(name, 0), path.IsAbs(name), path.Clean(name) != name, name == ".", name == "..", strings.HasPrefix(name, "../"):
		return errors.New("not a clean path below the root")
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > 255 || strings.HasPrefix(part, ".wh.") {
			return errors.New("not the name of a file in a layer")
		}
	}
	return nil
}

// pullArtifact brings the artifact onto the node. Its id is its manifest's: the config of many is the same.
func (s *Service) pullArtifact(ctx context.Context, t target, src *source, r *resolved, a *account) (string, error) {
	parts, err := artifactParts(r.manifest.Digest, r.doc, s.cfg.Limits.Layers)
	if err != nil {
		return "", err
	}
	for _, p := range parts {
		a.want(p.key(), p.desc.Size, s.presentPart(p) != "")
	}
	if err := stage.Run(ctx, "config", resolveBound, func(ctx context.Context) error { return s.keepConfig(ctx, src, r) }); err != nil {
		return "", err
	}
	defer a.follow(ctx, reportEvery)()
	var names []string
	if t.tag != "" {
		names = []string{t.String()}
	}
	err = s.putArtifact(ctx, r, parts, names, []string{t.repo.Name() + "@" + r.top.String()}, func(ctx context.Context, p artifactPart) (digest.Digest, error) {
		done, err := s.part(ctx, p, func(ctx context.Context) (part, bool, error) { return s.sharedPart(ctx, src, p) })
		if err == nil {
			a.add(p.key(), done.entry)
		}
		return done.id, err
	})
	if err != nil {
		return "", err
	}
	return r.manifest.Digest.String(), nil
}

// sharedPart fetches a part, or waits for whoever does.
func (s *Service) sharedPart(ctx context.Context, src *source, p artifactPart) (part, bool, error) {
	src.users.Add(1)
	done, ours, err := s.parts.do(ctx, p.key(), true, func(ctx context.Context) (part, error) {
		defer src.release()
		return s.bringPart(ctx, p, func(ctx context.Context, what wanted) (digest.Digest, error) { return s.fetch(ctx, src.Session, what) })
	})
	if !ours {
		src.release()
	}
	return done, ours, err
}

// putArtifact makes all parts present by bring, which holds each, and stores the artifact.
func (s *Service) putArtifact(ctx context.Context, r *resolved, parts []artifactPart, names, repoDigests []string, bring func(context.Context, artifactPart) (digest.Digest, error)) error {
	diffIDs := make([]digest.Digest, len(parts)) // of the parts that are held
	defer s.layers.HoldSync()()
	err := stage.Run(ctx, stageLayers, 0, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(s.cfg.Bounds.Layers)
		for _, i := range largestFirst(len(parts), func(i int) int64 { return parts[i].desc.Size }) {
			p := parts[i]
			g.Go(func() (err error) {
				if diffIDs[i], err = bring(ctx, p); err != nil {
					return fmt.Errorf("%s, %d of %d: %w", p, i+1, len(parts), err)
				}
				return nil
			})
		}
		return g.Wait()
	})
	if err == nil {
		err = stage.Run(ctx, "record", 0, func(context.Context) error { return s.recordArtifact(r, parts, names, repoDigests, diffIDs) })
	}
	if err != nil {
		held := slices.DeleteFunc(diffIDs, func(id digest.Digest) bool { return id == "" })
		if releaseErr := errors.Join(s.holds.release(held), s.holds.sweep()); releaseErr != nil { // also what was fetched and not held yet
			s.log.Warn("layers of a failed pull stay", "artifact", r.manifest.Digest, "error", releaseErr)
		}
	}
	return err
}

// part makes a part of an artifact present, and holds it once if it succeeds. What its diff ID is, is known of what is
// present, or once bring has brought it.
func (s *Service) part(ctx context.Context, p artifactPart, bring func(context.Context) (done part, ours bool, err error)) (done part, err error) {
	done.id = s.presentPart(p)
	for try := 1; ; try++ {
		if done.id != "" {
			if err := s.holds.acquire(ctx, []digest.Digest{done.id}); err != nil {
				return part{}, err
			}
			if s.layers.Has(done.id) {
				return done, nil
			}
			if err := s.holds.release([]digest.Digest{done.id}); err != nil { // it was removed before it was held
				return part{}, err
			}
		}
		brought, ours, err := bring(ctx)
		if err != nil && (ours || ctx.Err() != nil || try == fetchTries) {
			return part{}, err
		}
		done = brought
	}
}

// presentPart is the diff ID of a part that another artifact has too, "" if none has.
func (s *Service) presentPart(p artifactPart) digest.Digest {
	for _, img := range s.db.Snapshot().Images() {
		if i := slices.Index(img.Parts, p.key()); i >= 0 {
			return img.DiffIDs[i]
		}
	}
	return ""
}

// recordArtifact stores the artifact, which takes over what was held for it.
func (s *Service) recordArtifact(r *resolved, parts []artifactPart, names, repoDigests []string, diffIDs []digest.Digest) error {
	img := imagedb.Image{
		ID: r.manifest.Digest, ArtifactType: artifactKind(r.doc), ManifestDigest: r.manifest.Digest, Manifest: r.manifest.Bytes,
		Names: names, RepoDigests: repoDigests, DiffIDs: diffIDs,
		Size: int64(len(r.manifest.Bytes)) + s.size(unique(diffIDs)), PulledAt: time.Now().UTC(), Documents: r.kept,
	}
	for _, p := range parts {
		img.Parts = append(img.Parts, p.key())
	}
	held := slices.Clone(diffIDs) // each part once, the image wants each layer once
	for _, id := range unique(diffIDs) {
		held = slices.Delete(held, slices.Index(held, id), slices.Index(held, id)+1)
	}
	s.images.Lock()
	present := s.db.Snapshot().ByID(img.ID) != nil
	err := s.db.Put(img)
	s.images.Unlock()
	if err != nil {
		return err
	}
	if present {
		held = diffIDs
	}
	return s.holds.release(held)
}
