package imageservice

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

const weights = "application/vnd.example.weights"

func titled(mediaType, name, data string) registry.Part {
	return registry.Part{MediaType: mediaType, Annotations: map[string]string{ocispec.AnnotationTitle: name}, Data: []byte(data)}
}

// model is an artifact with every kind of part.
func model(t testing.TB) *registry.Image {
	t.Helper()
	tarOf := func(name, body string) []byte {
		return registry.Tar(t, registry.File{Header: tar.Header{Name: name}, Body: body})
	}
	unpacked := titled(ocispec.MediaTypeImageLayerGzip, "tokenizer", string(registry.Compress(t, "gzip", tarOf("tokenizer/vocab", "words"))))
	unpacked.Annotations[annotationUnpack] = "true"
	return registry.Artifact(t, weights, "",
		registry.Named("model.bin", strings.Repeat("weights ", 100000)),
		registry.Named("sub/dir/empty", ""),
		titled(ocispec.MediaTypeImageLayer, "notes.txt", "oras calls files archives"), // as oras does unless told otherwise
		registry.Part{MediaType: "application/vnd.example.data.tar+zstd", Data: registry.Compress(t, "zstd", tarOf("data/set", "points"))},
		unpacked,
		registry.Part{MediaType: "application/vnd.cncf.model.weight.v1.raw", Annotations: map[string]string{annotationFilepath: "by/filepath"}, Data: []byte("raw")},
		registry.Part{MediaType: "application/vnd.example.nameless", Data: []byte("not shown")},
		registry.Part{MediaType: ocispec.MediaTypeEmptyJSON, Data: []byte("{}")},
	)
}

func volume(t *testing.T, n *node, id, name string) *os.File {
	t.Helper()
	root, err := n.Rootfs(t.Context(), id, name, layer.RootOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() }) // closed before if all goes well
	return root
}

func TestArtifact(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	img := model(t)
	reg.PushImage(t, "models/llm", "v1", img)
	ref := reg.Addr + "/models/llm:v1"
	dir := t.TempDir()
	n := nodeAt(t, dir)
	if id := n.pull(t, ref); id != img.Desc.Digest.String() {
		t.Fatalf("id %s instead of the manifest's, %s", id, img.Desc.Digest)
	}
	want := &Image{ID: img.Desc.Digest.String(), RepoTags: []string{ref}, RepoDigests: []string{reg.Addr + "/models/llm@" + img.Desc.Digest.String()},
		ArtifactType: weights, Manifest: img.Manifest}
	check := func() {
		t.Helper()
		for _, name := range []string{ref, img.Desc.Digest.String(), img.Desc.Digest.Encoded()[:12], want.RepoDigests[0]} {
			got, err := n.Find(name)
			if err != nil || got.Size < 800000 {
				t.Fatalf("status of %s: %+v", name, got)
			}
			want.Size = got.Size
			want.Config, want.DiffIDs, want.PulledAt = got.Config, got.DiffIDs, got.PulledAt
			if diff := cmp.Diff(want, got); diff != "" || len(got.Config) > 0 {
				t.Errorf("%s: %s", name, diff)
			}
		}
		if _, _, _, err := n.Config(ref); !errors.Is(err, ErrInvalidReference) || !strings.Contains(err.Error(), "is an artifact") {
			t.Errorf("config of an artifact: %v", err)
		}
		if id, err := n.Volume(ref); err != nil || id != want.ID {
			t.Errorf("as a volume it is %q, %v", id, err)
		}
	}
	check()
	n.pull(t, want.RepoDigests[0])
	n.stop()
	n = nodeAt(t, dir) // a restart
	check()
	root := volume(t, n, want.ID, "c1-0")
	for name, text := range map[string]string{"model.bin": strings.Repeat("weights ", 100000), "sub/dir/empty": "", "notes.txt": "oras calls files archives",
		"data/set": "points", "tokenizer/vocab": "words", "by/filepath": "raw"} {
		got, err := read(t, root, name)
		if text == "" && err != nil && err.Error() == "EOF" {
			err = nil
		}
		if got != text || err != nil {
			t.Errorf("%s has %d bytes instead of %d: %v", name, len(got), len(text), err)
		}
	}
	if err := n.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, root, "data/set"); got != "points" {
		t.Errorf("removed while it is a volume: %q, %v", got, err)
	}
	if err := errors.Join(root.Close(), n.ReleaseRootfs(t.Context(), "c1-0")); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

// A part that another artifact has is not fetched again, and goes with the last of them.
func TestArtifactsShareParts(t *testing.T) {
	big := strings.Repeat("shared ", 1000)
	one := registry.Artifact(t, weights, "", registry.Named("big", big), registry.Named("a", "1"))
	two := registry.Artifact(t, weights, "", registry.Named("big", big), registry.Named("a", "2"), registry.Named("again", "2"))
	l := newLiar(t, one)
	n := newNode(t, impatient)
	first := n.pull(t, l.Listener.Addr().String()+"/x:v1")
	l.img = two
	second := n.pull(t, l.Listener.Addr().String()+"/x:v2")
	n.pull(t, l.Listener.Addr().String()+"/x:v2") // holds nothing twice
	blob := "/v2/x/blobs/" + digest.FromString(big).String()
	if l.hits[blob] != 1 || len(n.store.List()) != 4 {
		t.Errorf("%d requests of the shared part, %d layers", l.hits[blob], len(n.store.List()))
	}
	if err := n.Remove(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	root := volume(t, n, second, "c1-0")
	if got, err := read(t, root, "big"); got != big {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := errors.Join(root.Close(), n.ReleaseRootfs(t.Context(), "c1-0"), n.Remove(t.Context(), second)); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

// What a config of another type is of, or names a type, is an artifact; the rest is what it was.
func TestIsArtifact(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	n := newNode(t)
	for name, row := range map[string]struct {
		img  *registry.Image
		kind string
	}{
		"config of its own":           {registry.Artifact(t, "", "application/vnd.example.config+json", registry.Named("a", "config")), "application/vnd.example.config+json"},
		"type, and an image's config": {registry.Artifact(t, weights, ocispec.MediaTypeImageConfig, registry.Named("a", "type")), weights},
	} {
		reg.PushImage(t, "artifact", "v1", row.img)
		id := n.pull(t, reg.Addr+"/artifact:v1")
		if got, _ := n.Find(id); got.ArtifactType != row.kind || id != row.img.Desc.Digest.String() {
			t.Errorf("%s: %+v", name, got)
		}
	}
	top := reg.PushIndex(t, "artifact", "index", false, model(t))
	if id := n.pull(t, reg.Addr+"/artifact:index"); id == top.String() {
		t.Error("the id is that of an index")
	}
}

func TestArtifactFaults(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, row := range []struct {
		name  string
		parts []registry.Part
		want  string
	}{
		{"nothing", nil, "nothing that a volume can show"},
		{"nothing with a name", []registry.Part{{MediaType: "a/b", Data: []byte("x")}}, `of type "` + weights + `" has nothing that a volume can show`},
		{"absolute", []registry.Part{registry.Named("/etc/passwd", "x")}, "not a clean path"},
		{"above the root", []registry.Part{registry.Named("../x", "x")}, "not a clean path"},
		{"above the root inside", []registry.Part{registry.Named("a/../../x", "x")}, "not a clean path"},
		{"the root", []registry.Part{registry.Named(".", "x")}, "not a clean path"},
		{"its parent", []registry.Part{registry.Named("..", "x")}, "not a clean path"},
		{"not clean", []registry.Part{registry.Named("a//b", "x")}, "not a clean path"},
		{"directory", []registry.Part{registry.Named("a/", "x")}, "not a clean path"},
		{"NUL", []registry.Part{registry.Named("a\x00b", "x")}, "not a clean path"},
		{"whiteout", []registry.Part{registry.Named("a/.wh.b", "x")}, "not the name of a file"},
		{"long part", []registry.Part{registry.Named(long, "x")}, "not the name of a file"},
		{"long", []registry.Part{registry.Named(strings.Repeat("x/", 2001)+"x", "x")}, "longer than"},
		{"twice", []registry.Part{registry.Named("a", "x"), registry.Named("a", "y")}, `name "a" is that of another layer`},
		{"too many", slices.Repeat([]registry.Part{{MediaType: "a/b.tar", Data: []byte("x")}}, 501), "501 layers are more than the 500"},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLiar(t, registry.Artifact(t, weights, "", row.parts...))
			n := newNode(t, impatient)
			_, err := n.Pull(t.Context(), PullRequest{Ref: l.Listener.Addr().String() + "/x:v1"})
			if !errors.Is(err, ErrInvalidImage) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v instead of %q", err, row.want)
			}
			n.mustBeEmpty(t)
		})
	}
}

// What a registry sends in place of a part leaves nothing, of the other parts neither.
func TestArtifactPartsThatLie(t *testing.T) {
	tarball := registry.Tar(t, registry.File{Header: tar.Header{Name: "f"}, Body: "x"})
	gzip := "application/vnd.example.tar+gzip"
	noise := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails
	for _, row := range []struct {
		name string
		part registry.Part
		blob func(http.ResponseWriter, *http.Request, []byte)
		want string
	}{
		{"other bytes", registry.Named("bad", "right"), func(w http.ResponseWriter, r *http.Request, b []byte) { serve(w, r, []byte("wrong"), 5) }, "digest is " + digest.FromString("wrong").String()},
		{"other length", registry.Named("bad", "right"), func(w http.ResponseWriter, r *http.Request, b []byte) { serve(w, r, []byte("longer"), 6) }, "length is 6"},
		{"other bytes of an archive", registry.Part{MediaType: "a/b.tar", Data: tarball}, func(w http.ResponseWriter, r *http.Request, b []byte) {
			spoilt := slices.Clone(b)
			spoilt[len(spoilt)-1]++
			serve(w, r, spoilt, len(spoilt))
		}, "digest is "},
		{"no archive", registry.Part{MediaType: "a/b.tar", Data: []byte(strings.Repeat("no archive ", 100))}, nil, "invalid"},
		{"not compressed", registry.Part{MediaType: gzip, Data: tarball}, nil, "decompress"},
		{"cut off", registry.Part{MediaType: gzip, Data: registry.Compress(t, "gzip", tarball)[:20]}, nil, "decompress"},
		{"leads out", registry.Part{MediaType: "a/b.tar", Data: registry.Tar(t, registry.File{Header: tar.Header{Name: "../f"}, Body: "x"})}, nil, "../f"},
		{"leads out while its decompressor reads ahead", registry.Part{MediaType: "application/vnd.example.tar+zstd", Data: registry.Compress(t, "zstd",
			registry.Tar(t, registry.File{Header: tar.Header{Name: "../f"}, Body: string(noise)}))}, nil, "../f"},
		{"denied", registry.Named("bad", "right"), func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusForbidden) }, "403"},
	} {
		t.Run(row.name, func(t *testing.T) {
			img := registry.Artifact(t, weights, "", registry.Named("good", strings.Repeat("good", 1000)), row.part)
			l := newLiar(t, img)
			bad := digest.FromBytes(row.part.Data)
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
				d := digest.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
				if d == bad && row.blob != nil {
					row.blob(w, r, row.part.Data)
					return
				}
				serve(w, r, img.Blobs[d], len(img.Blobs[d]))
			}
			n := newNode(t, impatient)
			_, err := n.Pull(t.Context(), PullRequest{Ref: l.Listener.Addr().String() + "/x:v1"})
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "2 of 2: ") {
				t.Errorf("%v instead of %q", err, row.want)
			}
			n.mustBeEmpty(t)
		})
	}
}

// Archives of artifacts replace what is below them, as layers of images do.
func TestArtifactArchivesStack(t *testing.T) {
	layerOf := func(files ...registry.File) registry.Part {
		return registry.Part{MediaType: "application/vnd.example.tar", Data: registry.Tar(t, files...)}
	}
	f := func(name, body string) registry.File {
		return registry.File{Header: tar.Header{Name: name}, Body: body}
	}
	l := newLiar(t, registry.Artifact(t, weights, "", layerOf(f("a", "lower"), f("gone", "x")), layerOf(f("a", "upper"), f(".wh.gone", ""))))
	n := newNode(t, impatient)
	root := volume(t, n, n.pull(t, l.Listener.Addr().String()+"/x:v1"), "c1-0")
	if got, err := read(t, root, "a"); got != "upper" {
		t.Errorf("a is %q, %v", got, err)
	}
	if _, err := read(t, root, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
	if err := errors.Join(root.Close(), n.ReleaseRootfs(t.Context(), "c1-0")); err != nil {
		t.Error(err)
	}
}

func FuzzArtifactParts(f *testing.F) {
	f.Add(model(f).Manifest)
	f.Add(registry.Artifact(f, "", "a/b", registry.Named("../x", "x")).Manifest)
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"x"},"layers":[{"size":-1,"annotations":null}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, index, err := parseDocument(remote.Manifest{Digest: digest.FromBytes(data), MediaType: ocispec.MediaTypeImageManifest, Bytes: data})
		if err != nil || index {
			return
		}
		parts, err := artifactParts(digest.FromBytes(data), doc, 10)
		if err != nil {
			return
		}
		if len(parts) == 0 || len(parts) > 10 {
			t.Errorf("%d parts", len(parts))
		}
		for _, p := range parts {
			if p.desc.Size < 0 || p.desc.Digest.Validate() != nil || p.file != "" && !fs.ValidPath(p.file) && json.Valid(data) && checkFileName(p.file) != nil {
				t.Errorf("part %+v", p)
			}
		}
	})
}
