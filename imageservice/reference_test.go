package imageservice

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/registry"
)

func TestReferences(t *testing.T) {
	const d = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for ref, want := range map[string]string{
		"busybox":                          "docker.io/library/busybox:latest",
		"busybox:1":                        "docker.io/library/busybox:1",
		"team/app":                         "docker.io/team/app:latest",
		"docker.io/busybox":                "docker.io/library/busybox:latest",
		"index.docker.io/library/busybox":  "docker.io/library/busybox:latest",
		"localhost/app":                    "localhost/app:latest",
		"localhost:5000/app:v1":            "localhost:5000/app:v1",
		"registry.example.com/a/b/c":       "registry.example.com/a/b/c:latest",
		"index.docker.io/team/app:v":       "docker.io/team/app:v",
		"quay.io:443/a/b/c:v":              "quay.io:443/a/b/c:v",
		"[::1]:5000/app":                   "[::1]:5000/app:latest",
		"busybox@" + d:                     "docker.io/library/busybox@" + d,
		"busybox:1@" + d:                   "docker.io/library/busybox@" + d,
		"registry.example.com:5/a:b@" + d:  "registry.example.com:5/a@" + d,
		"deadbeef":                         "docker.io/library/deadbeef:latest",
		"Registry.Example.com/app":         "Registry.Example.com/app:latest",
		"registry.example.com/app:V1.0_-x": "registry.example.com/app:V1.0_-x",
	} {
		if got, err := parse(ref); err != nil || got.String() != want {
			t.Errorf("%s is %s instead of %s: %v", ref, got, want, err)
		}
	}
}

// sameBegin makes images until two have ids that begin with the same digit.
func sameBegin(t *testing.T) (a, b *registry.Image) {
	t.Helper()
	known := map[byte]*registry.Image{}
	for i := 0; ; i++ {
		img := hello(t, fmt.Sprint(i))
		first := img.ID.Encoded()[0]
		if known[first] != nil {
			return known[first], img
		}
		known[first] = img
	}
}

func TestShortIDs(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	a, b := sameBegin(t)
	reg.PushImage(t, "x", "a", a)
	reg.PushImage(t, "x", "b", b)
	reg.PushImage(t, "x", a.ID.Encoded()[:1], b)
	n := newNode(t)
	n.pull(t, reg.Addr+"/x:a")
	n.pull(t, reg.Addr+"/x:b")
	common := a.ID.Encoded()[:1]
	for _, prefix := range []string{"", "sha256:"} {
		if _, err := n.Find(prefix + common); !errors.Is(err, ErrInvalidReference) || !strings.Contains(err.Error(), "ambiguous") {
			t.Errorf("%s is one of two: %v", prefix+common, err)
		}
		if _, err := n.Volume(prefix + common); !errors.Is(err, ErrInvalidReference) || !strings.Contains(err.Error(), "ambiguous") {
			t.Errorf("volume of %s: %v", prefix+common, err)
		}
		if _, _, _, err := n.Config(prefix + common); !errors.Is(err, ErrInvalidReference) || !strings.Contains(err.Error(), "ambiguous") {
			t.Errorf("config of %s: %v", prefix+common, err)
		}
		if err := n.Remove(t.Context(), prefix+common); !errors.Is(err, ErrInvalidReference) || !strings.Contains(err.Error(), "ambiguous") {
			t.Errorf("remove %s: %v", prefix+common, err)
		}
		for _, img := range []*registry.Image{a, b} {
			for _, length := range []int{12, 63, 64} {
				ref := prefix + img.ID.Encoded()[:length]
				if got, err := n.Find(ref); err != nil || got.ID != img.ID.String() {
					t.Errorf("%s is %+v", ref, got)
				}
			}
		}
	}
	for _, ref := range []string{"sha256:", "sha512:" + a.ID.Encoded(), "sha256:" + strings.ToUpper(a.ID.Encoded()), a.ID.Encoded() + "0", "sha256"} {
		if _, err := n.Find(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", ref, err)
		}
		if err := n.Remove(t.Context(), ref); err != nil {
			t.Errorf("remove %q: %v", ref, err)
		}
	}
	if len(n.List()) != 2 {
		t.Errorf("%d images are left", len(n.List()))
	}
	if err := n.Remove(t.Context(), b.ID.Encoded()[:12]); err != nil {
		t.Error(err)
	}
	if got, err := n.Find(common); err != nil || got.ID != a.ID.String() {
		t.Errorf("%s is %+v, of one image", common, got)
	}
}

// One image of two registries has the names of both, and goes with any of them.
func TestImageOfSeveralRegistries(t *testing.T) {
	one, two := registry.Start(t, registry.Options{}), registry.Start(t, registry.Options{})
	img := hello(t, "everywhere")
	one.PushImage(t, "x", "v1", img)
	two.PushImage(t, "y", "v2", img)
	n := newNode(t)
	n.pull(t, one.Addr+"/x:v1")
	n.pull(t, two.Addr+"/y:v2")
	got, _ := n.Find(img.ID.String())
	tags := []string{one.Addr + "/x:v1", two.Addr + "/y:v2"}
	digests := []string{one.Addr + "/x@" + img.Desc.Digest.String(), two.Addr + "/y@" + img.Desc.Digest.String()}
	slices.Sort(tags)
	slices.Sort(digests)
	if !slices.Equal(got.RepoTags, tags) || !slices.Equal(got.RepoDigests, digests) {
		t.Errorf("%+v", got)
	}
	if err := n.Remove(t.Context(), two.Addr+"/y@"+img.Desc.Digest.String()); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

// The best platform of an index, by what package platforms says can run where.
func TestPlatforms(t *testing.T) {
	entry := func(platform string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(platform)}
		switch {
		case platform == "artifact":
			d.ArtifactType = weights
		case platform == "attestation":
			d.Annotations = map[string]string{annotationOf: "attestation-manifest"}
		case platform != "none":
			f := strings.Split(platform, "/")
			d.Platform = &ocispec.Platform{OS: f[0], Architecture: f[1]}
			if len(f) > 2 {
				d.Platform.Variant = f[2]
			}
		}
		return d
	}
	for _, row := range []struct {
		node, want string
		offered    string
	}{
		{"linux/arm/v7", "linux/arm/v7", "linux/arm/v5 linux/arm/v6 linux/arm/v7 linux/arm/v8 linux/arm64"},
		{"linux/arm/v7", "linux/arm/v6", "linux/arm/v5 linux/arm/v6 linux/arm/v8"},
		{"linux/arm/v6", "", "linux/arm/v7 linux/arm64"},
		{"linux/arm64", "linux/arm64/v8", "linux/arm/v7 linux/arm64/v8"},
		{"linux/arm64", "linux/arm/v7", "linux/arm/v6 linux/arm/v7"},
		{"linux/amd64", "linux/amd64", "linux/amd64/v2 linux/amd64 linux/386"},
		{"linux/amd64", "linux/386", "linux/amd64/v2 linux/386"},
		{"linux/amd64/v3", "linux/amd64/v3", "linux/amd64 linux/amd64/v2 linux/amd64/v3 linux/amd64/v4"},
		{"linux/amd64/v3", "linux/amd64/v2", "linux/amd64 linux/amd64/v2 linux/amd64/v4"},
		{"linux/amd64", "", "windows/amd64 linux/s390x unknown/unknown"},
		{"linux/amd64", "none", "linux/s390x none"},
		{"linux/amd64", "linux/amd64", "none linux/amd64"},
		{"linux/amd64", "none", "attestation none"},
		{"linux/amd64", "", "attestation linux/s390x"},
		{"linux/amd64", "", "artifact linux/s390x"},
		{"linux/amd64", "artifact", "artifact"},
	} {
		node, err := platformOf(row.node)
		if err != nil {
			t.Fatal(err)
		}
		var entries []ocispec.Descriptor
		for p := range strings.FieldsSeq(row.offered) {
			entries = append(entries, entry(p))
		}
		got, err := choose(digest.FromString("index"), entries, node)
		if row.want != "" && (err != nil || got.Digest != digest.FromString(row.want)) {
			t.Errorf("%s of %s: %v, %v instead of %s", row.node, row.offered, got.Platform, err, row.want)
		}
		if row.want != "" {
			continue
		}
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s of %s: %v, %v", row.node, row.offered, got.Platform, err)
			continue
		}
		for p := range strings.FieldsSeq(row.offered) { // which there are is told, but for what is no image
			image := strings.Contains(p, "/") && !strings.HasPrefix(p, "unknown")
			if strings.Contains(err.Error(), fmt.Sprintf("%q", p)) != image {
				t.Errorf("%v: %s", err, p)
			}
		}
	}
}
