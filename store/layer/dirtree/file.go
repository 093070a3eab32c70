package dirtree

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/sums"
	"github.com/criserver/criserver/store/layer/tarstream"
)

// copyBuffer is how much of a file is read and written at once, in bytes.
const copyBuffer = 512 << 10

// addFile makes anything that is not a directory, a link to a file or a whiteout. The name is free.
func (w *Writer) addFile(e *tarstream.Entry, fd int, name string, content io.Reader) (err error) {
	switch e.Kind {
	case tarstream.Regular:
		return w.addRegular(e, fd, name, content)
	case tarstream.Symlink:
		err = unix.Symlinkat(e.Target, fd, name)
	case tarstream.Char:
		err = unix.Mknodat(fd, name, unix.S_IFCHR, int(unix.Mkdev(e.Major, e.Minor)))
	case tarstream.Block:
		err = unix.Mknodat(fd, name, unix.S_IFBLK, int(unix.Mkdev(e.Major, e.Minor)))
	case tarstream.Fifo:
		err = unix.Mknodat(fd, name, unix.S_IFIFO, 0)
	default:
		return tarstream.Invalidf(e.Name, "kind %d is not known", e.Kind)
	}
	if err != nil {
		return fmt.Errorf("make it: %w", err)
	}
	if err := unix.Fchownat(fd, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if e.Kind != tarstream.Symlink {
		if err := unix.Fchmodat(fd, name, e.Perm, 0); err != nil { // made a moment ago, so it is no link
			return fmt.Errorf("set mode: %w", err)
		}
	}
	for _, x := range e.Xattrs {
		if err := unix.Lsetxattr(below(fd, name), x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("set xattr %s: %w", tarstream.Quote(x.Name), err)
		}
	}
	return setTimes(fd, name, e.ModTime)
}

func (w *Writer) addRegular(e *tarstream.Entry, fd int, name string, content io.Reader) error {
	n, err := unix.Openat(fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make it: %w", err)
	}
	f := os.NewFile(uintptr(n), name)
	sum, err := w.fill(f, content, e.Size)
	if err == nil {
		err = w.attributes(n, e)
	}
	if err == nil {
		err = setTimes(n, "", e.ModTime)
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(n, &st)
	}
	w.sum.Bytes += st.Blocks * 512
	w.contents = append(w.contents, contentSum{st.Ino, sum})
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// fill copies size bytes, leaves holes where the content is zero for long, and gives its checksum.
func (w *Writer) fill(f *os.File, content io.Reader, size int64) (sum uint32, err error) {
	if w.buf == nil && size > 0 {
		w.buf = make([]byte, copyBuffer)
	}
	for off := int64(0); off < size; {
		n, err := io.ReadFull(content, w.buf[:min(size-off, copyBuffer)])
		if err != nil {
			return 0, err
		}
		if err := tarstream.WriteSparse(f, w.buf[:n], off); err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
		sum = sums.Update(sum, w.buf[:n])
		off += int64(n)
	}
	if size <= 0 {
		return 0, nil
	}
	if err := f.Truncate(size); err != nil {
		return 0, fmt.Errorf("set size: %w", err)
	}
	return sum, nil
}

// attributes sets owner, mode and extended attributes, in the order in which none undoes another.
func (w *Writer) attributes(fd int, e *tarstream.Entry) error {
	if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Fchmod(fd, e.Perm); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	for _, x := range e.Xattrs {
		if x.Name == tarstream.ACLDefault {
			continue // later, or new children would inherit it
		}
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("set xattr %s: %w", tarstream.Quote(x.Name), err)
		}
	}
	return nil
}

// finishDir gives the directory name in fd, whose path is real, what e says.
func (w *Writer) finishDir(e *tarstream.Entry, fd int, name, real string, opaque bool) error {
	dir, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", tarstream.Quote(real), err)
	}
	defer func() { _ = unix.Close(dir) }() // a directory
	if err := w.attributes(dir, e); err != nil {
		return err
	}
	if opaque {
		if err := setOpaque(dir); err != nil {
			return err
		}
	}
	later := pendingDir{mtime: e.ModTime}
	for _, x := range e.Xattrs {
		if x.Name == tarstream.ACLDefault {
			later.acl = x.Value
		}
	}
	w.dirs[real] = later
	return w.kept.Add(w.limits, e.Name, len(real)+len(later.acl))
}

// resetDir gives a directory that is there already what a later entry says. Its content and opacity stay.
func (w *Writer) resetDir(e *tarstream.Entry, fd int, name, real string) error {
	dir, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", tarstream.Quote(real), err)
	}
	err = clearXattrs(dir)
	_ = unix.Close(dir) // a directory
	if err != nil {
		return fmt.Errorf("remove xattrs: %w", err)
	}
	return w.finishDir(e, fd, name, real, false)
}

// clearXattrs removes what an earlier entry may have set.
func clearXattrs(dir int) error {
	size, err := unix.Flistxattr(dir, nil)
	if err != nil || size == 0 {
		return err
	}
	buf := make([]byte, size)
	if size, err = unix.Flistxattr(dir, buf); err != nil {
		return err
	}
	for _, name := range strings.Split(string(buf[:size]), "\x00") {
		switch name {
		case "", tarstream.OverlayOpaque, tarstream.OverlayOrigin, tarstream.SELinux:
			continue
		}
		if err := unix.Fremovexattr(dir, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func setOpaque(dir int) error {
	if err := unix.Fsetxattr(dir, tarstream.OverlayOpaque, []byte("y"), 0); err != nil {
		return fmt.Errorf("set xattr %s: %w", tarstream.OverlayOpaque, err)
	}
	return nil
}

// setTimes sets both times of name in fd, or of fd itself if name is empty.
func setTimes(fd int, name string, t time.Time) error {
	spec := unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH // Linux 5.8
	}
	err := unix.UtimesNanoAt(fd, name, []unix.Timespec{spec, spec}, flags)
	if err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
