package reset

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/test/registry"
)

// address is of the registry, the same at each boot, since it is in the names of images.
const address = "127.0.0.1:5000"

// image is one that the registry has. own is the length of its layers that no other image has.
type image struct {
	*registry.Image
	ref string
	own int64
}

// images are those of the registry, which share a layer. kept and other are there when cut is pulled or removed.
type images struct {
	kept, other, cut *image
	left             atomic.Int64 // bytes of the layers of cut until a reset; 0: none comes
}

// serveImages starts a registry that ends with the test. It has the same images each time.
func serveImages(t *testing.T) *images {
	t.Helper()
	base := registry.Layer{Files: baseFiles(t)}
	build := func(name string, layers ...registry.Layer) *image {
		img := &image{ref: address + "/" + name + ":v1", Image: registry.Build(t, registry.Spec{Layers: append([]registry.Layer{base}, layers...)})}
		for _, l := range img.Layers[1:] {
			img.own += l.Size
		}
		return img
	}
	reg := &images{
		kept:  build("kept", layerOf("kept", 1, "")),
		other: build("other", layerOf("other", 2, "")),
		cut: build("cut", layerOf("first", 3, "gzip"), layerOf("second", 4, "zstd",
			registry.File{Header: tar.Header{Name: "data/first/.wh.small-3"}})),
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: reg}
	go func() { _ = server.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = server.Close() })
	return reg
}

// baseFiles are what a container needs to look at its files.
func baseFiles(t *testing.T) []registry.File {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files := []registry.File{{Header: tar.Header{Name: "bin/"}}, {Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: string(busybox)}}
	for _, name := range []string{"sh", "find", "sort", "xargs", "stat", "sha256sum", "dd", "sleep"} {
		files = append(files, registry.File{Header: tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}})
	}
	return files
}

// layerOf has a file of 512 KiB that does not compress, small ones, links and what more is asked for.
func layerOf(name string, seed uint64, compression string, more ...registry.File) registry.Layer {
	rng := rand.New(rand.NewPCG(seed, seed))
	noise := func(size int) string {
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(rng.Uint32())
		}
		return string(body)
	}
	dir := "data/" + name + "/"
	files := []registry.File{{Header: tar.Header{Name: "data/"}}, {Header: tar.Header{Name: dir, Mode: 0o750, Uid: 7}},
		{Header: tar.Header{Name: dir + "large"}, Body: noise(512 << 10)}}
	for i := range 30 {
		files = append(files, registry.File{Header: tar.Header{Name: fmt.Sprintf("%ssmall-%d", dir, i), Mode: 0o4711, Gid: i}, Body: noise(i * 200)})
	}
	files = append(files, registry.File{Header: tar.Header{Name: dir + "hard", Typeflag: tar.TypeLink, Linkname: dir + "small-7"}},
		registry.File{Header: tar.Header{Name: dir + "soft", Typeflag: tar.TypeSymlink, Linkname: "small-8"}})
	return registry.Layer{Compression: compression, Files: append(files, more...)}
}

// resetAt has the machine reset when so many bytes of the layers of the image that is cut have been sent.
func (reg *images) resetAt(bytes int64) { reg.left.Store(bytes) }

// ServeHTTP serves manifests and blobs by their digests, and each image by any tag.
func (reg *images) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // v2, name, manifests or blobs, reference
	if len(path) != 4 {
		w.WriteHeader(http.StatusOK)
		return
	}
	img := map[string]*image{"kept": reg.kept, "other": reg.other, "cut": reg.cut}[path[1]]
	if img == nil {
		http.NotFound(w, r)
		return
	}
	if path[2] == "manifests" {
		w.Header().Set("Content-Type", img.Desc.MediaType)
		w.Header().Set("Docker-Content-Digest", string(img.Desc.Digest))
		w.Header().Set("Content-Length", fmt.Sprint(len(img.Manifest)))
		_, _ = w.Write(img.Manifest) // a client that is gone wants none
		return
	}
	reg.send(w, img.Blobs[digest.Digest(path[3])])
}

// send sends a blob in pieces, so that a reset comes between two.
func (reg *images) send(w http.ResponseWriter, blob []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
	const config, piece = 16 << 10, 4 << 10
	counted := len(blob) > config // a layer
	for len(blob) > 0 {
		n, err := w.Write(blob[:min(piece, len(blob))])
		if err != nil {
			return
		}
		blob = blob[n:]
		w.(http.Flusher).Flush()
		if left := reg.left.Load(); counted && left > 0 && reg.left.Add(-int64(n)) <= 0 {
			resetMachine()
		}
	}
}
