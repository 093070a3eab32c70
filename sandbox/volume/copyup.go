package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// CopyUp makes the directory dst a copy of the directory src below root, or an empty one if there is none.
func CopyUp(ctx context.Context, root *os.File, src, dst string) error {
	if err := os.Mkdir(dst, 0o755); err != nil {
		return err
	}
	to, err := os.OpenRoot(dst)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }() // nothing is written through it
	from, err := openBelow(root, src)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return to.Chmod(".", 0o755)
	}
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // read-only
	c := copying{from: from, to: to, linked: map[inode]string{}}
	return fs.WalkDir(from.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		return c.copyOne(name)
	})
}

// copying is one copy under way.
type copying struct {
	from, to *os.Root
	linked   map[inode]string // files with several names: the name of the copy
	names    []byte           // room for extended attributes, made for the first file that has any
	value    []byte
}

type inode struct{ dev, ino uint64 }

// openBelow opens a directory below root, where symbolic links end.
func openBelow(root *os.File, name string) (*os.Root, error) {
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // only a path
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// copyOne copies one object with owner, mode, time and extended attributes. Device nodes, pipes and sockets are left out: a
// volume is for data.
func (c *copying) copyOne(name string) error {
	info, err := c.from.Lstat(name)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("owner of %s is not known", name)
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		if name != "." {
			err = c.to.Mkdir(name, 0o700)
		}
	case mode.IsRegular():
		if first, again := c.linked[inode{st.Dev, st.Ino}]; again {
			return c.to.Link(first, name)
		}
		if st.Nlink > 1 {
			c.linked[inode{st.Dev, st.Ino}] = name
		}
		err = copyFile(c.from, c.to, name)
	case mode&fs.ModeSymlink != 0:
		var target string
		if target, err = c.from.Readlink(name); err == nil {
			err = c.to.Symlink(target, name)
		}
	default:
		return nil
	}
	if err != nil {
		return err
	}
	return c.copyAttributes(name, info, st)
}

func (c *copying) copyAttributes(name string, info fs.FileInfo, st *syscall.Stat_t) error {
	to := c.to
	if err := to.Lchown(name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	if err := c.copyXattrs(name); err != nil { // after the owner, whose change takes capabilities away
		return err
	}
	if err := to.Chmod(name, info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return to.Chtimes(name, info.ModTime(), info.ModTime())
}

func copyFile(from, to *os.Root, name string) error {
	src, err := from.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // read-only
	dst, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = dst.ReadFrom(src)
	return errors.Join(err, dst.Close())
}

// xattrMax is how long a value, or all names of a file, can be.
const xattrMax = 64 << 10

// labelXattr is given to the copy by itself: see package selinux.
const labelXattr = "security.selinux"

func (c *copying) copyXattrs(name string) error {
	from, err := c.from.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // read-only
	names, err := c.xattrs(from)
	if err != nil || len(names) == 0 {
		return err
	}
	to, err := c.to.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }() // nothing is written through it
	for _, attr := range names {
		if attr == labelXattr {
			continue
		}
		n, err := unix.Fgetxattr(int(from.Fd()), attr, c.value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), attr, c.value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) {
			return &os.PathError{Op: "copy extended attribute " + attr, Path: name, Err: err}
		}
	}
	return nil
}

// xattrs lists the extended attributes of a file; a file system without any has none.
func (c *copying) xattrs(f *os.File) ([]string, error) {
	n, err := unix.Flistxattr(int(f.Fd()), nil)
	if err == nil && n > 0 {
		if c.names == nil {
			c.names, c.value = make([]byte, xattrMax), make([]byte, xattrMax)
		}
		n, err = unix.Flistxattr(int(f.Fd()), c.names)
	}
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return nil, nil
	case err != nil:
		return nil, &os.PathError{Op: "list extended attributes", Path: f.Name(), Err: err}
	}
	return strings.FieldsFunc(string(c.names[:n]), func(r rune) bool { return r == 0 }), nil
}
