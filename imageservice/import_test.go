package imageservice

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/test/registry"
)

// member is a file of an archive that a test makes.
type member struct {
	name string
	data []byte
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(m.data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func blobPath(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

// layout makes the files of an OCI layout that has manifests and all blobs of images.
func layout(t testing.TB, manifests []ocispec.Descriptor, images ...*registry.Image) []member {
	t.Helper()
	members := []member{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", encoded(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: manifests})},
	}
	for _, img := range images {
		members = append(members, member{blobPath(img.Desc.Digest), img.Manifest})
		for d, data := range img.Blobs {
			members = append(members, member{blobPath(d), data})
		}
	}
	return members
}

func named(desc ocispec.Descriptor, name, ref string) ocispec.Descriptor {
	desc.Annotations = map[string]string{}
	if name != "" {
		desc.Annotations[archive.AnnotationName] = name
	}
	if ref != "" {
		desc.Annotations[ocispec.AnnotationRefName] = ref
	}
	return desc
}

// docker makes the files of Docker's older archive: layers in directories, plain.
func docker(t testing.TB, img *registry.Image, plain [][]byte, tags ...string) []member {
	t.Helper()
	entry := map[string]any{"Config": img.ID.Encoded() + ".json", "RepoTags": tags}
	var layers []string
	members := []member{}
	for _, l := range plain {
		name := digest.FromBytes(l).Encoded() + "/layer.tar"
		layers = append(layers, name)
		members = append(members, member{name, l})
	}
	entry["Layers"] = layers
	return append(members, member{img.ID.Encoded() + ".json", img.Config}, member{"manifest.json", encoded(t, []any{entry})})
}

// imported imports what lies in data.
func (n *node) imported(t testing.TB, data []byte, r ImportRequest) ([]Imported, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return n.importedFrom(t, path, r)
}

func (n *node) importedFrom(t testing.TB, path string, r ImportRequest) ([]Imported, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := archive.Open(t.Context(), f, archive.Spool(t.TempDir()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Close() }()
	return n.Import(t.Context(), a, r)
}

func packed(t testing.TB, data []byte) []byte { return registry.Compress(t, "gzip", data) }

// twoLayers is an image whose plain layers are known.
func twoLayers(t testing.TB, text string, spec registry.Spec) (img *registry.Image, plain [][]byte) {
	t.Helper()
	plain = [][]byte{
		registry.Tar(t, registry.File{Header: tar.Header{Name: "etc/"}}, registry.File{Header: tar.Header{Name: "etc/text"}, Body: text}),
		registry.Tar(t, registry.File{Header: tar.Header{Name: "large"}, Body: strings.Repeat(text, 5000)}),
	}
	for i, l := range plain {
		spec.Layers = append(spec.Layers, registry.Layer{Tar: l, Compression: []string{"gzip", ""}[i%2]})
	}
	return registry.Build(t, spec), plain
}

func TestImportForms(t *testing.T) {
	img, plain := twoLayers(t, "forms", registry.Spec{})
	oci := layout(t, []ocispec.Descriptor{named(img.Desc, "docker.io/library/app:1", "1"), named(img.Desc, "", "quay.io/x/app:2")}, img)
	both := append(layout(t, []ocispec.Descriptor{img.Desc}, img), member{"manifest.json", encoded(t, []any{map[string]any{
		"Config": blobPath(img.ID), "RepoTags": []string{"app:1", "quay.io/x/app:2"}, "Layers": []string{}}})})
	old := docker(t, img, plain, "app:1", "quay.io/x/app:2")
	compressed := docker(t, img, [][]byte{packed(t, plain[0]), registry.Compress(t, "zstd", plain[1])}, "app:1", "quay.io/x/app:2")
	names := []string{"docker.io/library/app:1", "quay.io/x/app:2"}
	digests := []string{"docker.io/library/app@" + img.Desc.Digest.String(), "quay.io/x/app@" + img.Desc.Digest.String()}
	dir := t.TempDir()
	for _, m := range oci {
		path := filepath.Join(dir, m.name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, m.data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, row := range map[string]struct {
		data    []byte
		digests []string
	}{
		"OCI archive":                      {tarOf(t, oci...), digests},
		"OCI archive, gzip":                {packed(t, tarOf(t, oci...)), digests},
		"OCI archive, zstd":                {registry.Compress(t, "zstd", tarOf(t, oci...)), digests},
		"OCI layout":                       {nil, digests},
		"Docker's archive of version 25":   {tarOf(t, both...), digests},
		"Docker's archive":                 {tarOf(t, old...), nil},
		"Docker's archive, gzip":           {packed(t, tarOf(t, old...)), nil},
		"Docker's archive, layers are too": {tarOf(t, compressed...), nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			path := dir
			if row.data != nil {
				path = filepath.Join(t.TempDir(), "archive")
				if err := os.WriteFile(path, row.data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, present := range []bool{false, true} {
				p := &Progress{}
				list, err := n.importedFrom(t, path, ImportRequest{Progress: p})
				if err != nil || len(list) != 1 || list[0].ID != img.ID.String() || list[0].Present != present || !slices.Equal(list[0].Names, names) {
					t.Fatalf("%+v, %v", list, err)
				}
				if now := p.Now(); now.Done != now.Total || (now.Total == 0) != present {
					t.Errorf("%d of %d bytes are said to be done", now.Done, now.Total)
				}
			}
			got, err := n.Find("app:1")
			if err != nil || !slices.Equal(got.RepoTags, names) || !slices.Equal(got.RepoDigests, row.digests) || !bytes.Equal(got.Config, img.Config) {
				t.Errorf("%+v", got)
			}
			if err := n.Remove(t.Context(), "app:1"); err != nil {
				t.Error(err)
			}
			n.mustBeEmpty(t)
		})
	}
}

// A pipe is read as it comes, whatever is in front in the archive.
func TestImportFromPipe(t *testing.T) {
	img, plain := twoLayers(t, "pipe", registry.Spec{})
	n := newNode(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = w.Write(packed(t, tarOf(t, docker(t, img, plain, "app:1")...)))
		_ = w.Close()
	}()
	a, err := archive.Open(t.Context(), r, archive.Spool(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	if list, err := n.Import(t.Context(), a, ImportRequest{}); err != nil || list[0].ID != img.ID.String() {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestImportNamesAndPlatforms(t *testing.T) {
	n := newNode(t)
	ours, _ := twoLayers(t, "ours", registry.Spec{})
	foreign, _ := twoLayers(t, "foreign", registry.Spec{Config: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}})
	data, mediaType := registry.Index(t, false, foreign, ours)
	top := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	multi := tarOf(t, append(layout(t, []ocispec.Descriptor{named(top, "", "latest")}, foreign, ours), member{blobPath(top.Digest), data})...)

	list, err := n.imported(t, multi, ImportRequest{})
	if err != nil || len(list) != 1 || list[0].ID != ours.ID.String() || len(list[0].Names) != 0 {
		t.Errorf("without a name: %+v, %v", list, err)
	}
	list, err = n.imported(t, multi, ImportRequest{Names: []string{"example.com/app"}})
	want := []string{"example.com/app@" + top.Digest.String()}
	if err != nil || !slices.Equal(list[0].Names, []string{"example.com/app:latest"}) || !slices.Equal(list[0].RepoDigests, want) {
		t.Errorf("named: %+v, %v", list, err)
	}
	list, err = n.imported(t, multi, ImportRequest{Platform: "linux/s390x"})
	if err != nil || len(list) != 1 || list[0].ID != foreign.ID.String() {
		t.Errorf("foreign platform: %+v, %v", list, err)
	}
	list, err = n.imported(t, multi, ImportRequest{AllPlatforms: true, Names: []string{"all:1"}})
	if err != nil || len(list) != 2 || list[0].ID != ours.ID.String() || !slices.Equal(list[0].Names, []string{"docker.io/library/all:1"}) || len(list[1].Names) != 0 {
		t.Errorf("all platforms: %+v, %v", list, err)
	}
	some := tarOf(t, append(layout(t, []ocispec.Descriptor{named(top, "", "")}, foreign), member{blobPath(top.Digest), data})...)
	if list, err = n.imported(t, some, ImportRequest{AllPlatforms: true, Names: []string{"some:1"}}); err != nil || len(list) != 1 || list[0].ID != foreign.ID.String() || len(list[0].Names) != 1 {
		t.Errorf("all platforms of those that are there: %+v, %v", list, err)
	}
	if _, err = n.imported(t, some, ImportRequest{}); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("the node's platform, which is not there: %v", err)
	}
	if _, err = n.imported(t, multi, ImportRequest{Platform: "linux/arm64"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("platform that is not there: %v", err)
	}
	two := tarOf(t, layout(t, []ocispec.Descriptor{ours.Desc, foreign.Desc}, ours, foreign)...)
	if _, err = n.imported(t, two, ImportRequest{Names: []string{"a:1"}}); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("one name for two images: %v", err)
	}
}

// Indexes that name the same ones over and over lead to 1000 million manifests, and to one.
func TestImportOfIndexesThatRepeatThemselves(t *testing.T) {
	img, _ := twoLayers(t, "repeated", registry.Spec{})
	members, desc := []member{}, img.Desc
	for range maxIndexDepth {
		data := encoded(t, ocispec.Index{Manifests: slices.Repeat([]ocispec.Descriptor{desc}, maxDescriptors)})
		desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(data), Size: int64(len(data))}
		members = append(members, member{blobPath(desc.Digest), data})
	}
	n := newNode(t)
	list, err := n.imported(t, tarOf(t, append(layout(t, []ocispec.Descriptor{named(desc, "app:1", "")}, img), members...)...), ImportRequest{AllPlatforms: true})
	if err != nil || len(list) != 1 || list[0].ID != img.ID.String() {
		t.Errorf("%+v, %v", list, err)
	}
}

// What is wrong in an archive is told, and nothing of it stays.
func TestImportRefuses(t *testing.T) {
	img, plain := twoLayers(t, "refused", registry.Spec{})
	good := func() []member { return layout(t, []ocispec.Descriptor{named(img.Desc, "app:1", "")}, img) }
	change := func(name string, f func([]byte) []byte) []member {
		members := good()
		for i := range members {
			if members[i].name == name {
				members[i].data = f(bytes.Clone(members[i].data))
			}
		}
		return members
	}
	drop := func(name string) []member {
		return slices.DeleteFunc(good(), func(m member) bool { return m.name == name })
	}
	spoil := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	layer := blobPath(img.Layers[0].Digest)
	bad := docker(t, img, plain, "app:1")
	for name, row := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":                {nil, "neither index.json"},
		"no tar":                 {bytes.Repeat([]byte("junk"), 1000), "read tar"},
		"cut short":              {tarOf(t, good()...)[:5000], ""},
		"gzip cut short":         {packed(t, tarOf(t, good()...))[:2000], "decompress"},
		"index.json twice":       {tarOf(t, append(good(), good()[1])...), `"index.json" is there more than once`},
		"index.json is no JSON":  {tarOf(t, change("index.json", func([]byte) []byte { return []byte("[") })...), "index.json"},
		"no images":              {tarOf(t, change("index.json", func([]byte) []byte { return []byte("{}") })...), "no image"},
		"bad digest":             {tarOf(t, change("index.json", func([]byte) []byte { return []byte(`{"manifests":[{"digest":"../../etc/passwd"}]}`) })...), "digest"},
		"manifest missing":       {tarOf(t, drop(blobPath(img.Desc.Digest))...), "is missing"},
		"manifest spoiled":       {tarOf(t, change(blobPath(img.Desc.Digest), spoil)...), "has the digest"},
		"config missing":         {tarOf(t, drop(blobPath(img.ID))...), "is missing"},
		"config spoiled":         {tarOf(t, change(blobPath(img.ID), spoil)...), "has the digest"},
		"layer missing":          {tarOf(t, drop(layer)...), "is missing"},
		"layer spoiled":          {tarOf(t, change(layer, spoil)...), "digest is"},
		"layer longer":           {tarOf(t, change(layer, func(b []byte) []byte { return append(b, 0) })...), "the manifest says"},
		"name out of it":         {tarOf(t, append(good(), member{"../../etc/cron.d/x", nil})...), "leads out of the archive"},
		"absolute name":          {tarOf(t, append(good(), member{"/etc/cron.d/x", nil})...), "leads out of the archive"},
		"bad image name":         {tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "app:not a tag", "")}, img)...), "invalid image reference"},
		"name of another digest": {tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "app@"+digest.FromString("x").String(), "")}, img)...), "the digest of the image is"},
		"Docker: layer missing":  {tarOf(t, bad[1:]...), "is missing"},
		"Docker: a layer more":   {tarOf(t, docker(t, img, append(plain, plain[0]), "app:1")...), "there are 3 layers"},
		"Docker: wrong layer":    {tarOf(t, docker(t, img, [][]byte{plain[1], plain[0]}, "app:1")...), "digest is"},
		"Docker: config outside": {tarOf(t, member{"manifest.json", []byte(`[{"Config":"../../../etc/passwd","Layers":[]}]`)}), "leads out of the archive"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			list, err := n.imported(t, row.data, ImportRequest{})
			if err == nil || !strings.Contains(err.Error(), row.want) || !errors.Is(err, ErrInvalidImage) && !errors.Is(err, archive.ErrInvalid) && !errors.Is(err, ErrInvalidReference) {
				t.Errorf("%+v, %v", list, err)
			}
			n.mustBeEmpty(t)
		})
	}
}

// An image that is exported, imported elsewhere and exported again has the same id, and the archive the same bytes.
func TestExportRoundTrip(t *testing.T) {
	img := hello(t, "round trip")
	oci := tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "example.com/app:1", ""), named(img.Desc, "example.com/app:2", "")}, img)...)
	var archives [][]byte
	from := oci
	for range 2 {
		n := newNode(t)
		if list, err := n.imported(t, from, ImportRequest{}); err != nil || list[0].ID != img.ID.String() {
			t.Fatalf("%+v, %v", list, err)
		}
		if got, _ := n.Find("example.com/app:2"); got == nil || !slices.Equal(got.RepoDigests, []string{"example.com/app@" + img.Desc.Digest.String()}) {
			t.Errorf("%+v", got)
		}
		var b bytes.Buffer
		p := &Progress{}
		if err := n.Export(t.Context(), []string{img.ID.String()}, &b, p); err != nil {
			t.Fatal(err)
		}
		if now := p.Now(); now.Done != now.Total || now.Total == 0 {
			t.Errorf("%d of %d bytes are said to be done", now.Done, now.Total)
		}
		from = b.Bytes()
		archives = append(archives, from)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the second export has other bytes than the first")
	}
	n := newNode(t)
	if _, err := n.imported(t, archives[0], ImportRequest{}); err != nil {
		t.Fatal(err)
	}
	var one bytes.Buffer
	if err := n.Export(t.Context(), []string{"example.com/app:1"}, &one, nil); err != nil {
		t.Fatal(err)
	}
	other := newNode(t)
	list, err := other.imported(t, one.Bytes(), ImportRequest{})
	if err != nil || !slices.Equal(list[0].Names, []string{"example.com/app:1"}) {
		t.Errorf("%+v, %v", list, err)
	}
	if err := n.Export(t.Context(), []string{"no/such"}, io.Discard, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("image that is not there: %v", err)
	}
}

// A layer that several images have is written and counted once.
func TestExportCountsSharedLayersOnce(t *testing.T) {
	base := registry.Layer{Files: []registry.File{{Header: tar.Header{Name: "base"}, Body: strings.Repeat("base", 3000)}}}
	n := newNode(t)
	var ids []string
	for _, name := range []string{"a", "b"} {
		img := registry.Build(t, registry.Spec{Layers: []registry.Layer{base, {Files: []registry.File{{Header: tar.Header{Name: name}, Body: name}}}}})
		if _, err := n.imported(t, tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, name+":1", "")}, img)...), ImportRequest{}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, img.ID.String())
	}
	p := &Progress{}
	if err := n.Export(t.Context(), ids, io.Discard, p); err != nil {
		t.Fatal(err)
	}
	if now := p.Now(); now.Done != now.Total || now.Total == 0 {
		t.Errorf("%d of %d bytes are said to be done", now.Done, now.Total)
	}
}

// skopeo reads what Export writes, in both forms, and finds the image's id.
func TestExportIsReadBySkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	img := hello(t, "skopeo")
	n := newNode(t)
	if _, err := n.imported(t, tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "example.com/app:1", "")}, img)...), ImportRequest{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "export.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Export(t.Context(), []string{"example.com/app:1"}, f, nil), f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"oci-archive:" + path + ":example.com/app:1", "docker-archive:" + path + ":example.com/app:1"} {
		back := filepath.Join(t.TempDir(), "back.tar")
		if out, err := exec.Command(skopeo, "--insecure-policy", "copy", "-q", from, "docker-archive:"+back+":example.com/back:1").CombinedOutput(); err != nil {
			t.Errorf("skopeo copy %s: %v\n%s", from, err, out)
			continue
		}
		list, err := newNode(t).importedFrom(t, back, ImportRequest{})
		if err != nil || list[0].ID != img.ID.String() || !cmp.Equal(list[0].Names, []string{"example.com/back:1"}) {
			t.Errorf("%s came back as %+v, %v", from, list, err)
		}
	}
}

// A gzip that says little and means much ends where the spool is full.
func TestImportBomb(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bomb")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Open(t.Context(), f, archive.SpoolAtMost(t.TempDir(), 1<<20)); !errors.Is(err, archive.ErrNoSpace) {
		t.Error(err)
	}
}
