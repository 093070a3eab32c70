package imageservice

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/registry"
)

// exported is what n writes of ref.
func (n *node) exported(t testing.TB, ref string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := n.Export(t.Context(), []string{ref}, &b, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The digest of an index survives an export, by the index itself; what an archive claims without showing it is refused.
func TestExportKeepsTheDigestOfAnIndex(t *testing.T) {
	ours, _ := twoLayers(t, "ours", registry.Spec{})
	foreign, _ := twoLayers(t, "foreign", registry.Spec{Config: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}})
	data, mediaType := registry.Index(t, false, foreign, ours)
	top := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	from := tarOf(t, append(layout(t, []ocispec.Descriptor{named(top, "example.com/app:1", "")}, foreign, ours), member{blobPath(top.Digest), data})...)
	want := []string{"example.com/app@" + top.Digest.String()}
	var archives [][]byte
	for range 3 {
		n := newNode(t)
		if list, err := n.imported(t, from, ImportRequest{}); err != nil || list[0].ID != ours.ID.String() || !slices.Equal(list[0].RepoDigests, want) {
			t.Fatalf("%+v, %v", list, err)
		}
		if got, err := n.Find(want[0]); err != nil || !slices.Equal(got.RepoDigests, want) {
			t.Errorf("by the digest of the index it is %+v", got)
		}
		from = n.exported(t, "example.com/app:1")
		archives = append(archives, from)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the second export has other bytes than the first")
	}
	claim := annotationDigests + `":"example.com/app@`
	for name, other := range map[string]string{"of another image": foreign.Desc.Digest.String(), "of nothing": digest.FromString("nothing").String()} {
		spoilt := bytes.Replace(from, []byte(claim+top.Digest.String()), []byte(claim+other), 1)
		n := newNode(t)
		if _, err := n.imported(t, spoilt, ImportRequest{}); bytes.Equal(spoilt, from) || !errors.Is(err, ErrInvalidImage) || !strings.Contains(err.Error(), "example.com/app@"+other+" is not a digest of the image") {
			t.Errorf("a digest %s: %v", name, err)
		}
		n.mustBeEmpty(t)
	}
}

// What an archive claims, over and over, is not read over and over.
func TestClaimsAreReadOnce(t *testing.T) {
	img, _ := twoLayers(t, "claimed", registry.Spec{})
	large := &registry.Image{} // no index
	large.SetManifest(encoded(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{}, Annotations: map[string]string{"n": strings.Repeat("n", 256<<10)}}), ocispec.MediaTypeImageManifest)
	within := large.Desc
	within.MediaType = ocispec.MediaTypeImageIndex
	index := &registry.Image{}
	index.SetManifest(encoded(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: slices.Repeat([]ocispec.Descriptor{within}, 100)}), ocispec.MediaTypeImageIndex)
	for name, claimed := range map[string]digest.Digest{"no index": large.Desc.Digest, "an index of what is none": index.Desc.Digest, "nothing": digest.FromString("nothing"), "itself": img.Desc.Digest} {
		t.Run(name, func(t *testing.T) {
			entry := named(img.Desc, "example.com/app:1", "")
			var claims []string
			for i := range maxClaims + 1 {
				claims = append(claims, fmt.Sprintf("example.com/app%d@%s", i, claimed))
			}
			entry.Annotations[annotationDigests] = strings.Join(claims, ",")
			data := tarOf(t, layout(t, []ocispec.Descriptor{entry}, img, large, index)...)
			n := newNode(t)
			before := bytesRead(t)
			if list, err := n.imported(t, data, ImportRequest{}); !errors.Is(err, ErrInvalidImage) {
				t.Errorf("%+v, %v", list, err)
			}
			if got := bytesRead(t) - before; got > 3*len(data) {
				t.Errorf("%d bytes were read of an archive of %d", got, len(data))
			}
			n.mustBeEmpty(t)
		})
	}
}

// An artifact goes out and comes back under its digest, with its config, which is not shown; what cannot come back says why.
func TestExportOfArtifacts(t *testing.T) {
	big := strings.Repeat("weights ", 100000)
	long := strings.Repeat("long/", 60) + "name" // needs a second header
	img := registry.Artifact(t, weights, "application/vnd.example.config+json", registry.Named("model.bin", big), registry.Named("sub/dir/empty", ""), registry.Named(long, "long"),
		registry.Part{MediaType: "application/vnd.example.data.tar", Data: registry.Tar(t, registry.File{Header: tar.Header{Name: "data/set"}, Body: "points"})},
		registry.Part{MediaType: ocispec.MediaTypeEmptyJSON, Data: []byte("{}")})
	var m ocispec.Manifest
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	config := []byte(`{"architecture":"transformer"}`)
	m.Config.Digest, m.Config.Size, img.Blobs[digest.FromBytes(config)] = digest.FromBytes(config), int64(len(config)), config
	img.SetManifest(encoded(t, m), m.MediaType)

	l := newLiar(t, img)
	n := newNode(t, impatient)
	ref := l.Listener.Addr().String() + "/models/llm:v1"
	id := n.pull(t, ref)
	before, _ := n.Find(id)
	first := n.exported(t, ref)
	other := newNode(t)
	p := &Progress{}
	list, err := other.imported(t, first, ImportRequest{Progress: p})
	if err != nil || len(list) != 1 || list[0].ID != id || list[0].ArtifactType != weights || list[0].Present {
		t.Fatalf("%+v, %v", list, err)
	}
	if now := p.Now(); now.Done != now.Total || now.Total < int64(len(big)) {
		t.Errorf("progress is %+v", now)
	}
	after, _ := other.Find(ref)
	if !slices.Equal(after.RepoTags, before.RepoTags) || !slices.Equal(after.RepoDigests, before.RepoDigests) || !slices.Equal(after.DiffIDs, before.DiffIDs) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if !bytes.Equal(other.exported(t, ref), first) {
		t.Error("the second export has other bytes than the first")
	}
	if list, err := other.imported(t, first, ImportRequest{}); err != nil || !list[0].Present {
		t.Errorf("again: %+v, %v", list, err)
	}
	root := volume(t, other, id, "c1-0")
	for name, text := range map[string]string{"model.bin": big, long: "long", "data/set": "points"} {
		if got, err := read(t, root, name); got != text || err != nil {
			t.Errorf("%s has %d bytes instead of %d: %v", name, len(got), len(text), err)
		}
	}
	if err := errors.Join(root.Close(), other.ReleaseRootfs(t.Context(), "c1-0"), other.Remove(t.Context(), ref)); err != nil {
		t.Error(err)
	}
	other.mustBeEmpty(t)

	spoilt := bytes.Replace(first, []byte("weights weights"), []byte("Weights weights"), 1)
	if _, err := other.imported(t, spoilt, ImportRequest{}); !errors.Is(err, ErrInvalidImage) || !strings.Contains(err.Error(), `file "model.bin", 1 of 4: `) || !strings.Contains(err.Error(), "digest is ") {
		t.Errorf("spoilt: %v", err)
	}
	other.mustBeEmpty(t)

	l.img = model(t)
	var b bytes.Buffer
	err = n.Export(t.Context(), []string{n.pull(t, l.Listener.Addr().String()+"/models/llm:v2")}, &b, nil)
	if err == nil || !strings.Contains(err.Error(), "layer 4 of 8: archive "+l.img.Layers[3].Digest.String()+" was compressed") || b.Len() > 0 {
		t.Errorf("compressed: %v, %d bytes", err, b.Len())
	}
	l.img = registry.Artifact(t, weights, "", registry.Named("a", "a"), registry.Part{MediaType: "application/vnd.example.nameless", Data: []byte("not shown")})
	err = n.Export(t.Context(), []string{n.pull(t, l.Listener.Addr().String()+"/models/llm:v3")}, &b, nil)
	if err == nil || !strings.Contains(err.Error(), `of type "application/vnd.example.nameless" is not kept: no volume shows it`) || b.Len() > 0 {
		t.Errorf("not shown: %v, %d bytes", err, b.Len())
	}
}
