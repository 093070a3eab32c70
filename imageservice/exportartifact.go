package imageservice

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/imagedb"
)

// exportArtifact describes an artifact: its manifest stays, so that every part must come back under its digest.
func (s *Service) exportArtifact(ctx context.Context, img *imagedb.Image, layers map[digest.Digest]archive.Layer, p *Progress) (e archive.Export, err error) {
	doc, _, err := parseDocument(remote.Manifest{Digest: img.ManifestDigest, Bytes: img.Manifest})
	if err != nil {
		return e, err
	}
	e = archive.Export{Artifact: true, Manifest: img.Manifest, Desc: ocispec.Descriptor{MediaType: cmp.Or(doc.MediaType, ocispec.MediaTypeImageManifest),
		ArtifactType: doc.ArtifactType, Digest: img.ManifestDigest, Size: int64(len(img.Manifest))}}
	var kept bool
	if e.Config, kept = keptDocument(img, doc.Config.Digest); !kept {
		return e, fmt.Errorf("its config %s of %d bytes is not kept: artifacts that were pulled before configs were kept, and configs of more than %d bytes, cannot be exported",
			doc.Config.Digest, doc.Config.Size, imagedb.MaxDocument)
	}
	total := int64(0)
	for i, l := range doc.Layers {
		if data, kept := keptDocument(img, l.Digest); kept {
			e.More = append(e.More, data)
			continue
		}
		blob, known := layers[l.Digest]
		if !known {
			if blob, err = s.exportPart(ctx, img, l, p); err != nil {
				return e, fmt.Errorf("layer %d of %d: %w", i+1, len(doc.Layers), err)
			}
			layers[l.Digest] = blob
			total += blob.Size
		}
		e.Layers = append(e.Layers, blob)
	}
	p.begin(string(img.ID), total)
	return e, nil
}

// keptDocument is one of an image's documents, or the empty one, which everybody knows.
func keptDocument(img *imagedb.Image, d digest.Digest) ([]byte, bool) {
	for _, data := range append([][]byte{ocispec.DescriptorEmptyJSON.Data}, img.Documents...) {
		if d.Validate() == nil && d.Algorithm().FromBytes(data) == d {
			return data, true
		}
	}
	return nil, false
}

// exportPart describes the blob of one layer of an artifact.
func (s *Service) exportPart(ctx context.Context, img *imagedb.Image, l ocispec.Descriptor, p *Progress) (blob archive.Layer, err error) {
	part, shown := partOf(l)
	at := slices.Index(img.Parts, part.key())
	if !shown || at < 0 {
		return blob, fmt.Errorf("%s of type %q is not kept: no volume shows it", l.Digest, l.MediaType)
	}
	id := img.DiffIDs[at]
	blob = archive.Layer{DiffID: l.Digest, Size: l.Size}
	if part.file != "" {
		head, err := headOf(part.file, l.Size)
		blob.Write = func(w io.Writer) error {
			return s.layers.Archive(ctx, id, &window{w: progressWriter{w, p}, skip: int64(len(head)), left: l.Size})
		}
		return blob, err
	}
	size, err := s.layers.ArchiveSize(id)
	if err != nil {
		return blob, err
	}
	if how, _ := archiveCompression(l.MediaType); how == gzipped || how == zstandard || size != l.Size {
		return blob, fmt.Errorf("archive %s was compressed: its compressed bytes are not kept, and no others have this digest", l.Digest)
	}
	blob.Write = func(w io.Writer) error { return s.layers.Archive(ctx, id, progressWriter{w, p}) }
	return blob, nil
}
