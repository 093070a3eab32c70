package imageservice

import (
	"archive/tar"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/registry"
)

// small mounts a file system of the given size for a test.
func small(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// disk mounts an ext4 file system of its own for a test, whose device lies in memory, so that syncing costs nothing.
func disk(t testing.TB, size string) string {
	t.Helper()
	image := filepath.Join(memory(t), "image")
	command(t, "truncate", "-s", size, image)
	command(t, "mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", image)
	return mounted(t, image)
}

// memory is a directory in memory.
func memory(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir, err := os.MkdirTemp("/dev/shm", "disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // gone at the latest with the machine
	return dir
}

// mounted mounts a file with a file system.
func mounted(t testing.TB, image string) string {
	t.Helper()
	dir := t.TempDir()
	command(t, "mount", "-n", "-o", "loop", image, dir)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

func free(t testing.TB, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bfree * uint64(st.Bsize)
}

// noisy is an image of layers that do not compress, a megabyte each.
func noisy(t testing.TB, layers int) *registry.Image {
	rng := rand.New(rand.NewPCG(uint64(layers), 2))
	var spec registry.Spec
	for i := range layers {
		noise := make([]byte, 1<<20)
		for j := range noise {
			noise[j] = byte(rng.Uint32())
		}
		spec.Layers = append(spec.Layers, registry.Layer{
			Compression: "zstd", Files: []registry.File{{Header: tar.Header{Name: fmt.Sprint(i)}, Body: string(noise)}},
		})
	}
	return registry.Build(t, spec)
}

func TestFullDisk(t *testing.T) {
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.Skip("docker-registry is not installed")
	}
	reg := registry.Start(t, registry.Options{})
	fits, big := noisy(t, 3), noisy(t, 20)
	reg.PushImage(t, "app", "fits", fits)
	reg.PushImage(t, "app", "big", big)
	dir := small(t, "12m")
	n := nodeAt(t, dir)
	n.pull(t, reg.Addr+"/app:fits")
	before := free(t, dir)
	_, err := n.Pull(t.Context(), PullRequest{Ref: reg.Addr + "/app:big"})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "stage layers: layer ") || errors.Is(err, ErrInvalidImage) {
		t.Errorf("%v", err)
	}
	if after := free(t, dir); after != before {
		t.Errorf("%d bytes are free, before the pull it were %d", after, before)
	}
	if l := n.List(); len(l) != 1 {
		t.Errorf("%d images", len(l))
	}

	// Even when nothing at all is left, an image can be removed, and that frees its space.
	undo := fill(t, dir)
	if err := n.Remove(t.Context(), reg.Addr+"/app:fits"); err != nil {
		t.Error(err)
	}
	if got := free(t, dir); got < 3<<20 {
		t.Errorf("%d bytes are free after removing 3 MiB", got)
	}
	undo()
	n.mustBeEmpty(t)
	n.stop()
}

// fill takes what is left of a small file system until undo is called.
func fill(t testing.TB, dir string) (undo func()) {
	t.Helper()
	name := filepath.Join(dir, "fill")
	if out, err := exec.Command("sh", "-c", "cat /dev/zero > "+name).CombinedOutput(); err == nil {
		t.Fatalf("the disk is not full: %s", out)
	}
	if got := free(t, dir); got != 0 {
		t.Fatalf("%d bytes are free", got)
	}
	return func() {
		if err := unix.Unlink(name); err != nil {
			t.Fatal(err)
		}
	}
}

// The layers fit, the record of the image does not.
func TestFullDiskOfTheDatabase(t *testing.T) {
	l := newLiar(t, incompressible(t))
	editConfig(t, l, func(c *ocispec.Image) { c.Author = strings.Repeat("a", 200<<10) }) // more than the database has spare
	dir := small(t, "2m")
	n := newNode(t, func(c *Config) { c.Dir = dir })
	undo := fill(t, dir)
	_, err := n.Pull(t.Context(), PullRequest{Ref: l.Listener.Addr().String() + "/app"})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "stage record") || errors.Is(err, ErrInvalidImage) {
		t.Errorf("%v", err)
	}
	n.mustBeEmpty(t)
	undo()
	n.pull(t, l.Listener.Addr().String()+"/app")
	n.stop()
}

func TestRemovedSpaceIsFreeOnReturn(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	img := noisy(t, 6)
	reg.PushImage(t, "app", "v1", img)
	dir := small(t, "64m")
	n := nodeAt(t, dir)
	before := free(t, dir)
	n.pull(t, reg.Addr+"/app:v1")
	got, err := n.Find(string(img.ID))
	used := before - free(t, dir)
	if err != nil || used < 6<<20 || got.Size < 6<<20 || n.Usage().Bytes > used {
		t.Errorf("%d bytes used, image says %+v, usage %+v", used, got, n.Usage())
	}
	if err := n.Remove(t.Context(), string(img.ID)); err != nil {
		t.Fatal(err)
	}
	if kept := int64(before) - int64(free(t, dir)); kept > 64<<10 { // of the database
		t.Errorf("%d bytes are not free", kept)
	}
	n.stop()
}
