package imageservice

import (
	"archive/tar"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

func TestDiskUsage(t *testing.T) {
	l := func(name string) registry.Layer {
		return registry.Layer{Files: []registry.File{{Header: tar.Header{Name: name}, Body: strings.Repeat(name, 3000)}}}
	}
	reg := registry.Start(t, registry.Options{})
	a := registry.Build(t, registry.Spec{Layers: []registry.Layer{l("base"), l("a"), l("base")}})
	b := registry.Build(t, registry.Spec{Layers: []registry.Layer{l("base"), l("b")}})
	reg.PushImage(t, "team/a", "v1", a)
	reg.PushImage(t, "team/b", "v1", b)
	n := newNode(t, func(c *Config) { c.Pinned = []string{reg.Addr + "/team/b:*"} })
	n.pull(t, reg.Addr+"/team/a:v1")
	n.pull(t, reg.Addr+"/team/b:v1")
	for container, img := range map[string]*registry.Image{"runs": a, "volume": b} {
		root, err := n.Rootfs(t.Context(), string(img.ID), container, layer.RootOptions{ReadOnly: container == "volume"})
		if err != nil {
			t.Fatal(err)
		}
		root.Close()
	}
	if err := n.Remove(t.Context(), string(a.ID)); err != nil { // its layers stay for the container
		t.Fatal(err)
	}
	n.pull(t, reg.Addr+"/team/a:v1")

	got := n.DiskUsage(func(container string) (bytes, inodes uint64, known bool) { return 4096, 3, container == "runs" })
	size, all := map[digest.Digest]uint64{}, uint64(0)
	for _, l := range n.store.List() {
		size[l.DiffID] = uint64(l.Bytes)
		all += uint64(l.Bytes)
	}
	_, _, ofA, _ := n.Config(string(a.ID))
	_, _, ofB, _ := n.Config(string(b.ID))
	base, onlyA, onlyB := ofA.RootFS.DiffIDs[0], ofA.RootFS.DiffIDs[1], ofB.RootFS.DiffIDs[1]
	image := func(img *registry.Image, name, container string, pinned bool, layers ...digest.Digest) ImageUsage {
		return ImageUsage{ID: string(img.ID), RepoTags: []string{reg.Addr + name + ":v1"}, RepoDigests: []string{reg.Addr + name + "@" + img.Desc.Digest.String()},
			Pinned: pinned, Layers: layers, Unique: size[layers[1]], Shared: size[layers[0]], Containers: []string{container}}
	}
	want := DiskUsage{
		Images: []ImageUsage{image(a, "/team/a", "runs", false, base, onlyA), image(b, "/team/b", "volume", true, base, onlyB)},
		Containers: []ContainerUsage{
			{ID: "runs", Layers: []digest.Digest{onlyA, base}, Bytes: 4096, Inodes: 3, Known: true},
			{ID: "volume", Layers: []digest.Digest{base, onlyB}, Bytes: 4096, Inodes: 3},
		},
	}
	sorted := cmpopts.SortSlices(func(x, y ImageUsage) bool { return x.ID < y.ID })
	if diff := cmp.Diff(want, got, sorted, cmpopts.IgnoreFields(DiskUsage{}, "Layers")); diff != "" {
		t.Error(diff)
	}
	var sum uint64
	for _, l := range got.Layers {
		sum += l.Bytes
		owners := map[digest.Digest]int{base: 2, onlyA: 1, onlyB: 1}[l.DiffID]
		if len(l.Images) != owners || len(l.Containers) != owners || l.Inodes == 0 || l.Format == "" {
			t.Errorf("%+v", l)
		}
	}
	if sum != all || sum != n.Usage().Bytes || len(got.Layers) != 3 {
		t.Errorf("layers take %d, of the store's %d", sum, all)
	}
	if err := n.Remove(t.Context(), string(a.ID)); err != nil {
		t.Fatal(err)
	}
	n.pull(t, reg.Addr+"/team/a@"+a.Desc.Digest.String())
	for _, img := range n.DiskUsage(func(string) (bytes, inodes uint64, known bool) { return 0, 0, false }).Images {
		if img.RepoTags == nil {
			t.Error("an image without tags has null for them, not []")
		}
	}
}

// An image without layers is that of the containers without layers, not of all.
func TestDiskUsageWithoutLayers(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	scratch, some := registry.Build(t, registry.Spec{}), hello(t, "usage")
	reg.PushImage(t, "scratch", "v1", scratch)
	reg.PushImage(t, "some", "v1", some)
	n := newNode(t)
	n.pull(t, reg.Addr+"/scratch:v1")
	n.pull(t, reg.Addr+"/some:v1")
	for container, img := range map[string]*registry.Image{"bare": scratch, "runs": some} {
		root, err := n.Rootfs(t.Context(), string(img.ID), container, layer.RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		root.Close()
	}
	want := map[string][]string{string(scratch.ID): {"bare"}, string(some.ID): {"runs"}}
	for _, img := range n.DiskUsage(func(string) (bytes, inodes uint64, known bool) { return 0, 0, false }).Images {
		if diff := cmp.Diff(want[img.ID], img.Containers); diff != "" {
			t.Errorf("%s: %s", img.RepoTags, diff)
		}
	}
}
