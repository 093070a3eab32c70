package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

// chunked is the zstd:chunked format for package estargz.
type chunked struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// lazyBody is the content of a file of a lazy layer: several chunks.
var lazyBody = strings.Repeat("lazily loaded, or not at all\n", 4000)

// lazy makes a layer of a format for lazy pulling, with the tools of that format, and returns it and its diff ID.
func lazy(t *testing.T, opts ...estargz.Option) ([]byte, digest.Digest) {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, f := range []struct{ name, body string }{{"etc/", ""}, {"etc/a", "read"}, {"etc/long", lazyBody}} {
		h := &tar.Header{Name: f.name, Size: int64(len(f.body)), Mode: 0o755}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(plain.Bytes()), 0, int64(plain.Len())), append(opts, estargz.WithChunkSize(16<<10))...)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.Close(); err != nil {
		t.Fatal(err)
	}
	return data, blob.DiffID()
}

// TestLazyFormatsAreLayersLikeOthers pulls eStargz and zstd:chunked, which have a gzip member or zstd frame for each chunk and a
// table of contents at the end.
func TestLazyFormatsAreLayersLikeOthers(t *testing.T) {
	for _, row := range []struct {
		name, mediaType string
		opts            []estargz.Option
	}{
		{"eStargz", ocispec.MediaTypeImageLayerGzip, nil},
		{"zstd:chunked", ocispec.MediaTypeImageLayerZstd, []estargz.Option{estargz.WithCompression(chunked{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault}, &zstdchunked.Decompressor{}})}},
	} {
		t.Run(row.name, func(t *testing.T) {
			blob, diffID := lazy(t, row.opts...)
			l := newLiar(t, incompressible(t))
			setLayer(t, l, blob)
			editConfig(t, l, func(c *ocispec.Image) { c.RootFS.DiffIDs = []digest.Digest{diffID} })
			editManifest(t, l, func(m map[string]any) {
				m["layers"].([]any)[0].(map[string]any)["mediaType"] = row.mediaType
			})
			n := newNode(t)
			id := n.pull(t, l.Listener.Addr().String()+"/app")
			root, err := n.Rootfs(t.Context(), id, "c", layer.RootOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{"etc/a": "read", "etc/long": lazyBody} {
				if got, err := read(t, root, name); err != nil || got != want {
					t.Errorf("%s has %d bytes, want %d, %v", name, len(got), len(want), err)
				}
			}
			if err := root.Close(); err != nil {
				t.Error(err)
			}
			if err := n.ReleaseRootfs(t.Context(), "c"); err != nil {
				t.Error(err)
			}
		})
	}
}

// ofWindow compresses by zstd with a window of so many bytes.
func ofWindow(t *testing.T, window int, plain []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// TestZstdWindows pulls layers of the largest window, of which one is unpacked at a time, and refuses a larger one.
func TestZstdWindows(t *testing.T) {
	pack := func(window int) *registry.Image {
		img := incompressible(t)
		plain := registry.Tar(t, registry.File{Header: tar.Header{Name: "etc/a"}, Body: strings.Repeat("0123456789abcdef", 1<<20)})
		l := &liar{img: img}
		setLayer(t, l, ofWindow(t, window, plain))
		editConfig(t, l, func(c *ocispec.Image) { c.RootFS.DiffIDs = []digest.Digest{digest.FromBytes(plain)} })
		editManifest(t, l, func(m map[string]any) {
			m["layers"].([]any)[0].(map[string]any)["mediaType"] = ocispec.MediaTypeImageLayerZstd
		})
		return img
	}
	for _, window := range []int{8 << 20, 64 << 20, 128 << 20} {
		n := newNode(t)
		n.pull(t, newLiar(t, pack(window)).Listener.Addr().String()+"/app")
		if !n.bounds.wide.TryAcquire(1) {
			t.Errorf("a window of %d bytes is still held", window)
		}
	}
	n := newNode(t)
	_, err := n.Pull(t.Context(), PullRequest{Ref: newLiar(t, pack(256<<20)).Listener.Addr().String() + "/app"})
	if err == nil || !strings.Contains(err.Error(), "decompress: ") {
		t.Errorf("a window of 256 MiB: %v", err)
	}
	n.mustBeEmpty(t)
}

// TestWideWindowsWithinTheLimitOfRequests pulls two layers of a large window from a registry that is asked one thing at a time, and
// that breaks the first one off until the other is asked for: the one with the place for such a window needs the place at
// the gate that the other has.
func TestWideWindowsWithinTheLimitOfRequests(t *testing.T) {
	img := registry.Build(t, registry.Spec{Layers: []registry.Layer{
		{Files: []registry.File{{Header: tar.Header{Name: "a"}, Body: noise(1)}}}, {Files: []registry.File{{Header: tar.Header{Name: "b"}, Body: noise(2)}}},
	}})
	l := newLiar(t, img)
	for i, layer := range img.Layers {
		setLayerAt(t, l, i, ofWindow(t, 64<<20, img.Blobs[layer.Digest]))
	}
	editManifest(t, l, func(m map[string]any) {
		for _, layer := range m["layers"].([]any) {
			layer.(map[string]any)["mediaType"] = ocispec.MediaTypeImageLayerZstd
		}
	})
	var mu sync.Mutex
	var first string // path of the layer that was asked for first
	both := false
	l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
		mu.Lock()
		if first == "" {
			first = r.URL.Path
		}
		both = both || r.URL.Path != first
		whole := both
		mu.Unlock()
		blob := img.Blobs[digest.Digest(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])]
		if !whole {
			serve(w, r, blob, len(blob)/2)
			reset()
		}
		serve(w, r, blob, len(blob))
	}
	n := newNode(t, func(c *Config) {
		c.Registry = remote.Config{Limit: remote.Limit{AtOnce: 1}, Attempts: 100, Backoff: 10 * time.Millisecond, MaxBackoff: 10 * time.Millisecond}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := n.Pull(ctx, PullRequest{Ref: l.Listener.Addr().String() + "/app"}); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for path, hits := range l.hits {
		if strings.Contains(path, "/blobs/") && !strings.HasSuffix(path, img.ID.String()) && hits < 2 {
			t.Errorf("%s was fetched in one request: nothing was given up", path)
		}
	}
}
