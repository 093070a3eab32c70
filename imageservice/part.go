package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/progress"
)

// archiveCompression says how a media type packs an archive, by its end, whoever it is of; false if it is no archive's.
func archiveCompression(mediaType string) (compression, bool) {
	if c, known := layerCompressions[mediaType]; known {
		return c, true
	}
	for _, row := range []struct {
		end string
		is  compression
	}{{".tar", plain}, {"+tar", plain}, {".tar+gzip", gzipped}, {".tar.gzip", gzipped}, {".tgz", gzipped}, {".tar+zstd", zstandard}, {".tar.zstd", zstandard}} {
		if strings.HasSuffix(mediaType, row.end) {
			return row.is, true
		}
	}
	return detect, false
}

// layerTypes are media types of layers that are packed so.
var layerTypes = map[compression]string{detect: images.MediaTypeDockerSchema2Layer, plain: ocispec.MediaTypeImageLayer,
	gzipped: ocispec.MediaTypeImageLayerGzip, zstandard: ocispec.MediaTypeImageLayerZstd}

// packed is the descriptor of p as if it were a layer of an image.
func (p artifactPart) packed() ocispec.Descriptor {
	c := plain
	if p.file == "" {
		c, _ = archiveCompression(p.desc.MediaType)
	}
	desc := p.desc
	desc.MediaType = layerTypes[c]
	return desc
}

// part is what became of a part of an artifact that was brought into the store.
type part struct {
	id    digest.Digest // its diff ID
	entry *progress.Layer
}

// bringPart waits for a slot and has bring put one part of an artifact into the store. It is committed under its diff ID, which
// nobody holds yet.
func (s *Service) bringPart(ctx context.Context, p artifactPart, bring func(context.Context, wanted) (digest.Digest, error)) (done part, err error) {
	what := wanted{desc: p.packed(), file: p.file, entry: s.book.Layer(p.key(), p.desc.Size)}
	defer func() { what.entry.End(err) }()
	leave, err := s.bounds.enter(ctx, what.desc)
	if err != nil {
		return part{}, err
	}
	defer leave()
	what.entry.Begin()
	id, err := bring(ctx, what)
	return part{id: id, entry: what.entry}, err
}

// archiveOf is an archive of one file, which is the same for the same file always. content has size bytes.
func archiveOf(name string, size int64, content io.Reader) (io.ReadCloser, error) {
	head, err := headOf(name, size)
	if err != nil {
		return nil, err
	}
	const block = 512
	tail := make([]byte, (block-size%block)%block+2*block)
	return io.NopCloser(io.MultiReader(bytes.NewReader(head), content, bytes.NewReader(tail))), nil
}

// headOf is what is before the content in such an archive.
func headOf(name string, size int64) ([]byte, error) {
	var head bytes.Buffer
	err := tar.NewWriter(&head).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
	if err != nil {
		return nil, invalidf("name %q: %w", name, err)
	}
	return head.Bytes(), nil
}

// window passes on what comes after skip bytes, and only left bytes of it.
type window struct {
	w          io.Writer
	skip, left int64
}

func (w *window) Write(p []byte) (int, error) {
	from := min(w.skip, int64(len(p)))
	piece := p[from:]
	piece = piece[:min(w.left, int64(len(piece)))]
	w.skip -= from
	w.left -= int64(len(piece))
	if _, err := w.w.Write(piece); err != nil {
		return 0, err
	}
	return len(p), nil
}
