package imageservice

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/progress"
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

// wanted is a blob that is to become a layer of the store.
type wanted struct {
	desc   ocispec.Descriptor
	diffID digest.Digest // "" if nothing says what it must be: it is what comes of the blob
	file   string        // the name of the file that the blob is; "" if it is an archive
	entry  *progress.Layer
}

// fetch brings a blob from the registry into the store, one stream, nothing kept on the way, and returns the layer's diff ID.
func (s *Service) fetch(ctx context.Context, src *remote.Session, what wanted) (digest.Digest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob := src.Blob(ctx, what.desc)
	defer func() { _ = blob.Close() }() // read to its end, or abandoned
	for {
		id, err := s.unpack(ctx, cancel, &transfer{wanted: what, blob: blob, lost: blob.Lost()})
		var content contentError
		if err == nil || ctx.Err() != nil || !errors.As(err, &content) {
			return id, err
		}
		if err := blob.Reject(err); err != nil { // no other endpoint is left to have it right
			return "", err
		}
	}
}

// unpack reads the blob to its end and commits the layer if the digests are right. cancel ends the blob.
func (s *Service) unpack(ctx context.Context, cancel func(), t *transfer) (id digest.Digest, err error) {
	w, err := s.layers.Begin(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, w.Discard()) }()
	if err := s.transfer(ctx, w, t, cancel); err != nil {
		return "", err
	}
	began := time.Now()
	_, err = w.Commit(t.diffID)
	t.entry.Spend(progress.Write, time.Since(began))
	return t.diffID, err
}

// transfer is one layer on its way: packed bytes, read ahead and digested; decompressed, read ahead and digested; unpacked.
// Where there are processors to spare each of these runs in a goroutine of its own, so that the slowest one decides how long it
// takes; where other layers keep all processors busy, none does.
type transfer struct {
	wanted
	blob io.Reader
	head *bufio.Reader // of blob: what was looked at and not used, and then the rest
	read atomic.Int64  // bytes of blob
	lost time.Duration // of what blob has lost, as far as it is accounted
}

// transfer writes the blob to w and verifies it. Of several things that are wrong the digest of the blob is told, since
// the others follow from it.
func (s *Service) transfer(ctx context.Context, w *layer.Writer, t *transfer, cancel func()) error {
	s.moving.Add(1)
	defer s.moving.Add(-1)
	algorithm := t.desc.Digest.Algorithm()
	t.head = bufio.NewReaderSize(t, headSize)
	packed := newPump(t.head, algorithm.Hash(), s.spare, pumpTimes{fill: t.filled, hash: t.spend(progress.Hash)})
	defer packed.Close()
	err := s.write(ctx, w, t, packed, cancel)
	var content contentError
	if err != nil && (!errors.As(err, &content) || t.desc.Size-t.read.Load() > maxDrain) {
		return err
	}
	if err := packed.finish(); err != nil {
		return err
	}
	if got := digest.NewDigest(algorithm, packed.hash); got != t.desc.Digest {
		return contentErrorf("verify: digest is %s", got)
	}
	return err
}

// spare says whether there are more processors than layers that are on their way.
func (s *Service) spare() bool { return int(s.moving.Load()) < runtime.GOMAXPROCS(0) }

// write decompresses and unpacks, and finds out the diff ID if it is not known. Nobody reads packed when it returns.
func (s *Service) write(ctx context.Context, w *layer.Writer, t *transfer, packed *pump, cancel func()) error {
	stream, err := s.open(ctx, t, packed)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // its errors came with Read
	waited := int64(0)                    // of inflating, for packed bytes
	inflating := func(d time.Duration) {
		now := packed.waited.Load()
		t.entry.Spend(progress.Inflate, d-time.Duration(now-waited))
		waited = now
	}
	algorithm := digest.Canonical
	if t.diffID != "" {
		algorithm = t.diffID.Algorithm()
	}
	plain := newPump(&expansion{r: stream, out: t.entry.Unpack, limit: func() int64 { return s.cfg.Limits.expanded(t.read.Load()) }},
		algorithm.Hash(), s.spare, pumpTimes{fill: inflating, hash: t.spend(progress.Hash), use: t.spend(progress.Write)})
	defer plain.Close()
	if _, err := w.ReadFrom(plain); err != nil {
		if errors.Is(err, tarstream.ErrInvalid) || errors.Is(err, io.ErrUnexpectedEOF) && !ofStream(err) {
			return contentError{err} // the archive's, also if that ends too early
		}
		if !ofStream(err) {
			cancel() // the store's fault: whoever waits for the network is to stop
		}
		return err
	}
	if err := plain.finish(); err != nil { // what follows the archive counts for the digest
		return err
	}
	got := digest.NewDigest(algorithm, plain.hash)
	if t.diffID != "" && got != t.diffID {
		return contentErrorf("verify: uncompressed digest is %s, the image's config says %s", got, t.diffID)
	}
	t.diffID = got
	return nil
}

// open gives the archive that the blob holds, or one that holds the blob.
func (s *Service) open(ctx context.Context, t *transfer, packed io.Reader) (io.ReadCloser, error) {
	if t.file != "" {
		return archiveOf(t.file, t.desc.Size, packed)
	}
	f, err := t.look()
	if err != nil {
		return nil, err
	}
	return s.bounds.decompress(ctx, f, packed, t.rest)
}

// look finds out how the blob is packed, before a pump reads it.
func (t *transfer) look() (form, error) {
	began := time.Now()
	defer func() { t.filled(time.Since(began)) }()
	return formOf(t.desc.MediaType, t.head)
}

// rest gives up the connection over which the blob comes, until more of it is read. Others may need its place at the registry's
// gate to come to an end. No pump may be reading.
func (t *transfer) rest() {
	if fetched, ok := t.blob.(*remote.Blob); ok {
		fetched.Pause()
	}
}

func (t *transfer) spend(s progress.Stage) func(time.Duration) {
	return func(d time.Duration) { t.entry.Spend(s, d) }
}

// Read gives the packed bytes.
func (t *transfer) Read(p []byte) (int, error) {
	n, err := t.blob.Read(p)
	t.read.Add(int64(n))
	t.entry.Receive(n)
	return n, err
}

// filled divides what a buffer of packed bytes took.
func (t *transfer) filled(d time.Duration) {
	lost := t.lost
	if fetched, ok := t.blob.(*remote.Blob); ok {
		lost = fetched.Lost()
	}
	t.entry.Spend(progress.Retry, lost-t.lost)
	t.entry.Spend(progress.Network, d-(lost-t.lost))
	t.lost = lost
}

// expansion stops a stream that grows beyond measure when it is decompressed.
type expansion struct {
	r     io.Reader
	sum   int64        // bytes so far
	out   func(int)    // is told of more
	limit func() int64 // bytes that may have come out by now
}

func (e *expansion) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.out(n)
	if e.sum += int64(n); e.sum > e.limit() {
		return 0, contentErrorf("decompress: more than %d bytes come out", e.sum)
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
