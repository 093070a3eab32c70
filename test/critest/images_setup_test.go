package critest

import (
	"archive/tar"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// Users and groups of the busybox image. bob is in two more groups.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001:Bob:/home/bob:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	group  = "root:x:0:\nbob:x:1001:\nstaff:x:50:bob\naudio:x:29:alice,bob\nnogroup:x:65534:\n"
)

// busyboxFiles is a root with the machine's static busybox under all its names.
func busyboxFiles(t testing.TB) []registry.File {
	t.Helper()
	return append([]registry.File{
		dir("bin/", 0o755), dir("dev/", 0o755), dir("etc/", 0o755), dir("home/", 0o755), dir("proc/", 0o755), dir("root/", 0o700),
		dir("sys/", 0o755), dir("tmp/", 0o1777), dir("var/", 0o755),
		{Header: tar.Header{Name: "home/bob/", Uid: 1000, Gid: 1001, Mode: 0o700}},
		file("etc/passwd", passwd, 0o644), file("etc/group", group, 0o644),
	}, registry.Busybox(t)...)
}

func dir(name string, mode int64) registry.File {
	return registry.File{Header: tar.Header{Name: name, Mode: mode}}
}

func file(name, body string, mode int64) registry.File {
	return registry.File{Header: tar.Header{Name: name, Mode: mode}, Body: body}
}

func symlink(name, target string) registry.File {
	return registry.File{Header: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}}
}

func hardlink(name, target string) registry.File {
	return registry.File{Header: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}}
}

// busyboxLayer is made once: the layer that all images of the suite share.
var busyboxLayer *registry.Layer

func pushBusybox(t testing.TB) string {
	t.Helper()
	busyboxLayer = &registry.Layer{Tar: registry.Tar(t, busyboxFiles(t)...), Compression: "gzip"}
	return push(t, "busybox", ocispec.ImageConfig{Cmd: []string{"sh"}})
}

// push uploads an image of busybox and more layers, and returns its reference.
func push(t testing.TB, repo string, config ocispec.ImageConfig, layers ...registry.Layer) string {
	t.Helper()
	img := registry.Build(t, registry.Spec{Config: ocispec.Image{Config: config}, Layers: append([]registry.Layer{*busyboxLayer}, layers...)})
	suite.registry.PushImage(t, repo, "latest", img)
	return suite.registry.Addr + "/" + repo + ":latest"
}

// pullNew pushes an image of busybox with a config and more layers, and pulls it for the length of the test.
func pullNew(t testing.TB, d *daemon, repo string, config ocispec.ImageConfig, layers ...registry.Layer) string {
	t.Helper()
	ref := push(t, repo, config, layers...)
	pull(t, d, ref)
	return ref
}

// pull pulls an image for the length of the test and returns its id.
func pull(t testing.TB, d *daemon, ref string) string {
	t.Helper()
	r, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("PullImage %s: %v", ref, err)
	}
	t.Cleanup(func() { removeImage(t, d, ref) })
	return r.GetImageRef()
}

func removeImage(t testing.TB, d *daemon, ref string) {
	t.Helper()
	if _, err := d.images.RemoveImage(bounded(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Errorf("RemoveImage %s: %v", ref, err)
	}
}
