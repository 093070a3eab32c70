package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/store/layer"
)

// pauseBinary builds pause once; CRISERVER_TEST_PAUSE names another one, such as that with sanitizers.
var pauseBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("CRISERVER_TEST_PAUSE"); path != "" {
		return path, nil
	}
	if out, err := exec.Command("make", "-s", "-C", "../pause/src", "all").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pause: %w\n%s", err, out)
	}
	return filepath.Abs("../bin/pause")
})

// realNode is this machine: the embedded runtime and overlays of one directory, without a network of pods.
type realNode struct {
	*node   // for what is not real
	t       testing.TB
	dir     string
	parent  string // cgroup
	cgroups *cgroup.Hierarchies
	runtime *ociruntime.Runtime
	s       *Service
}

func newRealNode(t testing.TB) *realNode {
	t.Helper()
	r := realNodeIn(t, t.TempDir(), "/sandboxtest-"+newID()[:8])
	r.makeImage()
	r.start(nil)
	t.Cleanup(r.end)
	return r
}

// realNodeIn makes the node of a directory that may have been used before.
func realNodeIn(t testing.TB, dir, parent string) *realNode {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	r := &realNode{node: newNode(), t: t, dir: dir, parent: parent}
	binary, err := pauseBinary()
	r.must(err)
	r.cgroups, err = cgroup.Detect()
	r.must(err)
	r.runtime, err = ociruntime.New(ociruntime.Config{PauseBinary: binary, WorkDir: t.TempDir(), Cgroups: r.cgroups, Log: slog.New(slog.DiscardHandler)})
	r.must(err)
	return r
}

func (r *realNode) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// start runs a criserver; boundary may be nil.
func (r *realNode) start(boundary func(string)) {
	r.t.Helper()
	var err error
	r.s, err = newService(Config{StateDir: r.dir + "/state", RootDir: r.dir + "/root", NetNSDir: r.dir + "/netns",
		Runtime: Embedded(r.runtime), Images: r, Network: r.node, Layers: r.node, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil))})
	r.must(err)
	r.s.boundary = boundary
	r.must(r.s.connect(r.t.Context()))
	<-r.s.Recovered()
}

// end removes all pods and checks that nothing is left.
func (r *realNode) end() {
	for _, p := range r.s.ListPods() {
		if err := r.s.RemovePod(context.Background(), p.ID); err != nil {
			r.t.Error(err)
		}
	}
	r.s.Close(context.Background())
	for _, h := range r.cgroups.List() {
		// A leaf or a process that is left in it makes this fail.
		if err := unix.Rmdir(h.MountPoint + r.parent); err != nil && err != unix.ENOENT {
			r.t.Errorf("remove %s%s: %v", h.MountPoint, r.parent, err)
		}
	}
	for _, dir := range []string{"state/pods", "root/ledger", "root/volumes", "roots"} {
		entries, _ := os.ReadDir(filepath.Join(r.dir, dir))
		for _, e := range entries {
			r.t.Errorf("left in %s: %s", dir, e.Name())
		}
	}
	_, _ = r.runtime.Close(), r.cgroups.Close()
}

// makeImage makes a root file system of Debian's busybox-static.
func (r *realNode) makeImage() {
	r.t.Helper()
	for _, d := range []string{"bin", "etc", "proc", "dev", "sys", "tmp", "data"} {
		r.must(os.MkdirAll(filepath.Join(r.dir, "image", d), 0o755))
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		r.t.Skip("needs busybox-static: ", err)
	}
	r.must(os.WriteFile(r.dir+"/image/bin/busybox", busybox, 0o755))
	for _, applet := range []string{"sh", "true", "cat", "sleep", "id", "echo", "hostname", "kill", "head", "ls", "readlink"} {
		r.must(os.Symlink("busybox", filepath.Join(r.dir, "image/bin", applet)))
	}
	r.must(os.WriteFile(r.dir+"/image/etc/passwd", []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"), 0o644))
	r.must(os.WriteFile(r.dir+"/image/data/seed", []byte("seed\n"), 0o640))
	r.must(os.Chown(r.dir+"/image/data/seed", 1000, 1000))
}

func (r *realNode) Config(ref string) (string, string, ocispec.Image, error) {
	if ref != testImage {
		return "", "", ocispec.Image{}, ErrNotFound
	}
	return "sha256:00", "test@sha256:00", ocispec.Image{Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"},
		Volumes: map[string]struct{}{"/data": {}}}, RootFS: ocispec.RootFS{DiffIDs: []digest.Digest{testLayer}}}, nil
}

func (r *realNode) Volume(ref string) (string, error) {
	id, _, _, err := r.Config(ref)
	return id, err
}

// Rootfs is an overlay, as a detached mount.
func (r *realNode) Rootfs(_ context.Context, _, id string, _ layer.RootOptions) (*os.File, error) {
	dir := filepath.Join(r.dir, "roots", id)
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fs) }()
	for _, o := range [][2]string{{"lowerdir", r.dir + "/image"}, {"upperdir", dir + "/upper"}, {"workdir", dir + "/work"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

func (r *realNode) ReleaseRootfs(_ context.Context, id string) error {
	return os.RemoveAll(filepath.Join(r.dir, "roots", id))
}

func (r *realNode) podConfig(name string) *runtimev1.PodSandboxConfig {
	return &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		Hostname:     "h-" + name,
		LogDirectory: r.dir + "/logs",
		Linux: &runtimev1.LinuxPodSandboxConfig{CgroupParent: r.parent, SecurityContext: &runtimev1.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE, Pid: runtimev1.NamespaceMode_CONTAINER}}},
	}
}

func (r *realNode) containerConfig(name string, command ...string) *runtimev1.ContainerConfig {
	return &runtimev1.ContainerConfig{
		Metadata: &runtimev1.ContainerMetadata{Name: name},
		Image:    &runtimev1.ImageSpec{Image: testImage},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtimev1.LinuxContainerConfig{SecurityContext: &runtimev1.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE, Pid: runtimev1.NamespaceMode_CONTAINER}}},
	}
}

// run makes and starts a container.
func (r *realNode) run(pod ID, config *runtimev1.ContainerConfig) ContainerID {
	r.t.Helper()
	id, err := r.s.CreateContainer(r.t.Context(), pod, config, nil)
	r.must(err)
	r.must(r.s.StartContainer(r.t.Context(), id))
	return id
}

// exited waits for the end of a container.
func (r *realNode) exited(id ContainerID) *ContainerStatus {
	r.t.Helper()
	c, err := r.s.container(id)
	r.must(err)
	select {
	case <-c.exited:
	case <-time.After(20 * time.Second):
		r.t.Fatal("the container does not exit")
	}
	return c.status.Load()
}

func (r *realNode) log(name string) string {
	r.t.Helper()
	data, err := os.ReadFile(r.dir + "/logs/" + name + ".log")
	r.must(err)
	var lines []string
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		lines = append(lines, fields[len(fields)-1])
	}
	return strings.Join(lines, "|")
}
