package reset

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const mountPoint = "/mnt/disk"

func command(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
}

// makeDisk formats the disk, where criserver may run on an older file system, and mounts it.
func makeDisk(t *testing.T, kind string) {
	t.Helper()
	if running != nil {
		running.stop(t)
		eventually(t, func() string { return "nobody uses the disk" }, func() bool { return unix.Unmount(mountPoint, 0) == nil })
	}
	if kind == "ext4" {
		command(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk)
	} else {
		command(t, "mkfs.xfs", "-q", "-f", disk)
	}
	mountDisk(t, kind)
}

func mountDisk(t *testing.T, kind string) {
	t.Helper()
	if err := os.MkdirAll(mountPoint, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", "-n", "-t", kind, disk, mountPoint)
}

// kernelWrites says when the kernel writes what is dirty and nobody syncs: within a second, or not at all.
func kernelWrites(t *testing.T, kind string, eager bool) {
	t.Helper()
	set := func(eagerly, lazily, name string) {
		if !eager {
			eagerly = lazily
		}
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(eagerly), 0); err != nil {
			t.Fatal(err)
		}
	}
	set("1", "0", "vm/dirty_writeback_centisecs")
	set("1", "360000", "vm/dirty_expire_centisecs")
	switch {
	case kind == "xfs":
		set("100", "720000", "fs/xfs/xfssyncd_centisecs")
	case eager:
		command(t, "mount", "-n", "-o", "remount,commit=1", mountPoint)
	default:
		command(t, "mount", "-n", "-o", "remount,commit=600", mountPoint)
	}
}

func syncDisk(t *testing.T) {
	t.Helper()
	f, err := os.Open(mountPoint)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}

// used is how many bytes of the disk are taken, once that does not change any more.
func used(t *testing.T) (bytes int64) {
	t.Helper()
	const steady = 5
	for same := 0; same < steady; time.Sleep(50 * time.Millisecond) {
		syncDisk(t)
		var st unix.Statfs_t
		if err := unix.Statfs(mountPoint, &st); err != nil {
			t.Fatal(err)
		}
		now := int64(st.Blocks-st.Bfree) * st.Bsize
		if same++; now != bytes {
			bytes, same = now, 0
		}
	}
	return bytes
}

// strays are files that belong to no layer of which criserver knows, and to nothing else that it keeps.
func strays(t *testing.T, layers map[string]bool) (list []string) {
	t.Helper()
	root := filepath.Join(mountPoint, "root")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		dir, base := filepath.Split(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != root: // what is deleted in the background goes while one looks
			return nil
		case err != nil:
			return err
		case dir == "layers/layers/" && layers[base]:
			return fs.SkipDir
		case dir == "layers/layers/", dir == "layers/containers/", dir == "layers/tmp/", dir == "layers/trash/",
			dir == "images/" && !strings.HasPrefix(base, "images.db"):
			list = append(list, name)
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
