package layer

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// topDirectory is FS_TOPDIR_FL of the kernel's linux/fs.h, chattr's T.
const topDirectory = 0x20000

// spread tells an ext4 that the directories in dir have nothing to do with each other, so that it puts each into another block group. Without
// a journal it gives nobody an inode that was deleted in the last minute or, while that is not on disk, in six (recently_deleted in the
// kernel's fs/ext4/ialloc.c), and looks at all of these in the group for each file that is made: milliseconds for a root, if many come and
// go in one group. Other file systems have no such flag.
func spread(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer func() { _ = unix.Close(fd) }() // only a handle
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return nil
	}
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDirectory == 0 {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags|topDirectory))
	}
	if err != nil {
		return fmt.Errorf("spread what is in %s over the file system: %w", dir, err)
	}
	return nil
}
