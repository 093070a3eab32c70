package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// errNoRanges says that an endpoint does not serve a part of a blob as it was asked for.
var errNoRanges = errors.New("the endpoint does not serve ranges")

// stretch is the bytes of a blob from offset to end, over one connection at a time. A connection that breaks or stalls is
// replaced by one that asks for the rest, at the same endpoint or the next.
type stretch struct {
	ctx    context.Context // a field because io.Reader has no parameter for it
	s      *Session
	desc   ocispec.Descriptor
	plan   *schedule
	strict bool // another answer than exactly the range is errNoRanges
	whole  bool // ask for no range: what comes before offset is read and dropped
	lost   *atomic.Int64

	body     *body
	name     string    // of the request that body answers
	from     *endpoint // which sent body
	several  bool      // another endpoint has sent what is before
	offset   int64     // of the next byte for the reader
	end      int64     // becomes the blob's size when an endpoint sends everything
	safe     int64     // offset at which failures were last forgiven
	failedAt time.Time // of the first failure since the last byte came
	err      error     // final
}

func (b *stretch) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.offset == b.end && b.body == nil {
			return 0, io.EOF
		}
		if b.body == nil {
			b.err = b.open()
			continue
		}
		n, err := b.body.Read(p)
		if left := b.end - b.offset; int64(n) > left {
			n, err, b.err = int(left), io.EOF, b.excess()
		}
		b.advance(n)
		switch {
		case b.err != nil:
		case err != nil && b.offset == b.end:
			_ = b.Close() // everything was read, whatever happened behind it
		case err == io.EOF:
			b.err = b.fail(unavailable{err: fmt.Errorf("ended after %d of %d bytes", b.offset, b.desc.Size)})
		case err != nil:
			b.err = b.fail(fmt.Errorf("at byte %d of %d: %w", b.offset, b.desc.Size, err))
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// advance takes down that n bytes are with the reader.
func (b *stretch) advance(n int) {
	b.offset += int64(n)
	if n > 0 && !b.failedAt.IsZero() {
		b.lost.Add(int64(time.Since(b.failedAt)))
		b.failedAt = time.Time{}
	}
	if b.offset-b.safe >= progress {
		b.plan.progressed()
		b.safe = b.offset
	}
}

// Close abandons the stretch.
func (b *stretch) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

// excess ends a blob that is longer than announced: its beginning is with the reader already, so no other endpoint can
// help. What follows a range that was asked for is only dropped.
func (b *stretch) excess() error {
	_ = b.Close() // nothing more is wanted of it
	if b.end < b.desc.Size {
		return nil
	}
	cause := fmt.Errorf("%w: more than the %d bytes announced", ErrInvalid, b.desc.Size)
	return &FetchError{What: b.plan.what, Attempts: append(b.plan.attempts, Attempt{URL: b.name, Err: cause, Took: time.Since(b.plan.begun)})}
}

// fail gives up the present connection; nil means that another attempt is due.
func (b *stretch) fail(cause error) error {
	_ = b.Close() // has failed already
	if b.failedAt.IsZero() {
		b.failedAt = time.Now()
	}
	if errors.Is(cause, errNoRanges) {
		return cause
	}
	return b.plan.failed(b.ctx, b.name, cause)
}

// open asks the next endpoint for what is missing; nil also means that the next one is to be asked.
func (b *stretch) open() error {
	e, err := b.plan.pick(b.ctx)
	if err != nil {
		return err
	}
	var address string
	address, b.name = b.s.url(e, "blobs", b.desc.Digest.String())
	header, accept := http.Header{}, http.StatusOK
	if asked := b.span(); asked != "" {
		header.Set("Range", "bytes="+asked)
		accept = http.StatusPartialContent
	}
	resp, body, err := b.s.stream(b.ctx, e, address, header, http.StatusOK, accept)
	if err != nil && accept == http.StatusPartialContent && refusesRange(err) {
		if b.strict {
			return b.fail(errNoRanges)
		}
		b.end, b.whole = b.desc.Size, true
		return nil
	}
	if err != nil {
		return b.fail(err)
	}
	b.several = b.several || b.offset > 0 && b.from != nil && b.from != e
	b.body, b.from = body, e
	if err := b.position(resp); err != nil {
		return b.fail(err)
	}
	return nil
}

// span is the range that is missing as a request names it, "" for everything.
func (b *stretch) span() string {
	switch {
	case b.whole || b.offset == 0 && b.end == b.desc.Size:
		return ""
	case b.end == b.desc.Size && !b.strict:
		return fmt.Sprintf("%d-", b.offset)
	}
	return fmt.Sprintf("%d-%d", b.offset, b.end-1)
}

// refusesRange says whether an endpoint may have what it does not give because of the range.
func refusesRange(err error) bool {
	var status *statusError
	if !errors.As(err, &status) {
		return false
	}
	switch status.code {
	case http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest, http.StatusNotImplemented:
		return true
	}
	return false
}

// position makes sure that the body begins at the offset and ends with the stretch.
func (b *stretch) position(resp *http.Response) error {
	start := int64(0)
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		start = b.offset
		if got := resp.Header.Get("Content-Range"); !b.fits(got) {
			return b.unlike("%w: asked for bytes from %d, got range %q", ErrInvalid, start, printable(got))
		}
	case b.strict:
		return errNoRanges
	default:
		b.end = b.desc.Size
	}
	if resp.ContentLength >= 0 && resp.ContentLength != b.end-start {
		return b.unlike("%w: length is %d, %d are missing", ErrInvalid, resp.ContentLength, b.end-start)
	}
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return fmt.Errorf("%w: content encoding %q was not asked for", ErrInvalid, printable(coding))
	}
	if start == b.offset {
		return nil
	}
	if _, err := io.CopyN(io.Discard, b.body, b.offset); err != nil { // an endpoint without ranges
		if errors.Is(err, io.EOF) {
			err = unavailable{err: io.ErrUnexpectedEOF}
		}
		return err
	}
	return nil
}

// fits says whether a Content-Range is the one that was asked for. Its end may also be that of the blob, where everything
// from the offset is sent.
func (b *stretch) fits(got string) bool {
	span, total, _ := strings.Cut(strings.TrimPrefix(got, "bytes "), "/")
	if total != "*" && total != fmt.Sprint(b.desc.Size) {
		return false
	}
	if span == fmt.Sprintf("%d-%d", b.offset, b.desc.Size-1) && !b.strict {
		b.end = b.desc.Size
		return true
	}
	return span == fmt.Sprintf("%d-%d", b.offset, b.end-1)
}

// unlike is the error of an answer to a range that is not the range.
func (b *stretch) unlike(format string, args ...any) error {
	if b.strict {
		return errNoRanges
	}
	return fmt.Errorf(format, args...)
}
