package tarstream

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/criserver/criserver/store/layer/frame"
)

// Reader gives the entries of one layer in order. Not safe for concurrent use.
type Reader struct {
	ctx     context.Context // a Reader lives within one call
	limits  Limits
	stream  *bounded
	tap     *tap
	tar     *tar.Reader
	entries int
	content int64  // bytes of all contents so far
	last    string // the entry that Next gave last, for messages
	entry   *Entry // what Next gave last; nil if its content counts as part of the frame
	sparse  bool   // what Next gave last has holes that the archive does not have
	holes   int64  // bytes of these so far
}

// bufferSize saves small reads of headers; contents go around the buffer when they are larger.
const bufferSize = 64 << 10

// NewReader reads the archive r, which is not compressed. Next fails once ctx is done.
func NewReader(ctx context.Context, r io.Reader, l Limits) *Reader {
	stream := &bounded{r: r, left: l.Bytes, limit: l.Bytes}
	tap := &tap{r: bufio.NewReaderSize(stream, bufferSize)}
	return &Reader{ctx: ctx, limits: l, stream: stream, tap: tap, tar: tar.NewReader(tap)}
}

// Record makes r tell f what the archive is beside the contents that are read from it, and where Entry.Kept says that
// these are. It is called before Next.
func (r *Reader) Record(f *frame.Writer) { r.tap.frame = f }

// Next gives the next entry. Its content, if it is Regular, is what Read gives until the next call.
// At the end of the archive the rest of the stream is read, so that the caller's digest is complete, and the error
// is io.EOF.
func (r *Reader) Next() (*Entry, error) {
	for {
		if err := r.ctx.Err(); err != nil {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		if err := r.place(); err != nil {
			return nil, err
		}
		h, err := r.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil, r.drain()
		}
		if err != nil {
			return nil, r.fault(err)
		}
		r.last = h.Name
		if r.entries++; r.entries > r.limits.Entries {
			return nil, Invalidf(h.Name, "more than the limit of %d entries", r.limits.Entries)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, ok, err := r.limits.entry(h)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if r.content += e.Size; r.content > r.limits.Bytes || r.content < 0 {
			return nil, Invalidf(h.Name, "contents are together more than the limit of %d bytes", r.limits.Bytes)
		}
		if r.sparse = sparse(h); !r.sparse {
			r.entry = e
		}
		return e, nil
	}
}

// Read gives the content of the last entry, holes filled with zeros.
func (r *Reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil { // a file may be a terabyte of holes
		return 0, fmt.Errorf("read layer: %w", err)
	}
	r.tap.kept = r.entry != nil
	before := r.tap.read
	n, err := r.tar.Read(p)
	r.tap.kept = false
	if r.sparse {
		r.holes += int64(n) - (r.tap.read - before)
	}
	if r.holes > r.limits.Holes {
		return 0, Invalidf(r.last, "holes are together more than the limit of %d bytes", r.limits.Holes)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.fault(err)
	}
	return n, err
}

// Each calls add for all entries that are left; content is that of a Regular.
func (r *Reader) Each(add func(e *Entry, content io.Reader) error) error {
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = add(e, r)
		}
		if err != nil {
			return err
		}
	}
}

// Bytes is how much of the archive was read so far.
func (r *Reader) Bytes() int64 { return r.limits.Bytes - r.stream.left }

func (r *Reader) drain() error {
	if _, err := io.Copy(io.Discard, r.tap); err != nil {
		return r.fault(err)
	}
	return io.EOF
}

// fault says after which entry the stream failed.
func (r *Reader) fault(err error) error {
	where := "before its first entry"
	if r.last != "" {
		where = "in or after entry " + Quote(r.last)
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, where, err)
	}
	return fmt.Errorf("read layer %s: %w", where, err)
}

// bounded fails once more than limit bytes came from r.
type bounded struct {
	r           io.Reader
	left, limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: archive is longer than the limit of %d bytes", ErrInvalid, b.limit)
	}
	return n, err
}
