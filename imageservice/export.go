package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/imagedb"
)

// Export writes images as one archive that is an OCI layout and Docker's archive at once. Layers come out as they were
// before they were compressed, so ids stay the same. The manifest stays if its layers were not compressed; else there is
// a new one, and the former is in the archive for those who import it here, as are indexes that lead to it. An image given by a tag
// has only that name in the archive, any other all that it has. An artifact keeps its manifest; it cannot be exported if bytes of it
// were not kept. ErrNotFound if one is not present, ErrInvalidReference if a short id means several.
func (s *Service) Export(ctx context.Context, refs []string, w io.Writer, p *Progress) error {
	var exports []archive.Export
	layers := map[digest.Digest]archive.Layer{} // each is written once
	for _, ref := range refs {
		img, err := s.present(ref)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		held := unique(img.DiffIDs)
		if err := s.holds.acquire(ctx, held); err != nil {
			return fmt.Errorf("export: %w", err)
		}
		defer func() {
			if err := s.holds.release(held); err != nil {
				s.log.Warn("layers of a removed image stay", "image", img.ID, "error", err)
			}
		}()
		e, err := s.export(ctx, img, ref, layers, p)
		if err != nil {
			return fmt.Errorf("export image %s: %w", ref, err)
		}
		exports = append(exports, e)
	}
	if err := archive.Write(w, exports); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// export describes an image or artifact whose layers are held; layers are those of the images before it.
func (s *Service) export(ctx context.Context, img *imagedb.Image, ref string, layers map[digest.Digest]archive.Layer, p *Progress) (e archive.Export, err error) {
	names, repoDigests := img.Names, img.RepoDigests
	if t, err := parse(ref); err == nil && t.tag != "" && s.db.Snapshot().ByName(t.String()) == img {
		names = []string{t.String()}
		repoDigests = slices.DeleteFunc(slices.Clone(repoDigests), func(d string) bool { return !strings.HasPrefix(d, t.repo.Name()+"@") })
	}
	if img.ArtifactType != "" {
		e, err = s.exportArtifact(ctx, img, layers, p)
	} else {
		e, err = s.exportImage(ctx, img, layers, p)
	}
	e.Names = names
	vouch(&e, img, repoDigests)
	return e, err
}

func (s *Service) exportImage(ctx context.Context, img *imagedb.Image, layers map[digest.Digest]archive.Layer, p *Progress) (e archive.Export, err error) {
	e = archive.Export{Config: img.Config}
	total := int64(0)
	for _, id := range img.DiffIDs {
		l, known := layers[id]
		if !known {
			l = archive.Layer{DiffID: id, Write: func(w io.Writer) error { return s.layers.Archive(ctx, id, progressWriter{w, p}) }}
			if l.Size, err = s.layers.ArchiveSize(id); err != nil {
				return e, err
			}
			total += l.Size
			layers[id] = l
		}
		e.Layers = append(e.Layers, l)
	}
	p.begin(string(img.ID), total)
	return e, s.exportManifest(&e, img)
}

// exportManifest gives e the manifest of img if that speaks of plain layers, else one that does.
func (s *Service) exportManifest(e *archive.Export, img *imagedb.Image) error {
	doc, _, err := parseDocument(remote.Manifest{Digest: img.ManifestDigest, Bytes: img.Manifest})
	if err != nil {
		return err
	}
	config, err := parseConfig(img.Config)
	if err != nil {
		return err
	}
	mediaType := doc.MediaType
	if mediaType == "" {
		mediaType = ocispec.MediaTypeImageManifest
	}
	e.Manifest = img.Manifest
	var annotations map[string]string
	if !plainLayers(doc, img.DiffIDs) {
		mediaType = ocispec.MediaTypeImageManifest
		annotations = map[string]string{annotationManifest: string(img.ManifestDigest)}
		e.More = [][]byte{img.Manifest}
		if e.Manifest, err = plainManifest(e, img); err != nil {
			return err
		}
	}
	platform := config.Platform
	e.Desc = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(e.Manifest), Size: int64(len(e.Manifest)),
		Platform: &platform, Annotations: annotations}
	return nil
}

// plainLayers says whether the manifest's layers are not compressed.
func plainLayers(doc document, diffIDs []digest.Digest) bool {
	if len(doc.Layers) != len(diffIDs) {
		return false
	}
	for i, l := range doc.Layers {
		if l.Digest != diffIDs[i] {
			return false
		}
	}
	return true
}

// plainManifest makes the manifest of an image whose layers are not compressed: always the same for the same image.
func plainManifest(e *archive.Export, img *imagedb.Image) ([]byte, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: img.ID, Size: int64(len(img.Config))},
		Layers: []ocispec.Descriptor{},
	}
	for _, l := range e.Layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Size})
	}
	return json.Marshal(m)
}

// progressWriter counts what it passes on.
type progressWriter struct {
	w io.Writer
	p *Progress
}

func (w progressWriter) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.p.add(int64(n))
	return n, err
}
