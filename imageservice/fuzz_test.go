package imageservice

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/imagedb"
	"github.com/criserver/criserver/test/registry"
)

func FuzzManifest(f *testing.F) {
	img := hello(f, "x")
	index, indexType := registry.Index(f, false, img)
	f.Add(img.Manifest, img.Desc.MediaType)
	f.Add(index, indexType)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{}],"config":{}}`), "")
	s := &Service{cfg: Config{Limits: Limits{}.withDefaults()}, platform: platforms.All}
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		d := digest.FromBytes(data)
		doc, isIndex, err := parseDocument(remote.Manifest{Digest: d, MediaType: mediaType, Bytes: data})
		if err != nil {
			if !errors.Is(err, ErrInvalidImage) {
				t.Errorf("%v is not ErrInvalidImage", err)
			}
			return
		}
		if isIndex {
			if chosen, err := choose(d, doc.Manifests, s.platform); err == nil && chosen.Digest.Validate() != nil {
				t.Errorf("chose %+v", chosen)
			}
			return
		}
		if s.checkManifest(d, doc) != nil {
			return
		}
		for _, l := range doc.Layers {
			if l.Digest.Validate() != nil || l.Size <= 0 {
				t.Errorf("accepted layer %+v", l)
			}
		}
	})
}

func FuzzReference(f *testing.F) {
	for _, ref := range []string{"busybox", "a/b:c", "h:5000/a@sha256:" + strings.Repeat("a", 64), "sha256:abc", "docker.io/library/x", ""} {
		f.Add(ref)
	}
	snapshot := &imagedb.Snapshot{}
	f.Fuzz(func(t *testing.T, ref string) {
		if img, err := lookUp(snapshot, ref); img != nil || err != nil {
			t.Errorf("found %v in nothing, %v", img, err)
		}
		parsed, err := parse(ref)
		if err != nil {
			if !errors.Is(err, ErrInvalidReference) {
				t.Errorf("%v is not ErrInvalidReference", err)
			}
			return
		}
		again, err := parse(parsed.String())
		if err != nil || again.String() != parsed.String() || (parsed.tag == "") == (parsed.digest == "") {
			t.Errorf("%q becomes %q, which becomes %q, %v", ref, parsed, again, err)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	for _, c := range []string{"", "gzip", "zstd"} {
		f.Add(registry.Compress(f, c, []byte("some text")), "application/vnd.docker.image.rootfs.diff.tar.gzip")
	}
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff}, ocispec.MediaTypeImageLayerZstd)
	b := newBounds(Bounds{}.withDefaults())
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		in := bufio.NewReaderSize(bytes.NewReader(data), headSize)
		packed, err := formOf(mediaType, in)
		if err != nil {
			return
		}
		r, err := b.decompress(t.Context(), packed, in, func() { t.Error("another one has the place") })
		if err != nil {
			return
		}
		limited := &expansion{r: r, out: func(int) {}, limit: func() int64 { return 1 << 20 }}
		if n, err := io.Copy(io.Discard, limited); n > 1<<20 {
			t.Errorf("%d bytes came out, %v", n, err)
		}
		_ = r.Close() // says again what Read has said
	})
}

func TestPanicOfAPullIsAnError(t *testing.T) {
	g := newFlights[int](t.Context(), stage.NewRecorder(1), "test")
	_, _, err := g.do(t.Context(), "k", false, func(context.Context) (int, error) { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Error(err)
	}
	if v, _, err := g.do(t.Context(), "k", false, func(context.Context) (int, error) { return 7, nil }); v != 7 || err != nil {
		t.Errorf("afterwards: %d, %v", v, err)
	}
	g.wait()
}

// Lists are where a few bytes of JSON become many of memory.
func TestMemoryOfDocumentsIsBounded(t *testing.T) {
	allocated := func(parse func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		parse()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	list := func(begin, of, end string, size int) []byte {
		return []byte(begin + strings.Repeat(of+",", size/(len(of)+1)) + of + end)
	}
	for name, data := range map[string][]byte{
		"layers":    list(`{"schemaVersion":2,"config":{},"layers":[`, `{}`, `]}`, remote.MaxManifest),
		"manifests": list(`{"schemaVersion":2,"manifests":[`, `{}`, `]}`, remote.MaxManifest),
	} {
		got := allocated(func() {
			_, _, err := parseDocument(remote.Manifest{MediaType: ocispec.MediaTypeImageManifest, Bytes: data})
			if !errors.Is(err, ErrInvalidImage) || !strings.Contains(err.Error(), "more than 1000 descriptors") {
				t.Errorf("%s: %v", name, err)
			}
		})
		if got > 4*remote.MaxManifest {
			t.Errorf("%s: %d bytes were allocated for %d", name, got, len(data))
		}
	}
	const size = 8 << 20
	history := list(`{"history":[`, `{}`, `]}`, size)
	if got := allocated(func() {
		if _, err := parseConfig(history); err != nil {
			t.Error(err)
		}
	}); got > 2*size {
		t.Errorf("history: %d bytes were allocated for %d", got, size)
	}
}
