package imageservice

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/test/registry"
)

// TestPumpReadsAheadWhereProcessorsAreToSpare changes, while a stream is read, whether they are.
func TestPumpReadsAheadWhereProcessorsAreToSpare(t *testing.T) {
	data := make([]byte, 40*pumpBuffer+1)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // never fails
	never, always := func(int64) bool { return false }, func(int64) bool { return true }
	for _, c := range []struct {
		name  string
		spare func(asked int64) bool
		ahead bool // in the end
	}{
		{"sometimes", func(asked int64) bool { return asked%7 < 4 && asked < 40 }, false},
		{"never", never, false},
		{"always", always, true},
		{"at first", func(asked int64) bool { return asked < 20 }, false},
		{"in the end", func(asked int64) bool { return asked > 20 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int64
			p := newPump(iotest.HalfReader(bytes.NewReader(data)), sha256.New(), func() bool { return c.spare(asked.Add(1)) }, pumpTimes{})
			defer p.Close()
			got, err := io.ReadAll(io.LimitReader(p, int64(len(data)/2)))
			if err != nil || !bytes.Equal(got, data[:len(data)/2]) {
				t.Fatalf("%d bytes of %d, %v", len(got), len(data)/2, err)
			}
			if err := p.finish(); err != nil {
				t.Fatal(err)
			}
			if got, want := digest.NewDigest(digest.SHA256, p.hash), digest.FromBytes(data); got != want {
				t.Errorf("digest %s, want %s", got, want)
			}
			if (p.ahead != nil) != c.ahead {
				t.Errorf("reading ahead in the end: %t, want %t", p.ahead != nil, c.ahead)
			}
		})
	}
}

// TestPumpIsAbandoned closes pumps in the middle, and expects that the source is used no more.
func TestPumpIsAbandoned(t *testing.T) {
	for _, spare := range []bool{true, false} {
		var closed atomic.Bool
		src := readerFunc(func(b []byte) (int, error) {
			if closed.Load() {
				t.Error("the source is used after Close")
			}
			return len(b), nil
		})
		p := newPump(src, sha256.New(), func() bool { return spare }, pumpTimes{})
		if _, err := io.ReadFull(p, make([]byte, 3*pumpBuffer)); err != nil {
			t.Error(err)
		}
		p.Close()
		closed.Store(true)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestPanicUnderAPumpIsAnError(t *testing.T) {
	for _, spare := range []bool{true, false} {
		p := newPump(panicky{strings.NewReader("text")}, sha256.New(), func() bool { return spare }, pumpTimes{})
		data, err := io.ReadAll(p)
		var panicked *stage.PanicError
		if string(data) != "text" || !errors.As(err, &panicked) {
			t.Errorf("%q, %v", data, err)
		}
		p.Close()
	}
}

// panicky is a source that goes wrong after a few bytes.
type panicky struct{ io.Reader }

func (p panicky) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if err != nil {
		panic("boom")
	}
	return n, nil
}

func TestLargestLayersBeginFirst(t *testing.T) {
	sizes := []int{100, 90_000, 3000, 70_000}
	var layers []registry.Layer
	for _, size := range sizes {
		layers = append(layers, registry.Layer{Files: []registry.File{{Header: tar.Header{Name: fmt.Sprint(size)}, Body: strings.Repeat("x", size)}}})
	}
	img := registry.Build(t, registry.Spec{Layers: layers})
	l := newLiar(t, img)
	asked := make(chan digest.Digest, len(sizes))
	l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
		d := digest.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
		asked <- d
		serve(w, r, img.Blobs[d], len(img.Blobs[d]))
	}
	n := newNode(t, func(c *Config) { c.Bounds.Layers = 1 })
	n.pull(t, l.Listener.Addr().String()+"/app")
	close(asked)
	var order []int
	for d := range asked {
		order = append(order, slices.IndexFunc(img.Layers, func(desc ocispec.Descriptor) bool { return desc.Digest == d }))
	}
	if want := []int{1, 3, 2, 0}; !slices.Equal(order, want) {
		t.Errorf("layers were asked for in the order %v, want %v", order, want)
	}
}

// heldSync is a store that notes when it may sync again.
type heldSync struct {
	LayerStore
	let func()
}

func (s *heldSync) HoldSync() func() {
	let := s.LayerStore.HoldSync()
	return func() { s.let(); let() }
}

// TestRecordDoesNotWaitForLayersToBeSynced expects that syncing is held back until the image is recorded.
func TestRecordDoesNotWaitForLayersToBeSynced(t *testing.T) {
	held := &heldSync{}
	n := newNode(t, func(c *Config) {
		held.LayerStore = c.Layers
		c.Layers = held
	})
	let := 0
	held.let = func() {
		let++
		if len(n.List()) != 1 {
			t.Error("layers may be synced before the image is recorded")
		}
	}
	n.pull(t, newLiar(t, incompressible(t)).Listener.Addr().String()+"/app")
	if let != 1 {
		t.Errorf("syncing was let go %d times", let)
	}
}
