package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// IDMappedTmpfs stands for the file systems that got idmapped mounts late.
var IDMappedTmpfs = Probe("idmapped-tmpfs", "6.3", func() error {
	return withUserNS(func(userns int) error {
		fd, err := detachedTmpfs()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return absentIf(idmap(fd, userns), unix.EINVAL, unix.ENOSYS)
	})
}).optional("emptyDir volumes in memory are refused in pods with user namespaces")

// idmap gives a detached mount the mapping of a user namespace.
func idmap(mount, userns int) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("idmap: %w", err)
	}
	return nil
}

// attachIDMapped covers dir with an idmapped clone of source.
func attachIDMapped(source, dir string, userns int) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := idmap(fd, userns); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// IDMapped says whether the file system that dir is on can be mounted idmapped (Linux 5.12 and newer, file system by
// file system; the file system of the image store must, for pods with user namespaces). The answer is not cached.
// An error means that it could not be told. The name to refuse it by is "idmapped".
func IDMapped(dir string) (bool, error) {
	if refused("idmapped") {
		return false, nil
	}
	return yesOrNo("idmapped mounts of "+dir, withUserNS(func(userns int) error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return absentIf(idmap(fd, userns), unix.EINVAL, unix.ENOSYS)
	}))
}
