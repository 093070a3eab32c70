package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of Docker's schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// File is one entry of a layer. Size and time are filled in; a mode of 0 becomes 0644, or 0755 for directories.
type File struct {
	tar.Header
	Body string
}

// Layer is one layer of an image to be built.
type Layer struct {
	Files       []File
	Tar         []byte // instead of Files
	Compression string // "gzip", "zstd" or "" for none
}

// Spec says what image to build. Platform is this machine's unless Config names one.
type Spec struct {
	Config ocispec.Image // rootfs and history are filled in
	Layers []Layer
	Docker bool // schema 2 instead of OCI; layers must be gzip
}

// Image is a built image. Its fields may be spoiled before it is pushed.
type Image struct {
	ID       digest.Digest // of Config
	Config   []byte
	Manifest []byte
	Desc     ocispec.Descriptor // of Manifest, with platform
	Layers   []ocispec.Descriptor
	Blobs    map[digest.Digest][]byte // layers and config
}

// Tar makes an archive of files.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(h.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		h.Size = int64(len(f.Body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.Body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Compress packs data: "gzip", "zstd" or "" for none.
func Compress(t testing.TB, compression string, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	switch compression {
	case "gzip":
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	case "zstd":
		w, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	default:
		return data
	}
	return buf.Bytes()
}

// Build makes an image.
func Build(t testing.TB, s Spec) *Image {
	t.Helper()
	img := &Image{Blobs: map[digest.Digest][]byte{}}
	config := s.Config
	if config.OS == "" {
		config.OS, config.Architecture = "linux", runtime.GOARCH
	}
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for _, l := range s.Layers {
		plain := l.Tar
		if plain == nil {
			plain = Tar(t, l.Files...)
		}
		blob := Compress(t, l.Compression, plain)
		mediaType := ocispec.MediaTypeImageLayer
		if l.Compression != "" {
			mediaType += "+" + l.Compression
		}
		if s.Docker {
			mediaType = dockerLayer
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		img.Layers = append(img.Layers, img.add(mediaType, blob))
	}
	img.Config = encode(t, config)
	configType, manifestType := ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageManifest
	if s.Docker {
		configType, manifestType = dockerConfig, dockerManifest
	}
	configDesc := img.add(configType, img.Config)
	img.ID = configDesc.Digest
	layers := img.Layers
	if layers == nil {
		layers = []ocispec.Descriptor{}
	}
	img.SetManifest(encode(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType, Config: configDesc, Layers: layers,
	}), manifestType)
	img.Desc.Platform = &config.Platform
	return img
}

// SetManifest replaces the manifest.
func (img *Image) SetManifest(data []byte, mediaType string) {
	img.Manifest = data
	img.Desc.MediaType, img.Desc.Digest, img.Desc.Size = mediaType, digest.FromBytes(data), int64(len(data))
}

func (img *Image) add(mediaType string, blob []byte) ocispec.Descriptor {
	d := digest.FromBytes(blob)
	img.Blobs[d] = blob
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))}
}

// Index makes an OCI index of images, or Docker's manifest list.
func Index(t testing.TB, docker bool, images ...*Image) (data []byte, mediaType string) {
	t.Helper()
	mediaType = ocispec.MediaTypeImageIndex
	if docker {
		mediaType = dockerList
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType}
	for _, img := range images {
		index.Manifests = append(index.Manifests, img.Desc)
	}
	return encode(t, index), mediaType
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// PushImage uploads an image under a tag, or only under its digest if tag is empty.
func (r *Registry) PushImage(t testing.TB, repo, tag string, img *Image) {
	t.Helper()
	for d, blob := range img.Blobs {
		r.pushBlob(t, repo, d, blob)
	}
	if tag == "" {
		tag = img.Desc.Digest.String()
	}
	r.PushManifest(t, repo, tag, img.Manifest, img.Desc.MediaType)
}

// PushIndex uploads images and an index of them under a tag, and returns the digest of the index.
func (r *Registry) PushIndex(t testing.TB, repo, tag string, docker bool, images ...*Image) digest.Digest {
	t.Helper()
	for _, img := range images {
		r.PushImage(t, repo, "", img)
	}
	data, mediaType := Index(t, docker, images...)
	r.PushManifest(t, repo, tag, data, mediaType)
	return digest.FromBytes(data)
}

// PushManifest uploads a manifest or index whose parts are there already.
func (r *Registry) PushManifest(t testing.TB, repo, tag string, data []byte, mediaType string) {
	t.Helper()
	r.do(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, repo, http.Header{"Content-Type": {mediaType}}, data, http.StatusCreated)
}

func (r *Registry) pushBlob(t testing.TB, repo string, d digest.Digest, blob []byte) {
	t.Helper()
	begun := r.do(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", repo, http.Header{}, nil, http.StatusAccepted)
	location, err := url.Parse(begun.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	query := location.Query()
	query.Set("digest", d.String())
	location.RawQuery = query.Encode()
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	r.do(t, http.MethodPut, location.String(), repo, header, blob, http.StatusCreated)
}
