package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"hash"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/progress"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/store/layer/tarstream"
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

// fetchPart waits for a slot and brings one part of an artifact into the store. It is committed under its diff ID, which
// nobody holds yet.
func (s *Service) fetchPart(ctx context.Context, src *remote.Session, p artifactPart) (id digest.Digest, err error) {
	entry := s.book.Layer(p.desc.Digest, p.desc.Size)
	defer func() { entry.End(err) }()
	leave, err := s.bounds.enter(ctx, p.packed())
	if err != nil {
		return "", err
	}
	defer leave()
	entry.Begin()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob := src.Blob(ctx, p.desc)
	defer func() { _ = blob.Close() }() // read to its end, or abandoned
	for {
		id, err := s.unpackPart(ctx, cancel, blob, p, entry)
		var content contentError
		if err == nil || ctx.Err() != nil || !errors.As(err, &content) {
			return id, err
		}
		if err := blob.Reject(err); err != nil { // no other endpoint is left to have it right
			return "", err
		}
	}
}

// unpackPart reads the blob to its end and commits what it has if its digest is right. cancel ends the blob.
func (s *Service) unpackPart(ctx context.Context, cancel func(), blob io.Reader, p artifactPart, entry *progress.Layer) (id digest.Digest, err error) {
	w, err := s.layers.Begin(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, w.Discard()) }()
	in := &hashed{r: blob, hash: p.desc.Digest.Algorithm().Hash(), seen: entry.Receive}
	out := &hashed{hash: digest.Canonical.Hash(), seen: func(int) {}}
	err = s.expandPart(ctx, w, p, in, out, entry, cancel)
	var content contentError
	if err != nil && (!errors.As(err, &content) || p.desc.Size-in.read.Load() > maxDrain) {
		return "", err
	}
	if _, drainErr := io.Copy(io.Discard, in); drainErr != nil { // of several things that are wrong, that
		return "", drainErr
	}
	if got := digest.NewDigest(p.desc.Digest.Algorithm(), in.hash); got != p.desc.Digest {
		return "", contentErrorf("verify: digest is %s", got)
	}
	if err != nil {
		return "", err
	}
	id = digest.NewDigest(digest.Canonical, out.hash)
	_, err = w.Commit(id)
	return id, err
}

// expandPart writes what in holds as an archive, through out. Nobody reads in when it returns: a decompressor that reads ahead
// has ended.
func (s *Service) expandPart(ctx context.Context, w *layer.Writer, p artifactPart, in, out *hashed, entry *progress.Layer, cancel func()) error {
	var archive io.ReadCloser
	var err error
	if p.file != "" {
		archive, err = archiveOf(p.file, p.desc.Size, in)
	} else {
		archive, err = s.bounds.decompress(ctx, p.packed().MediaType, in)
	}
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }() // its errors came with Read
	out.r = &expansion{r: archive, out: entry.Unpack, limit: func() int64 { return p.desc.Size + s.cfg.Limits.expanded(in.read.Load()) }}
	return writePart(w, out, cancel)
}

func writePart(w *layer.Writer, archive io.Reader, cancel func()) error {
	if _, err := w.ReadFrom(archive); err != nil {
		if errors.Is(err, tarstream.ErrInvalid) {
			return contentError{err}
		}
		if !ofStream(err) {
			cancel() // the store's fault: whoever waits for the network is to stop
		}
		return err
	}
	_, err := io.Copy(io.Discard, archive) // what follows the archive is part of the layer
	return err
}

// archiveOf is an archive of one file, which is the same for the same file always. content has size bytes.
func archiveOf(name string, size int64, content io.Reader) (io.ReadCloser, error) {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
	if err != nil {
		return nil, invalidf("name %q: %w", name, err)
	}
	const block = 512
	tail := make([]byte, (block-size%block)%block+2*block)
	return io.NopCloser(io.MultiReader(&head, content, bytes.NewReader(tail))), nil
}

// hashed digests and counts what is read through it.
type hashed struct {
	r    io.Reader
	hash hash.Hash
	seen func(int)    // is told of more
	read atomic.Int64 // bytes so far, for whoever looks while a decompressor reads ahead
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n]) // never fails
	h.read.Add(int64(n))
	h.seen(n)
	return n, err
}
