package critest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// imageVolume mounts an image at /vol.
func imageVolume(ref string, change ...func(*cri.Mount)) *cri.Mount {
	m := &cri.Mount{Image: &cri.ImageSpec{Image: ref}, ContainerPath: "/vol", Readonly: true}
	for _, f := range change {
		f(m)
	}
	return m
}

func subPath(path string) func(*cri.Mount) {
	return func(m *cri.Mount) { m.ImageSubPath = path }
}

// volumeLayers are those of an image that is no root file system but for busybox' layer below.
var volumeLayers = []registry.Layer{
	{Files: []registry.File{dir("data/", 0o755), file("data/file", "old", 0o644), file("data/gone", "x", 0o644)}},
	{Files: []registry.File{file("data/file", "new", 0o644), file("data/.wh.gone", "", 0o644), file("data/own", "bob's", 0o600),
		dir("etc/", 0o755), file("etc/hostname", "of the image", 0o644), dir("deep/", 0o755), dir("deep/er/", 0o755), file("deep/er/x", "deep", 0o644),
		symlink("inside", "/deep/er"), symlink("outside", "../../../../../../etc"), symlink("loop", "loop")}},
}

func TestImageVolumeMounts(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		ref := push(t, "model", ocispec.ImageConfig{}, volumeLayers...)
		id := pull(t, d, ref)
		mapping, inUserNS := userNamespace(7 << 20)
		mapped := func(m *cri.Mount) { m.UidMappings, m.GidMappings = mapping, mapping }
		plain, userns := runPod(t, d), runPod(t, d, inUserNS)
		for _, row := range []struct {
			name   string
			p      *pod
			mount  *cri.Mount
			script string
			want   string
		}{
			{"whole", plain, imageVolume(ref), "cat /vol/data/file; ls /vol/data; stat -c %u:%g /vol/home/bob", "newfile\nown\n1000:1001\n"},
			{"by id", plain, imageVolume(id), "cat /vol/data/file", "new"},
			{"read-only", plain, imageVolume(ref), "touch /vol/x /vol/data/file 2>&1", "touch: /vol/x: Read-only file system\ntouch: /vol/data/file: Read-only file system\n"},
			{"recursively read-only", plain, imageVolume(ref, func(m *cri.Mount) { m.RecursiveReadOnly = true }), "touch /vol/x 2>&1", "touch: /vol/x: Read-only file system\n"},
			{"its programs run", plain, imageVolume(ref), "/vol/bin/busybox echo ran", "ran\n"},
			{"its programs do not run", plain, imageVolume(ref, func(m *cri.Mount) { m.MountOptions = []string{"noexec"} }), "(/vol/bin/busybox echo ran) 2>&1 | grep -c denied", "1\n"},
			{"directory", plain, imageVolume(ref, subPath("deep")), "cat /vol/er/x; ls /vol", "deeper\n"},
			{"file", plain, imageVolume(ref, subPath("data/file")), "cat /vol; (echo x >/vol) 2>/dev/null || echo refused", "newrefused\n"},
			{"link to a directory", plain, imageVolume(ref, subPath("inside")), "ls /vol", "x\n"},
			{"link that leads out stays inside", plain, imageVolume(ref, subPath("outside")), "cat /vol/hostname", "of the image"},
			{"user namespace", userns, imageVolume(ref, mapped), "stat -c %u:%g /vol /vol/home/bob | tr '\\n' ' '; cat /vol/data/own; touch /vol/x 2>&1", "0:0 1000:1001 bob'stouch: /vol/x: Read-only file system\n"},
			{"directory, user namespace", userns, imageVolume(ref, mapped, subPath("home")), "stat -c %u:%g /vol /vol/bob", "0:0\n1000:1001\n"},
		} {
			t.Run(row.name, func(t *testing.T) {
				c := row.p.start(t, row.script, mounts(row.mount))
				c.wait(t)
				c.wrote(t, row.want)
				got := c.status(t).GetMounts()
				if len(got) != 1 || got[0].GetImage().GetImageRef() != id || got[0].GetImage().GetImage() != row.mount.GetImage().GetImage() || got[0].GetHostPath() != "" {
					t.Errorf("status has the mounts %v", got)
				}
			})
		}
	})
}

func TestImageVolumeMountsRefused(t *testing.T) {
	d := use(t)
	ref := pullNew(t, d, "model", ocispec.ImageConfig{}, volumeLayers...)
	absent := suite.registry.Addr + "/absent:latest"
	p := runPod(t, d)
	for _, row := range []struct {
		name  string
		mount *cri.Mount
		code  codes.Code
		texts []string
	}{
		{"not present", imageVolume(absent), codes.Unknown, []string{absent, "not found"}},
		{"no sub path", imageVolume(ref, subPath("data/none")), codes.Unknown, []string{"data/none", "no such file"}},
		{"sub path below a file", imageVolume(ref, subPath("data/file/x")), codes.Unknown, []string{"data/file/x", "not a directory"}},
		{"sub path is a loop", imageVolume(ref, subPath("loop")), codes.Unknown, []string{"loop", "too many levels"}},
		{"writable", imageVolume(ref, func(m *cri.Mount) { m.Readonly = false }), codes.InvalidArgument, []string{"config.mounts[0].readonly"}},
		{"of the host too", imageVolume(ref, func(m *cri.Mount) { m.HostPath = "/tmp" }), codes.InvalidArgument, []string{"config.mounts[0].host_path"}},
		{"with propagation", imageVolume(ref, func(m *cri.Mount) { m.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER }), codes.InvalidArgument, []string{"config.mounts[0].propagation"}},
		{"absolute sub path", imageVolume(ref, subPath("/data")), codes.InvalidArgument, []string{"config.mounts[0].image_sub_path"}},
		{"sub path with ..", imageVolume(ref, subPath("data/../etc")), codes.InvalidArgument, []string{"config.mounts[0].image_sub_path"}},
		{"sub path of nothing", &cri.Mount{HostPath: "/tmp", ContainerPath: "/vol", ImageSubPath: "data"}, codes.InvalidArgument, []string{"config.mounts[0].image_sub_path"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			_, err := p.tryCreate(t, containerConfig(idle, mounts(row.mount)))
			refused(t, err, row.code, row.texts...)
			if text := status.Convert(err).Message(); row.code == codes.Unknown && !strings.HasPrefix(text, "ImageVolumeMountFailed: ") {
				t.Errorf("%q does not begin as the kubelet expects", text)
			}
		})
	}
}

// layerCount is how many layers the daemon has.
func layerCount(t *testing.T, d *daemon) int {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(d.root(), "layers", "layers", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// An image that is removed stays as long as a container has it as a volume, and no longer.
func TestImageVolumeOfRemovedImage(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		before := layerCount(t, d)
		ref := pullNew(t, d, "removed-model", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("only", "here", 0o644)}})
		p := runPod(t, d)
		a := p.start(t, idle, mounts(imageVolume(ref)))
		b := p.create(t, "cat /vol/only", mounts(imageVolume(ref, subPath("only"), func(m *cri.Mount) { m.ContainerPath = "/vol/only" })))
		removeImage(t, d, ref)
		if layerCount(t, d) != before+1 {
			t.Error("the layer is gone while containers have it")
		}
		if got := a.exec(t, "cat /vol/only"); got != "here" {
			t.Errorf("the volume has %q", got)
		}
		if err := b.tryStart(t); err != nil {
			t.Fatal(err)
		}
		b.wait(t)
		b.wrote(t, "here")
		a.remove(t)
		b.remove(t)
		eventually(t, settleBound, "the layer is gone", func() bool { return layerCount(t, d) == before })
		if left, _ := filepath.Glob(filepath.Join(d.root(), "layers", "containers", "*")); len(left) > 0 {
			t.Errorf("roots are left: %v", left)
		}
	})
}

// A container that was created before a restart of criserver is started after it; what nobody needs is swept.
func TestImageVolumeOverRestart(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		ref := pullNew(t, d, "model", ocispec.ImageConfig{}, volumeLayers...)
		p := runPod(t, d)
		c := p.create(t, "cat /vol/er/x /whole/data/file", mounts(imageVolume(ref, subPath("deep")), imageVolume(ref, func(m *cri.Mount) { m.ContainerPath = "/whole" })))
		id := c.status(t).GetMounts()[0].GetImage().GetImageRef()
		if err := d.kill(); err != nil {
			t.Fatal(err)
		}
		stray := filepath.Join(d.root(), "layers", "containers", strings.Repeat("a", 64)+"-0")
		if err := os.Mkdir(stray, 0o700); err != nil { // as of a container that nobody knows any more
			t.Fatal(err)
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		if got := c.status(t).GetMounts(); len(got) != 2 || got[1].GetImage().GetImageRef() != id {
			t.Errorf("status has the mounts %v", got)
		}
		if err := c.tryStart(t); err != nil {
			t.Fatal(err)
		}
		c.wait(t)
		c.wrote(t, "deepnew")
		eventually(t, settleBound, "the stray root is gone", func() bool { _, err := os.Stat(stray); return os.IsNotExist(err) })
	})
}
