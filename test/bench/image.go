package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is an OCI image in memory.
type image struct {
	manifest []byte
	blobs    map[digest.Digest][]byte
	layers   []ocispec.Descriptor
	plain    int64  // bytes of all layers, inflated
	archive  []byte // of the first layer
}

// newImage makes an image of gzip layers from archives.
func newImage(config ocispec.ImageConfig, archives ...[]byte) (*image, error) {
	m := &image{blobs: map[digest.Digest][]byte{}, archive: archives[0]}
	c := ocispec.Image{Platform: ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}, Config: config, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, a := range archives {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		if _, err := w.Write(a); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(a))
		m.layers = append(m.layers, m.add(ocispec.MediaTypeImageLayerGzip, packed.Bytes()))
		m.plain += int64(len(a))
	}
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	m.manifest, err = json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: m.add(ocispec.MediaTypeImageConfig, data), Layers: m.layers})
	return m, err
}

func (m *image) add(mediaType string, blob []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	m.blobs[d.Digest] = blob
	return d
}

// ServeHTTP is a registry that has only this image, under every name and tag.
func (m *image) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, last, _ := strings.Cut(r.URL.Path, "/blobs/")
	switch blob, ok := m.blobs[digest.Digest(last)]; {
	case ok:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.manifest).String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(m.manifest))
	case r.URL.Path == "/v2/":
	default:
		http.NotFound(w, r)
	}
}

// serve makes the image available on loopback until the part ends, and returns its reference.
func (m *image) serve(b *bench) (string, error) {
	addr, err := serveUntilEnd(b, m)
	return addr + "/bench:v1", err
}

// serveUntilEnd serves on loopback until the part ends.
func serveUntilEnd(b *bench, h http.Handler) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }() // ends with Close
	b.later(server.Close)
	return l.Addr().String(), nil
}

// layout writes the image as an archive that `ctr images import` takes, under a name.
func (m *image) layout(path, name string) error {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for d, blob := range m.blobs {
		files["blobs/sha256/"+d.Encoded()] = blob
	}
	d := digest.FromBytes(m.manifest)
	files["blobs/sha256/"+d.Encoded()] = m.manifest
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(m.manifest)), Annotations: map[string]string{
			"io.containerd.image.name": name, ocispec.AnnotationRefName: name}}}})
	if err != nil {
		return err
	}
	files["index.json"] = index
	for name, data := range files {
		if err := addFile(w, name, data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o600)
}

func addFile(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), ModTime: time.Unix(1.7e9, 0)}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// appendFile adds a file to an archive, which may be empty.
func appendFile(archive []byte, name string, data []byte) ([]byte, error) {
	const end = 1024 // zeros, which the new file takes the place of
	out := bytes.NewBuffer(archive[:max(len(archive)-end, 0)])
	w := tar.NewWriter(out)
	if err := addFile(w, name, data); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}

// busyboxImage is one layer with busybox and the applets, and sleeps for ever unless told otherwise.
func busyboxImage() (*image, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/", "root/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1.7e9, 0)}); err != nil {
			return nil, err
		}
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w; Debian's package busybox-static has it", err)
	}
	if err := addFile(w, "bin/busybox", data); err != nil {
		return nil, err
	}
	for _, a := range applets {
		if err := w.WriteHeader(&tar.Header{Name: filepath.Join("bin", a), Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	if err := addFile(w, "etc/passwd", []byte("root:x:0:0::/root:/bin/sh\n")); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return newImage(ocispec.ImageConfig{Cmd: []string{"sleep", "1000000"}, Env: []string{"PATH=/bin"}}, out.Bytes())
}

// manyFiles makes an archive like a part of a distribution's root: half of the files below 3 KiB, a few of megabytes,
// contents that compress to about 40 %. seed makes archives differ.
func manyFiles(files int, seed uint64) ([]byte, error) {
	r := rand.New(rand.NewPCG(seed, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+r.IntN(12))
		for j := range words[i] {
			words[i][j] = byte(r.Uint32())
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := range files {
		size := 100 << r.IntN(11)
		if r.IntN(300) == 0 {
			size *= 20
		}
		content := make([]byte, 0, size+16)
		for len(content) < size {
			content = append(content, words[min(r.IntN(4096), r.IntN(4096))]...)
		}
		name := fmt.Sprintf("usr/share/l%d/d%02d/e%d/file-%d.txt", seed, i%97, i%13, i)
		if err := addFile(w, name, content[:size]); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}
