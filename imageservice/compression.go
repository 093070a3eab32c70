package imageservice

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/inflate"
)

// compression is how a layer is packed.
type compression int

const (
	detect compression = iota // by its first bytes
	plain
	gzipped
	zstandard
)

// Bytes of memory that a frame can ask for. zstd itself stops at 128 MiB unless told otherwise; its levels use 8 MiB at most.
const (
	maxZstdWindow   = 128 << 20
	usualZstdWindow = 8 << 20
)

var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicSkip = []byte{0x2a, 0x4d, 0x18} // of a zstd frame to be skipped, after a byte 0x50 to 0x5f
)

// layerCompressions has every media type of a layer. Docker's are often wrong about the compression, so
// the first bytes count; OCI's are held to what they say.
var layerCompressions = map[string]compression{
	ocispec.MediaTypeImageLayer:                                    plain,
	ocispec.MediaTypeImageLayerGzip:                                gzipped,
	ocispec.MediaTypeImageLayerZstd:                                zstandard,
	images.MediaTypeDockerSchema2Layer:                             detect,
	images.MediaTypeDockerSchema2LayerGzip:                         detect,
	images.MediaTypeDockerSchema2LayerZstd:                         detect,
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      plain,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": gzipped,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": zstandard,
}

func sniff(head []byte) compression {
	switch {
	case bytes.HasPrefix(head, magicGzip):
		return gzipped
	case bytes.HasPrefix(head, magicZstd), len(head) > 3 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], magicSkip):
		return zstandard
	}
	return plain
}

// form is how a layer is packed, as its first bytes show it.
type form struct {
	compression
	window uint64 // bytes of memory that zstd asks for
}

// headSize is how much of a layer is looked at first, in bytes.
const headSize = 64 << 10

// formOf looks at the first bytes of a layer, of which br has headSize. They are of the media type's compression, if it has one.
func formOf(mediaType string, br *bufio.Reader) (form, error) {
	want, known := layerCompressions[mediaType]
	if !known {
		return form{}, fmt.Errorf("media type %q is not a layer's", mediaType)
	}
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return form{}, decompressError(err)
	}
	f := form{compression: sniff(head)}
	if want != detect && want != f.compression {
		return f, contentErrorf("decompress: media type is %s, but the data begins with % x", mediaType, head)
	}
	if f.compression == zstandard {
		f.window = windowOf(br)
	}
	return f, nil
}

// decompress returns the plain stream of r, which has this form. It must be closed. While another layer is waited for, rest lets
// go of what the other one could be waiting for.
func (b *bounds) decompress(ctx context.Context, f form, r io.Reader, rest func()) (io.ReadCloser, error) {
	switch f.compression {
	case gzipped:
		d, err := inflate.NewReader(r)
		if err != nil {
			return nil, decompressError(err)
		}
		return io.NopCloser(d), nil
	case zstandard:
		return b.decompressZstd(ctx, f.window, r, rest)
	}
	return io.NopCloser(r), nil
}

// decompressZstd works on several blocks at a time. A window that is larger than what a layer's share of memory is made for
// waits until no other layer has one.
func (b *bounds) decompressZstd(ctx context.Context, window uint64, r io.Reader, rest func()) (io.ReadCloser, error) {
	d := &zstdStream{}
	maxWindow := uint64(usualZstdWindow)
	if window > maxWindow {
		if err := b.widen(ctx, rest); err != nil {
			return nil, err
		}
		d.release, maxWindow = func() { b.wide.Release(1) }, maxZstdWindow
	}
	var err error
	d.Decoder, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(min(4, runtime.GOMAXPROCS(0))), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// widen takes the place for an unusual window.
func (b *bounds) widen(ctx context.Context, rest func()) error {
	if b.wide.TryAcquire(1) {
		return nil
	}
	rest()
	if err := b.wide.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	return nil
}

// windowOf is the largest window that the frames ask for that br has in its buffer. An archive is packed by one encoder, so
// the frames after these are alike; a larger window is an error of the decoder.
func windowOf(br *bufio.Reader) (window uint64) {
	ahead, _ := br.Peek(headSize) // fewer bytes will do
	for len(ahead) > 0 {
		var h zstd.Header
		if h.Decode(ahead) != nil {
			return window
		}
		if !h.Skippable {
			return max(window, h.WindowSize)
		}
		skip := uint64(h.HeaderSize) + uint64(h.SkippableSize)
		if skip > uint64(len(ahead)) {
			return window
		}
		ahead = ahead[skip:]
	}
	return window
}

type zstdStream struct {
	*zstd.Decoder
	release func() // nil: nothing is held
}

// Close ends the decoder's goroutines.
func (d *zstdStream) Close() error {
	if d.Decoder != nil {
		d.Decoder.Close()
	}
	if d.release != nil {
		d.release()
	}
	return nil
}
