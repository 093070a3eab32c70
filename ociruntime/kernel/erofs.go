package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Erofs says how EROFS images in some directory can be mounted.
type Erofs struct {
	FileBacked bool // from the file itself, without a loop device: Linux 6.12, and a file system with a page cache of its own
	DirectIO   bool // with the option directio, without which everything is cached twice
}

// ErofsFileBacked mounts a tiny EROFS image from a file in dir, detached, and reads its root directory. The file system
// that dir is on decides, so the answer is not cached. An error means that it could not be told.
// The names to refuse the two by are "erofs" and "erofs-directio".
func ErofsFileBacked(dir string) (Erofs, error) {
	if refused("erofs") {
		return Erofs{}, nil
	}
	image, err := os.CreateTemp(dir, ".erofs-probe-")
	if err != nil {
		return Erofs{}, fmt.Errorf("probe erofs in %s: %w", dir, err)
	}
	defer image.Close()
	_, err = image.Write(emptyErofs())
	if err = errors.Join(err, os.Remove(image.Name())); err != nil {
		return Erofs{}, fmt.Errorf("probe erofs in %s: %w", dir, err)
	}
	var answer Erofs
	answer.FileBacked, err = yesOrNo("erofs in "+dir, mountErofs(image))
	if !answer.FileBacked || refused("erofs-directio") {
		return answer, err
	}
	answer.DirectIO, err = yesOrNo("erofs with directio in "+dir, mountErofs(image, setFlag("directio")))
	return answer, err
}

// yesOrNo reads a probe's error.
func yesOrNo(what string, err error) (bool, error) {
	if err == nil || errors.Is(err, errAbsent) {
		return err == nil, nil
	}
	return false, fmt.Errorf("probe %s: %w", what, err)
}

// mountErofs mounts the image and lists its root: with directio only reading shows whether it works.
func mountErofs(image *os.File, options ...func(int) error) error {
	options = append(options, setString("source", viaProc(int(image.Fd()))))
	mount, err := detached("erofs", options...)
	if err != nil {
		return absentIf(err, unix.ENODEV, unix.ENOTBLK, unix.EINVAL, unix.EOPNOTSUPP)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var entries [512]byte
	n, err := unix.Getdents(fd, entries[:])
	if err == nil && n == 0 {
		return fmt.Errorf("%w: the root directory reads as nothing", errAbsent)
	}
	return absentIf(err, unix.EIO, unix.EINVAL, unix.EOPNOTSUPP)
}

// emptyErofs is an EROFS image of two blocks: superblock and root inode in the first, the root directory in the second.
// (Linux: Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h.)
func emptyErofs() []byte {
	const (
		block      = 4096
		superblock = 1024
		root       = superblock + 128
		inodeSlot  = 32
		rootNID    = root / inodeSlot
	)
	image := make([]byte, 2*block)
	le := binary.LittleEndian

	sb := image[superblock:]
	le.PutUint32(sb[0:], 0xe0f5e1e2) // magic
	sb[12] = 12                      // log2 of the block size
	le.PutUint16(sb[14:], rootNID)
	le.PutUint64(sb[16:], 1) // inodes
	le.PutUint32(sb[36:], 2) // blocks; metadata begins at block 0

	inode := image[root:]                            // compact, flat
	le.PutUint16(inode[4:], unix.S_IFDIR|0o755)      // mode
	le.PutUint16(inode[6:], 2)                       // links
	le.PutUint32(inode[8:], uint32(2*12+len("..."))) // size
	le.PutUint32(inode[16:], 1)                      // first block of the data
	le.PutUint32(inode[20:], 1)                      // inode number

	directory := image[block:]
	for i, nameOffset := range []uint16{24, 25} { // "." and ".."
		entry := directory[12*i:]
		le.PutUint64(entry[0:], rootNID)
		le.PutUint16(entry[8:], nameOffset)
		entry[10] = 2 // a directory
	}
	copy(directory[24:], "...")
	return image
}
