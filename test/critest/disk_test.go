package critest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// onOwnDisk starts a daemon whose root directory is an ext4 file system of its own, in memory.
func onOwnDisk(t *testing.T, store, size string) *daemon {
	t.Helper()
	d := makeOnDisk(t, store, size, "loop", "mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,nodiscard")
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// makeOnDisk makes a daemon whose root directory is a file system of its own, in memory. Where that cannot be made or mounted
// so the test is skipped.
func makeOnDisk(t *testing.T, store, size, options string, mkfs ...string) *daemon {
	t.Helper()
	use(t)
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("%s is not installed", mkfs[0])
	}
	d, err := makeDaemon(fmt.Sprintf("disk%d", len(daemons)), store)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.MkdirTemp("/dev/shm", "critest-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(memory); err != nil {
			t.Error(err)
		}
	})
	image := filepath.Join(memory, "image")
	for _, args := range [][]string{
		{"truncate", "-s", size, image},
		append(mkfs, image),
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	kind := strings.TrimPrefix(mkfs[0], "mkfs.")
	if out, err := exec.Command("mount", "-n", "-t", kind, "-o", options, image, d.root()).CombinedOutput(); err != nil {
		t.Skipf("this kernel mounts no %s with %s: %s", kind, options, out)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(d.root(), 0); err != nil {
			t.Error(err)
		}
	})
	return d
}

// free is how many bytes the daemon's file system has.
func (d *daemon) free(t *testing.T) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.root(), &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}

// noise is an image of so many bytes that do not compress.
func noise(t *testing.T, d *daemon, repo string, size int) string {
	t.Helper()
	rng, body := rand.New(rand.NewPCG(uint64(size), 1)), make([]byte, size)
	for i := range body {
		body[i] = byte(rng.Uint32())
	}
	return pullNew(t, d, repo, ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("noise", string(body), 0o644)}, Compression: "zstd"})
}

// The space of a removed image is there when RemoveImage returns, also if containers of a pod that lives had used it.
func TestRemoveImageFreesAtOnce(t *testing.T) {
	for _, store := range []string{"auto", storeOverlay} {
		t.Run(store, func(t *testing.T) {
			d := onOwnDisk(t, store, "96M")
			check(t, d)
			pull(t, d, suite.busybox)
			p := runPod(t, d)
			before := d.free(t)
			const size = 20 << 20
			ref := noise(t, d, "freed", size)
			if used := before - d.free(t); used < size {
				t.Errorf("an image of %d bytes takes %d", size, used)
			}
			info, err := d.images.ImageFsInfo(bounded(t), &cri.ImageFsInfoRequest{})
			if err != nil || info.GetImageFilesystems()[0].GetUsedBytes().GetValue() < size {
				t.Errorf("ImageFsInfo: %v %v", info, err)
			}
			removeImage(t, d, ref)
			if lost := before - d.free(t); lost > 256<<10 {
				t.Errorf("after RemoveImage %d bytes are not free", lost)
			}
			p.prints(t, "lives\n", "echo lives")
		})
	}
}

// On a disk that is full to its last block pods stop, and pods, containers and images are removed; then there is space.
func TestFullDiskGivesWay(t *testing.T) {
	d := onOwnDisk(t, "auto", "64M")
	check(t, d)
	pull(t, d, suite.busybox)
	ref := noise(t, d, "victim", 10<<20)
	p := runPod(t, d)
	c := p.start(t, "head -c 5000000 /dev/urandom >/written; sleep 1000")
	c.exec(t, "while ! [ -e /written ]; do :; done")
	full := filepath.Join(d.root(), "full")
	if out, err := exec.Command("sh", "-c", "cat /dev/zero >"+full+"; sync -f "+full).CombinedOutput(); !strings.Contains(string(out), "No space left") {
		t.Fatalf("the disk is not full: %v %s", err, out)
	}
	out := c.exec(t, "dd if=/dev/zero of=/more bs=1M count=9 2>&1; true")
	if !strings.Contains(out, "No space left") {
		t.Errorf("the container could write: %q", out)
	}
	c.exec(t, "rm /more")
	if _, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: push(t, "toolarge", ocispec.ImageConfig{},
		registry.Layer{Files: []registry.File{file("large", strings.Repeat("0123456789", 5<<20), 0o644)}, Compression: "gzip"})}}); err == nil ||
		!strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("a pull: %v", err)
	}
	p.stop(t)
	c.remove(t)
	p.remove(t)
	removeImage(t, d, ref)
	removeImage(t, d, suite.busybox)
	if free := d.free(t); free < 10<<20 {
		t.Errorf("%d bytes are free after an image of 10 MiB was removed", free)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	pull(t, d, suite.busybox)
	runPod(t, d).prints(t, "again\n", "echo again")
}
