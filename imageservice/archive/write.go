package archive

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Export is an image to be written.
type Export struct {
	Names    []string           // normalised
	Desc     ocispec.Descriptor // of Manifest, with the platform
	Manifest []byte
	Config   []byte
	More     [][]byte // other small blobs
	Layers   []Layer  // bottom first
	Artifact bool     // Docker's archive has no place for it
}

// Layer is a plain layer to be written, or a layer of an artifact.
type Layer struct {
	DiffID digest.Digest           // of an artifact's layer, its digest
	Size   int64                   // of the tar
	Write  func(w io.Writer) error // writes exactly Size bytes
}

// Write writes images as one archive.
func Write(w io.Writer, images []Export) error {
	out := &writer{tar: tar.NewWriter(w), written: map[string]bool{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	docker := []dockerImage{}
	for _, img := range images {
		index.Manifests = append(index.Manifests, entries(img)...)
		if !img.Artifact {
			docker = append(docker, dockerEntry(img))
		}
	}
	out.document(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	out.document(ocispec.ImageIndexFile, index)
	if len(docker) > 0 {
		out.document(dockerFile, docker)
	}
	for _, img := range images {
		out.bytes(blobName(img.Desc.Digest), img.Manifest)
		for _, data := range append([][]byte{img.Config}, img.More...) {
			out.bytes(blobName(digest.FromBytes(data)), data)
		}
	}
	for _, img := range images {
		for _, l := range img.Layers {
			out.file(blobName(l.DiffID), l.Size, l.Write)
		}
	}
	if out.err != nil {
		return fmt.Errorf("write archive: %w", out.err)
	}
	if err := out.tar.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

// entries are those of an image in the index: one for each name.
func entries(img Export) []ocispec.Descriptor {
	if len(img.Names) == 0 {
		return []ocispec.Descriptor{img.Desc}
	}
	var list []ocispec.Descriptor
	for _, name := range img.Names {
		desc := img.Desc
		desc.Annotations = maps.Clone(img.Desc.Annotations)
		if desc.Annotations == nil {
			desc.Annotations = map[string]string{}
		}
		desc.Annotations[AnnotationName], desc.Annotations[ocispec.AnnotationRefName] = name, name
		list = append(list, desc)
	}
	return list
}

func dockerEntry(img Export) dockerImage {
	d := dockerImage{Config: blobName(digest.FromBytes(img.Config)), RepoTags: slices.Clone(img.Names), Layers: []string{}}
	for _, l := range img.Layers {
		d.Layers = append(d.Layers, blobName(l.DiffID))
	}
	return d
}

func blobName(d digest.Digest) string {
	return path.Join(blobsDir, d.Algorithm().String(), d.Encoded())
}

// writer writes files until the first error.
type writer struct {
	tar     *tar.Writer
	written map[string]bool
	err     error
}

func (w *writer) document(name string, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		w.err = err
		return
	}
	w.bytes(name, data)
}

func (w *writer) bytes(name string, data []byte) {
	w.file(name, int64(len(data)), func(out io.Writer) error {
		_, err := out.Write(data)
		return err
	})
}

// file writes a file once.
func (w *writer) file(name string, size int64, write func(io.Writer) error) {
	if w.err != nil || w.written[name] {
		return
	}
	w.written[name] = true
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if size > maxUSTAR {
		h.Format = tar.FormatPAX
	}
	if w.err = w.tar.WriteHeader(h); w.err != nil {
		return
	}
	if err := write(w.tar); err != nil {
		w.err = fmt.Errorf("%s: %w", name, err)
	}
}

const maxUSTAR = 1<<33 - 1 // bytes of a file
