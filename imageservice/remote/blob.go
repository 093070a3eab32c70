package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// progress is how many bytes make earlier failures forgiven.
const progress = 1 << 20

// Blob is the content of one descriptor as a stream of exactly its size. A connection that breaks or stalls is replaced
// by one that asks for the rest, at the same endpoint or the next.
type Blob struct {
	ctx    context.Context // a field because io.Reader has no parameter for it
	s      *Session
	desc   ocispec.Descriptor
	plan   *schedule
	body   *body
	name   string    // of the request that body answers
	from   *endpoint // which sent body
	offset int64     // bytes given to the reader
	safe   int64     // offset at which failures were last forgiven
	err    error     // final
}

// Blob returns the stream of a descriptor. Nothing is requested before the first Read; it is ctx that ends it. Errors
// list the attempts. The digest is not verified.
func (s *Session) Blob(ctx context.Context, desc ocispec.Descriptor) *Blob {
	return &Blob{ctx: ctx, s: s, desc: desc, plan: s.schedule("blob "+desc.Digest.String(), s.capable(docker.HostCapabilityPull))}
}

// ReadBlob returns a whole small blob, verified.
func (s *Session) ReadBlob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("fetch blob %s: %w: size %d is not between 0 and %d", desc.Digest, ErrInvalid, desc.Size, limit)
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("fetch blob %q: %w: %w", printable(desc.Digest.String()), ErrInvalid, err)
	}
	b := s.Blob(ctx, desc)
	defer func() { _ = b.Close() }() // read to its end, or abandoned
	for {
		data, err := io.ReadAll(b)
		if err != nil {
			return nil, err
		}
		got := desc.Digest.Algorithm().FromBytes(data)
		if got == desc.Digest {
			return data, nil
		}
		if err := b.Reject(fmt.Errorf("digest is %s", got)); err != nil {
			return nil, err
		}
	}
}

// Reject says that what the stream brought is not the blob, and why. If another endpoint is left the stream begins anew
// there and Reject returns nil.
func (b *Blob) Reject(cause error) error {
	_ = b.Close() // nothing more is wanted of it
	b.offset, b.safe = 0, 0
	for i, h := range b.plan.hosts {
		if h == b.from {
			b.plan.next = i
		}
	}
	b.err = b.plan.failed(b.ctx, b.name, fmt.Errorf("%w: %w", ErrInvalid, cause))
	if b.err == nil && len(b.plan.hosts) == 0 {
		b.err = b.plan.error()
	}
	return b.err
}

func (b *Blob) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.offset == b.desc.Size && b.body == nil {
			return 0, io.EOF
		}
		if b.body == nil {
			b.err = b.open()
			continue
		}
		n, err := b.body.Read(p)
		if left := b.desc.Size - b.offset; int64(n) > left {
			n, b.err = int(left), b.excess()
		}
		b.offset += int64(n)
		if b.offset-b.safe >= progress {
			b.plan.progressed()
			b.safe = b.offset
		}
		switch {
		case b.err != nil:
		case err != nil && b.offset == b.desc.Size:
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

// Close abandons the stream.
func (b *Blob) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

// excess ends the stream: its beginning is with the reader already, so no other endpoint can help.
func (b *Blob) excess() error {
	_ = b.Close() // nothing more is wanted of it
	cause := fmt.Errorf("%w: more than the %d bytes announced", ErrInvalid, b.desc.Size)
	return &FetchError{What: b.plan.what, Attempts: append(b.plan.attempts, Attempt{URL: b.name, Err: cause, Took: time.Since(b.plan.begun)})}
}

// fail gives up the present connection; nil means that another attempt is due.
func (b *Blob) fail(cause error) error {
	_ = b.Close() // has failed already
	return b.plan.failed(b.ctx, b.name, cause)
}

// open asks the next endpoint for what is missing; nil also means that the next one is to be asked.
func (b *Blob) open() error {
	e, err := b.plan.pick(b.ctx)
	if err != nil {
		return err
	}
	var address string
	address, b.name = b.s.url(e, "blobs", b.desc.Digest.String())
	header, accept := http.Header{}, http.StatusOK
	if b.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
		accept = http.StatusPartialContent
	}
	resp, body, err := b.s.stream(b.ctx, e, address, header, http.StatusOK, accept)
	if err != nil {
		return b.fail(err)
	}
	b.body, b.from = body, e
	if err := b.position(resp); err != nil {
		return b.fail(err)
	}
	return nil
}

// position makes sure that the body begins at the offset and ends with the blob.
func (b *Blob) position(resp *http.Response) error {
	start := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		start = b.offset
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", start)) {
			return fmt.Errorf("%w: asked for bytes from %d, got range %q", ErrInvalid, start, printable(got))
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size-start {
		return fmt.Errorf("%w: length is %d, %d are missing", ErrInvalid, resp.ContentLength, b.desc.Size-start)
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
