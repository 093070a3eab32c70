package imageservice

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/store/layer/tarstream"
)

// maxDrain is how much of a blob is read only to learn whether its digest explains why it cannot be unpacked, in bytes.
const maxDrain = 16 << 20

// contentError marks what is wrong with the bytes that an endpoint sent; another one may send better ones.
type contentError struct{ err error }

func (e contentError) Error() string { return e.err.Error() }
func (e contentError) Unwrap() error { return e.err }

func contentErrorf(format string, args ...any) error {
	return contentError{fmt.Errorf(format, args...)}
}

// fetchLayer brings one layer from the registry into the store: one stream, nothing kept on the way.
func (s *Service) fetchLayer(ctx context.Context, src *remote.Session, desc ocispec.Descriptor, diffID digest.Digest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob := src.Blob(ctx, desc)
	defer func() { _ = blob.Close() }() // read to its end, or abandoned
	for {
		err := s.unpack(ctx, cancel, blob, desc, diffID)
		var content contentError
		if err == nil || ctx.Err() != nil || !errors.As(err, &content) {
			return err
		}
		if err := blob.Reject(err); err != nil { // no other endpoint is left to have it right
			return err
		}
	}
}

// unpack reads the blob to its end and commits the layer if both digests are right. cancel ends the blob.
func (s *Service) unpack(ctx context.Context, cancel func(), blob io.Reader, desc ocispec.Descriptor, diffID digest.Digest) (err error) {
	w, err := s.layers.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Discard()) }()
	in := &intake{blob: blob, hash: desc.Digest.Algorithm().Hash()}
	if err := s.transfer(w, in, cancel, desc, diffID); err != nil {
		return err
	}
	_, err = w.Commit(diffID)
	return err
}

// transfer writes the blob to w and verifies it. Of several things that are wrong the digest of the blob is told, since
// the others follow from it.
func (s *Service) transfer(w *layer.Writer, in *intake, cancel func(), desc ocispec.Descriptor, diffID digest.Digest) error {
	err := s.write(w, in, cancel, desc, diffID)
	var content contentError
	if err != nil && (!errors.As(err, &content) || desc.Size-in.read.Load() > maxDrain) {
		return err
	}
	got, finishErr := in.finish(desc.Digest.Algorithm())
	switch {
	case finishErr != nil:
		return finishErr
	case got != desc.Digest:
		return contentErrorf("verify: digest is %s", got)
	}
	return err
}

// write decompresses and unpacks, reading ahead at both borders so that network, inflate and writing overlap.
func (s *Service) write(w *layer.Writer, in *intake, cancel func(), desc ocispec.Descriptor, diffID digest.Digest) error {
	ahead := newPump(in)
	defer ahead.Close()
	plainStream, err := decompress(desc.MediaType, ahead)
	if err != nil {
		return err
	}
	defer func() { _ = plainStream.Close() }() // its errors came with Read
	inflated := newPump(&expansion{r: plainStream, limit: func() int64 { return s.cfg.Limits.expanded(in.read.Load()) }})
	defer inflated.Close()

	diff := &hashing{r: inflated, hash: diffID.Algorithm().Hash()}
	if _, err := w.ReadFrom(diff); err != nil {
		if errors.Is(err, tarstream.ErrInvalid) {
			return contentError{err}
		}
		if !ofStream(err) {
			cancel() // the store's fault: whoever waits for the network is to stop
		}
		return err
	}
	if _, err := io.Copy(io.Discard, diff); err != nil { // what follows the archive counts for the digest
		return err
	}
	if got := digest.NewDigest(diffID.Algorithm(), diff.hash); got != diffID {
		return contentErrorf("verify: uncompressed digest is %s, the image's config says %s", got, diffID)
	}
	return nil
}

// intake is the compressed stream and its digest.
type intake struct {
	blob io.Reader
	hash hash.Hash
	read atomic.Int64 // bytes of blob
	err  error        // of blob
}

func (i *intake) Read(p []byte) (int, error) {
	n, err := i.blob.Read(p)
	i.hash.Write(p[:n]) // never fails
	i.read.Add(int64(n))
	i.err = err
	return n, err
}

// finish reads what nobody wanted and returns the digest of everything.
func (i *intake) finish(a digest.Algorithm) (digest.Digest, error) {
	if i.err == nil {
		_, _ = io.Copy(io.Discard, i) // leaves its error in i.err
	}
	if i.err != io.EOF {
		return "", i.err
	}
	return digest.NewDigest(a, i.hash), nil
}

// hashing digests what is read through it.
type hashing struct {
	r    io.Reader
	hash hash.Hash
}

func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n]) // never fails
	return n, err
}

// expansion stops a stream that grows beyond measure when it is decompressed.
type expansion struct {
	r     io.Reader
	out   int64        // bytes so far
	limit func() int64 // bytes that may have come out by now
}

func (e *expansion) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if e.out += int64(n); e.out > e.limit() {
		return 0, contentErrorf("decompress: more than %d bytes come out", e.out)
	}
	if err != nil && err != io.EOF {
		err = decompressError(err)
	}
	return n, err
}

// decompressError tells what the decompressor found wrong from a stream that ended under it.
func decompressError(err error) error {
	var fetchErr *remote.FetchError
	if errors.As(err, &fetchErr) {
		return err
	}
	return contentErrorf("decompress: %w", err)
}

// ofStream says whether err, from unpacking a stream, came with the stream.
func ofStream(err error) bool {
	var fetchErr *remote.FetchError
	var content contentError
	return errors.As(err, &fetchErr) || errors.As(err, &content)
}
