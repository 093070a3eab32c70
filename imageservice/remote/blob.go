package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// progress is how many bytes make earlier failures forgiven.
const progress = 1 << 20

// Blob is the content of one descriptor as a stream of exactly its size.
//
// A large one begins with a request for its first bytes. If that is answered as asked, and the reader waited for the network
// most of the time, the rest is fetched in parts over several connections (see parts); else over one.
type Blob struct {
	stretch               // what one connection at a time brings; of a blob in parts it is at its end
	parts   *parts        // nil unless the rest comes in parts
	single  bool          // no parts: they went wrong before
	mixed   bool          // parts have been given to the reader
	again   bool          // it was begun anew because several endpoints may have been to blame
	begun   time.Time     // of the first Read
	waited  time.Duration // in Read
	missed  atomic.Int64  // see Lost
}

// Blob returns the stream of a descriptor. Nothing is requested before the first Read; it is ctx that ends it. Errors
// list the attempts. The digest is not verified.
func (s *Session) Blob(ctx context.Context, desc ocispec.Descriptor) *Blob {
	b := &Blob{stretch: stretch{ctx: ctx, s: s, desc: desc}}
	b.plan = s.schedule("blob "+desc.Digest.String(), s.capable(docker.HostCapabilityPull))
	b.lost = &b.missed
	b.restart()
	return b
}

// restart lets the next Read begin with the first byte.
func (b *Blob) restart() {
	b.offset, b.safe, b.end, b.whole = 0, 0, b.desc.Size, false
	b.begun, b.waited, b.mixed, b.several = time.Time{}, 0, false, false
	if lanes := b.s.cfg.Lanes; lanes != nil && !b.single && b.desc.Size >= 2*lanes.head {
		b.end = lanes.head
	}
}

// Lost is how much time has passed between failures and the next byte: waiting before another attempt, asking other
// endpoints. It may be called while another goroutine reads.
func (b *Blob) Lost() time.Duration { return time.Duration(b.missed.Load()) }

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

// Reject says that what the stream brought is not the blob, and why. If another endpoint is left, or parts may have been to
// blame, the stream begins anew and Reject returns nil.
func (b *Blob) Reject(cause error) error {
	_ = b.Close() // nothing more is wanted of it
	cause = fmt.Errorf("%w: %w", ErrInvalid, cause)
	if b.mixed {
		b.plan.attempts = append(b.plan.attempts, Attempt{URL: b.name + " in parts", Err: cause, Took: time.Since(b.begun)})
		b.single, b.err = true, nil
		b.restart()
		return nil
	}
	if i := slices.Index(b.plan.hosts, b.from); i >= 0 {
		b.plan.next = i
	}
	if b.several && !b.again { // one that sent the begin may have lied: the last is asked for everything
		b.plan.attempts = append(b.plan.attempts, Attempt{URL: b.name + " and endpoints before it", Err: cause, Took: time.Since(b.begun)})
		b.again, b.err = true, nil
		b.restart()
		return nil
	}
	b.err = b.plan.failed(b.ctx, b.name, cause)
	if b.err == nil && len(b.plan.hosts) == 0 {
		b.err = b.plan.error()
	}
	b.restart()
	return b.err
}

func (b *Blob) Read(p []byte) (int, error) {
	if b.begun.IsZero() {
		b.begun = time.Now()
	}
	for {
		if b.parts == nil {
			begun := time.Now()
			n, err := b.stretch.Read(p)
			b.waited += time.Since(begun)
			if n > 0 || err != io.EOF || b.offset == b.desc.Size {
				return n, err
			}
			b.goOn()
			continue
		}
		n, err := b.parts.Read(p)
		b.offset += int64(n)
		b.mixed = b.mixed || n > 0
		if !errors.Is(err, errNoRanges) {
			return n, err
		}
		b.parts.Close()
		b.parts, b.single, b.whole = nil, true, true // an endpoint that is wrong about a range is asked for none
	}
}

// goOn decides how the rest comes, after the first bytes.
func (b *Blob) goOn() {
	b.end = b.desc.Size
	if b.waited.Seconds() > b.s.cfg.Lanes.share*time.Since(b.begun).Seconds() {
		b.parts = newParts(b)
	}
}

// Pause gives up the connection, and its place at the gate, until the next Read asks for what is missing. Parts need nothing of
// the kind: they give theirs up without a reader.
func (b *Blob) Pause() {
	if b.parts != nil {
		return
	}
	_ = b.stretch.Close()              // nothing more is wanted of it
	b.begun, b.waited = time.Time{}, 0 // a reader that pauses is not slow
}

// Close abandons the stream and returns when nothing of it uses the session.
func (b *Blob) Close() error {
	if b.parts != nil {
		b.parts.Close()
		b.parts = nil
	}
	return b.stretch.Close()
}
