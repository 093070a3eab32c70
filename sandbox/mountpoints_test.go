package sandbox

import (
	"context"
	"slices"
	"testing"

	"github.com/containerd/nri/pkg/api"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox/nri/nritest"
	"github.com/criserver/criserver/store/layer"
)

// The root is told of everything that is mounted in it, but for what lies in another mount, what is an image's, and what must be seen in the
// image as it is before the container is made.
func TestMountPointsOfAContainer(t *testing.T) {
	dir := func(path string) layer.MountPoint { return layer.MountPoint{Path: path} }
	file := func(path string) layer.MountPoint { return layer.MountPoint{Path: path, File: true} }
	usual := []layer.MountPoint{dir("/dev"), file("/etc/hostname"), file("/etc/hosts"), file("/etc/resolv.conf"), dir("/proc"), dir("/sys")}
	for _, tt := range []struct {
		name    string
		mounts  map[string]bool // of files
		image   string          // where an image is mounted
		volume  string          // of the image
		without []layer.MountPoint
		with    []layer.MountPoint
	}{
		{name: "nothing asked for"},
		{name: "volumes", mounts: map[string]bool{"/data/": false, "a/../config": true}, with: []layer.MountPoint{dir("/data"), file("/config")}},
		{name: "in others", mounts: map[string]bool{"/a": false, "/a/b": true, "/a-b": false, "/dev/x": false, "/etc": false},
			without: usual[1:4], with: []layer.MountPoint{dir("/a"), dir("/a-b"), dir("/etc")}},
		{name: "instead of the usual", mounts: map[string]bool{"/etc/hosts": false}, without: usual[2:3], with: []layer.MountPoint{dir("/etc/hosts")}},
		{name: "users of the image", mounts: map[string]bool{"/etc/passwd": true, "/etc/group": true}},
		{name: "an image", image: "/models"},
		{name: "volumes of the image", mounts: map[string]bool{"/v/inside": false, "/vv": false}, volume: "/v", with: []layer.MountPoint{dir("/vv")}},
		{name: "the root", mounts: map[string]bool{"/": false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &building{config: &runtimev1.ContainerConfig{}}
			for at, isFile := range tt.mounts {
				b.config.Mounts = append(b.config.Mounts, &runtimev1.Mount{ContainerPath: at, HostPath: "/host"})
				b.files = append(b.files, isFile)
			}
			if tt.image != "" {
				b.config.Mounts = append(b.config.Mounts, &runtimev1.Mount{ContainerPath: tt.image, Image: &runtimev1.ImageSpec{Image: "x"}})
				b.files = append(b.files, false)
			}
			if tt.volume != "" {
				b.image.Config.Config = ocispec.ImageConfig{Volumes: map[string]struct{}{tt.volume: {}}}
			}
			want := slices.DeleteFunc(slices.Concat(usual, tt.with), func(p layer.MountPoint) bool { return slices.Contains(tt.without, p) })
			have := b.mountPoints()
			if len(have) != len(want) || slices.ContainsFunc(want, func(p layer.MountPoint) bool { return !slices.Contains(have, p) }) {
				t.Errorf("mount points\n%v\nwant\n%v", have, want)
			}
		})
	}
}

// Where a plugin has changed what is mounted, the root is not to have a mount point; it is made once where it has not.
func TestPluginsChangeMountPoints(t *testing.T) {
	bind := func(at, source string) *api.Mount { return &api.Mount{Destination: at, Source: source, Type: "bind"} }
	for _, tt := range []struct {
		name  string
		asked []*api.Mount
		roots int
		gone  []string
	}{
		{name: "nothing", roots: 1},
		{name: "one more", asked: []*api.Mount{bind("/more", "/elsewhere")}, roots: 1},
		{name: "options", asked: []*api.Mount{{Destination: "/data", Source: "/host", Type: "bind", Options: []string{"ro"}}}, roots: 1},
		{name: "one less", asked: []*api.Mount{{Destination: "-/data"}}, roots: 2, gone: []string{"/data"}},
		{name: "something else", asked: []*api.Mount{bind("/etc/hosts", "/directory"), bind("/proc/", "/p")}, roots: 2, gone: []string{"/etc/hosts", "/proc"}},
		{name: "somewhere else", asked: []*api.Mount{{Destination: "-/data"}, bind("/moved", "/host")}, roots: 2, gone: []string{"/data"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := plugged(t)
			nritest.Connect(t, m.socket(), &nritest.Plugin{Adjust: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
				return &api.ContainerAdjustment{Mounts: tt.asked}, nil
			}})
			plan := m.s.plan
			m.s.plan = func(ctx context.Context, b *building) error {
				err := plan(ctx, b)
				b.spec.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/etc/hosts", Type: "bind", Source: "/pod/hosts"},
					{Destination: "/data", Type: "bind", Source: "/host"}}
				return err
			}
			pod, err := m.s.RunPod(t.Context(), podConfig(), "")
			must(t, err)
			config := containerConfig()
			config.Mounts = []*runtimev1.Mount{{ContainerPath: "/data", HostPath: "/host"}}
			id, err := m.s.CreateContainer(t.Context(), pod, config, nil)
			must(t, err)
			roots, have := 0, map[string]bool{}
			m.be(func(n *node) {
				for _, call := range n.calls {
					if call == "Rootfs" {
						roots++
					}
				}
				for _, p := range n.points[string(id)] {
					have[p.Path] = true
				}
			})
			want(t, "roots made", roots, tt.roots)
			for _, at := range []string{"/proc", "/dev", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/data"} {
				want(t, "mount point "+at, have[at], !slices.Contains(tt.gone, at))
			}
			must(t, m.s.RemovePod(t.Context(), pod))
			m.clean()
		})
	}
}
