package imageservice

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// compression is how a layer is packed.
type compression int

const (
	detect compression = iota // by its first bytes
	plain
	gzipped
	zstandard
)

// maxZstdWindow bounds the memory that a frame can ask for, in bytes. zstd itself stops at 128 MiB unless told otherwise.
const maxZstdWindow = 128 << 20

var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicSkip = []byte{0x2a, 0x4d, 0x18} // of a zstd frame to be skipped, after a byte 0x50 to 0x5f
)

// layerCompressions has every media type of a layer. Docker's are often wrong about the compression, and everybody has
// learned to look; OCI's are held to what they say.
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

// decompress returns the plain stream of r, which is packed as the media type says.
func decompress(mediaType string, r io.Reader) (io.ReadCloser, error) {
	want, known := layerCompressions[mediaType]
	if !known {
		return nil, fmt.Errorf("media type %q is not a layer's", mediaType)
	}
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, decompressError(err)
	}
	found := sniff(head)
	if want != detect && want != found {
		return nil, contentErrorf("decompress: media type is %s, but the data begins with % x", mediaType, head)
	}
	switch found {
	case gzipped:
		d, err := gzip.NewReader(br)
		if err != nil {
			return nil, decompressError(err)
		}
		return d, nil
	case zstandard:
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}
