package specgen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxDevices bounds what a directory may hold.
const maxDevices = 16384

// HostDevices returns the device at a path of the host, or all below a directory. A link at the path itself is followed;
// in a directory links, and what vanishes meanwhile, are left out, as are the mounts that every container has of its
// own. Paths of the result are below the given one.
func HostDevices(path string) ([]specs.LinuxDevice, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(resolved)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		d, ok := device(path, info)
		if !ok {
			return nil, fmt.Errorf("%s is not a device", path)
		}
		return []specs.LinuxDevice{d}, nil
	}
	var found []specs.LinuxDevice
	err = filepath.WalkDir(resolved, func(at string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}, entry.Name()):
			return fs.SkipDir
		case entry.Type()&fs.ModeDevice == 0:
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil // gone
		}
		below, err := filepath.Rel(resolved, at)
		if err != nil {
			return err
		}
		if d, ok := device(filepath.Join(path, below), info); ok {
			found = append(found, d)
		}
		if len(found) > maxDevices {
			return fmt.Errorf("more than %d devices", maxDevices)
		}
		return nil
	})
	return found, err
}

func device(path string, info fs.FileInfo) (specs.LinuxDevice, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return specs.LinuxDevice{}, false
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, false
	}
	mode := info.Mode().Perm()
	return specs.LinuxDevice{Path: path, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid}, true
}
