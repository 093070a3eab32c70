package quota

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNone says that the file system does not count projects.
var ErrNone = errors.New("file system has no project quotas")

// FS is a file system that counts projects.
type FS struct {
	dir      *os.File
	enforces bool
}

// Open returns the file system of a directory; the error is ErrNone if it does not count projects.
func Open(dir string) (*FS, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	fs := &FS{dir: f}
	state := stat{version: statVersion}
	if err = fs.call(getState, 0, unsafe.Pointer(&state)); err == nil && state.flags&accounted == 0 {
		err = unix.ESRCH
	}
	if err == nil {
		_, _, err = fs.Usage(0)
	}
	if err != nil { // ENOSYS, ENOTTY, EINVAL, ESRCH and others: each kind of file system has its own way to say it
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNone, err), f.Close())
	}
	fs.enforces = state.flags&enforced != 0
	return fs, nil
}

// Close closes the directory.
func (fs *FS) Close() error { return fs.dir.Close() }

// Enforces says whether limits hold.
func (fs *FS) Enforces() bool { return fs.enforces }

// Assign gives an empty directory, and so all that will be in it, to a project.
func (fs *FS) Assign(dir string, project uint32) error {
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only a handle
	var attr attributes
	if err := ioctl(f, getAttributes, &attr); err != nil {
		return fmt.Errorf("read the project of %s: %w", dir, err)
	}
	attr.project, attr.flags = project, attr.flags|inherit
	if err := ioctl(f, setAttributes, &attr); err != nil {
		return fmt.Errorf("give %s to project %d: %w", dir, project, err)
	}
	return nil
}

// Usage is what a project holds.
func (fs *FS) Usage(project uint32) (bytes, inodes uint64, err error) {
	var q block
	if err := fs.call(getQuota, project, unsafe.Pointer(&q)); err != nil && !errors.Is(err, unix.ENOENT) { // XFS: never used
		return 0, 0, fmt.Errorf("usage of project %d: %w", project, err)
	}
	return q.space, q.inodes, nil
}

// Limit bounds the bytes that a project may hold; 0 takes the bound away.
func (fs *FS) Limit(project uint32, bytes uint64) error {
	q := block{hardBlocks: (bytes + unit - 1) / unit, softBlocks: (bytes + unit - 1) / unit, valid: blockLimits}
	if err := fs.call(setQuota, project, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("limit project %d: %w", project, err)
	}
	return nil
}

// What the kernel's linux/quota.h, linux/dqblk_xfs.h and linux/fs.h say.
const (
	projects = 2 // PRJQUOTA

	getQuota = 0x800007   // Q_GETQUOTA
	setQuota = 0x800008   // Q_SETQUOTA
	getState = 'X'<<8 + 8 // Q_XGETQSTATV
	unit     = 1024       // of limits in blocks

	statVersion = 1
	accounted   = 1 << 4 // FS_QUOTA_PDQ_ACCT
	enforced    = 1 << 5 // FS_QUOTA_PDQ_ENFD

	blockLimits = 1 // QIF_BLIMITS

	getAttributes = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes = 0x401c5820 // FS_IOC_FSSETXATTR
	inherit       = 0x200      // FS_XFLAG_PROJINHERIT
)

// block is struct if_dqblk.
type block struct {
	hardBlocks, softBlocks, space  uint64
	hardInodes, softInodes, inodes uint64
	blocksExpireAt, inodesExpireAt uint64
	valid                          uint32
	_                              uint32
}

// stat is struct fs_quota_statv.
type stat struct {
	version int8
	_       uint8
	flags   uint16
	_       [41]uint32
}

// attributes is struct fsxattr.
type attributes struct {
	flags, extent, extents, project, cow uint32
	_                                    [8]byte
}

func (fs *FS) call(command int, project uint32, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, fs.dir.Fd(), uintptr(command<<8|projects), uintptr(project), uintptr(arg), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ioctl(f *os.File, request uintptr, attr *attributes) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(attr)))
	if errno != 0 {
		return errno
	}
	return nil
}
