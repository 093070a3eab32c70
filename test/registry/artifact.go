package registry

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Part is a layer of an artifact.
type Part struct {
	MediaType   string
	Annotations map[string]string
	Data        []byte
}

// Named is a part that is a file.
func Named(name, data string) Part {
	return Part{MediaType: "application/octet-stream", Annotations: map[string]string{ocispec.AnnotationTitle: name}, Data: []byte(data)}
}

// Artifact makes an OCI artifact with an empty config, or one of configType. Its ID is that of the manifest.
func Artifact(t testing.TB, artifactType, configType string, parts ...Part) *Image {
	t.Helper()
	img := &Image{Blobs: map[digest.Digest][]byte{}, Config: []byte("{}")}
	if configType == "" {
		configType = ocispec.MediaTypeEmptyJSON
	}
	config := img.add(configType, img.Config)
	for _, p := range parts {
		desc := img.add(p.MediaType, p.Data)
		desc.Annotations = p.Annotations
		img.Layers = append(img.Layers, desc)
	}
	img.SetManifest(encode(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType, Config: config, Layers: img.Layers}), ocispec.MediaTypeImageManifest)
	img.ID = img.Desc.Digest
	return img
}
