package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const sharingImages = 5

// sharing is a registry with five images that have all layers but one in common. It counts what it sends.
type sharing struct {
	image     // with the blobs of all
	manifests [sharingImages][]byte
	sent      atomic.Int64
}

// newSharing gives the layers of m to five images.
func newSharing(m *image) *sharing {
	s := &sharing{image: image{blobs: maps.Clone(m.blobs)}}
	var base ocispec.Image
	var manifest ocispec.Manifest
	mustParse(m.manifest, &manifest)
	mustParse(m.blobs[manifest.Config.Digest], &base)
	delete(s.blobs, manifest.Config.Digest)
	s.layers = append(s.layers, m.layers...)
	for i := range s.manifests {
		var plain, packed bytes.Buffer
		w := tar.NewWriter(&plain)
		_ = addFile(w, "own", fmt.Append(nil, "image ", i)) // to memory
		_ = w.Close()
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(plain.Bytes())
		_ = z.Close()
		own := s.add(ocispec.MediaTypeImageLayerGzip, packed.Bytes())
		s.layers = append(s.layers, own)
		config := base
		config.RootFS.DiffIDs = append(append([]digest.Digest{}, base.RootFS.DiffIDs...), digest.FromBytes(plain.Bytes()))
		data, _ := json.Marshal(config) // came from JSON
		s.manifests[i], _ = json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: s.add(ocispec.MediaTypeImageConfig, data), Layers: append(append([]ocispec.Descriptor{}, m.layers...), own)})
	}
	return s
}

// mustParse reads what this program has made.
func mustParse(data []byte, v any) {
	if err := json.Unmarshal(data, v); err != nil {
		panic(err)
	}
}

func (s *sharing) serve(b *bench) (addr string, err error) { return serveUntilEnd(b, s) }

// ServeHTTP serves image i under the name share-i.
func (s *sharing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for i := range s.manifests {
		tag := fmt.Sprintf("/v2/share-%d/manifests/v1", i)
		if d := digest.FromBytes(s.manifests[i]); r.URL.Path == tag || r.URL.Path == fmt.Sprintf("/v2/share-%d/manifests/%s", i, d) {
			one := image{manifest: s.manifests[i]}
			one.ServeHTTP(w, r)
			return
		}
	}
	s.image.ServeHTTP(&counter{w, &s.sent}, r)
}

// counter counts the bytes of bodies.
type counter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// pullShared pulls the five images at once and removes them.
func (p *pullPart) pullShared(ctx context.Context, s *sharing, addr string) error {
	sum := int64(0)
	for _, blob := range s.blobs {
		sum += int64(len(blob))
	}
	s.sent.Store(0)
	ref := func(i int) *cri.ImageSpec { return &cri.ImageSpec{Image: fmt.Sprintf("%s/share-%d:v1", addr, i)} }
	began := time.Now()
	err := parallel(ctx, sharingImages, sharingImages, func(ctx context.Context, i int) error {
		_, err := p.images.PullImage(ctx, &cri.PullImageRequest{Image: ref(i)})
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.shared, p.sent = time.Since(began), float64(s.sent.Load())/float64(sum)
	for i := range sharingImages {
		if _, err := p.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: ref(i)}); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// measureEntries pulls layers of many empty files, for what each entry costs in memory.
func (b *bench) measureEntries(ctx context.Context, p *pullPart) error {
	var peaks []int64
	counts := []int{100_000, 400_000}
	for _, n := range counts {
		m, err := entriesImage(n)
		if err != nil {
			return err
		}
		ref, err := m.serve(b)
		if err != nil {
			return err
		}
		if err := wait(ctx, settle); err != nil {
			return err
		}
		p.peak = 0
		if _, err := p.pullAndRemove(ctx, ref); err != nil {
			return err
		}
		peaks = append(peaks, p.peak)
		runtime.GC() // of this process, which has made large archives
	}
	each := (peaks[1] - peaks[0]) / int64(counts[1]-counts[0])
	fmt.Printf("\nMemory of criserver above what it had before its first pull, while it pulls one layer of %d empty files: %s MiB, of %d: %s MiB; %d bytes for each entry more.\n",
		counts[0], mebibytes(peaks[0]), counts[1], mebibytes(peaks[1]), each)
	b.ratio(fmt.Sprintf("memory of a pull of one layer of %d entries above idle", counts[0]), mebibytes(peaks[0])+" MiB", "target 64 MiB", float64(peaks[0])/pullMemory, 1)
	return nil
}

func entriesImage(n int) (*image, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := range n {
		if err := addFile(w, fmt.Sprintf("usr/share/directory-%04d/file-with-a-name-%07d", i/100, i), nil); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return newImage(ocispec.ImageConfig{}, out.Bytes())
}
