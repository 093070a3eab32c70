package archive

import (
	"encoding/json"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// loadLayout reads an OCI layout. Its version file is not insisted on: some tools leave it out.
func (a *Archive) loadLayout() error {
	data, err := read(a.files, ocispec.ImageIndexFile, maxDocument)
	if err != nil {
		return err
	}
	var index struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return invalidf("index.json: %w", err)
	}
	if len(index.Manifests) > maxImages {
		return invalidf("index.json: %d manifests, more than %d", len(index.Manifests), maxImages)
	}
	for i, desc := range index.Manifests {
		if err := desc.Digest.Validate(); err != nil {
			return invalidf("index.json: manifest %d: digest %q: %w", i, desc.Digest, err)
		}
		if desc.Size < 0 {
			return invalidf("index.json: manifest %d: size is %d", i, desc.Size)
		}
		a.addImage(desc)
	}
	return nil
}

// addImage adds a manifest to those that are known: several entries of an index are several names of it.
func (a *Archive) addImage(desc ocispec.Descriptor) {
	name, ref := desc.Annotations[AnnotationName], desc.Annotations[ocispec.AnnotationRefName]
	tag := ""
	if name == "" && strings.ContainsAny(ref, "/:") {
		name = ref
	} else if name == "" {
		tag = ref
	}
	at := slices.IndexFunc(a.images, func(i Image) bool { return i.Desc.Digest == desc.Digest })
	if at < 0 {
		at = len(a.images)
		a.images = append(a.images, Image{Desc: desc})
	}
	img := &a.images[at]
	if name != "" && !slices.Contains(img.Names, name) && len(img.Names) < maxNames {
		img.Names = append(img.Names, name)
	}
	if img.Tag == "" {
		img.Tag = tag
	}
}
