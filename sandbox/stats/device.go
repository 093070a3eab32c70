package stats

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// DeviceIO and HugePages are parts of a Usage.
type (
	DeviceIO  = cgroup.DeviceIO
	HugePages = cgroup.HugePages
)

// FileSystem is what there is of the file system of writable layers.
type FileSystem struct {
	Device             string // as DeviceName
	Major, Minor       uint32
	Bytes              uint64
	Inodes, InodesFree uint64 // 0 where they are made as they are needed
}

// ReadFileSystem asks for the file system that dir is on.
func ReadFileSystem(dir string) (FileSystem, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return FileSystem{}, fmt.Errorf("stat %s: %w", dir, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return FileSystem{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	f := FileSystem{Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev), Bytes: fs.Blocks * uint64(fs.Bsize), Inodes: fs.Files, InodesFree: fs.Ffree}
	f.Device = DeviceName(f.Major, f.Minor)
	return f, nil
}

// DeviceName is how a block device is called, "/dev/sda1", or its numbers, "0:35", if it is none of the kernel's.
func DeviceName(major, minor uint32) string {
	numbers := fmt.Sprintf("%d:%d", major, minor)
	link, err := os.Readlink("/sys/dev/block/" + numbers)
	if err != nil {
		return numbers
	}
	return "/dev/" + filepath.Base(link)
}
