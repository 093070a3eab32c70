package dirtree

import (
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tarstream"
)

var epoch = time.Unix(0, 0)

const dirBytes = 4096 // what a directory is counted as

// Writer unpacks one layer. Not safe for concurrent use. It ends with Finish or Abort.
type Writer struct {
	root   int
	limits tarstream.Limits
	buf    []byte
	made   int // inodes, also those that were replaced
	sum    Summary
	dirs   map[string]pendingDir // by path without symbolic links
	kept   tarstream.Kept        // of dirs

	contents []contentSum // of regular files in the order in which they were written

	lastFD             int    // a directory that is likely to be wanted again, or -1
	lastReal, lastPath string // its path without symbolic links, and as an entry spelled it
	lastKnown          bool   // lastPath still leads there
}

// pendingDir is what a directory gets at the end.
type pendingDir struct {
	mtime time.Time
	acl   string // default access list
}

// Summary says what a layer holds.
type Summary struct {
	Inodes int64
	Bytes  int64 // on disk, 4 KiB for each directory
}

// NewWriter begins a layer in the empty directory root. Default attributes of the root are set.
func NewWriter(root string, l tarstream.Limits) (*Writer, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer directory %s: %w", root, err)
	}
	w := &Writer{root: fd, limits: l, lastFD: -1, dirs: map[string]pendingDir{}, sum: Summary{Inodes: 1, Bytes: dirBytes}}
	e := &tarstream.Entry{Kind: tarstream.Dir, Perm: 0o755, ModTime: epoch}
	if err := w.finishDir(e, fd, ".", "", false); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// Unpack adds all entries of r.
func (w *Writer) Unpack(r *tarstream.Reader) error { return r.Each(w.add) }

func (w *Writer) add(e *tarstream.Entry, content io.Reader) error {
	if err := w.place(e, content); err != nil {
		if errors.Is(err, tarstream.ErrInvalid) {
			return err
		}
		return fmt.Errorf("entry %s: %w", tarstream.Quote(e.Name), err)
	}
	return nil
}

func (w *Writer) place(e *tarstream.Entry, content io.Reader) error {
	if e.Kind == tarstream.Opaque {
		fd, _, err := w.dir(e, e.Path)
		if err != nil {
			return err
		}
		return setOpaque(fd)
	}
	if e.Path == "" {
		return w.resetDir(e, w.root, ".", "")
	}
	parent, name := tarstream.Split(e.Path)
	fd, real, err := w.dir(e, parent) // stays open and right whatever is removed below it
	if err != nil {
		return err
	}
	switch e.Kind {
	case tarstream.Whiteout:
		return w.addWhiteout(e, fd, name)
	case tarstream.Hardlink:
		return w.addLink(e, fd, name)
	case tarstream.Dir:
		return w.addDir(e, fd, name, path.Join(real, name))
	}
	if err := w.replace(fd, name); err != nil {
		return err
	}
	if err := w.count(e); err != nil {
		return err
	}
	e.Kept.Path = path.Join(real, name)
	return w.addFile(e, fd, name, content)
}

// replace frees the name. If something was there, paths may lead elsewhere from now on.
func (w *Writer) replace(fd int, name string) error {
	_, ok, err := stat(fd, name)
	if err != nil || !ok {
		return err
	}
	w.lastKnown = false
	return w.remove(fd, name)
}

// count takes one more inode.
func (w *Writer) count(e *tarstream.Entry) error {
	w.sum.Inodes++
	if e.Kind == tarstream.Dir {
		w.sum.Bytes += dirBytes
	}
	if w.made++; w.made > w.limits.Entries {
		return tarstream.Invalidf(e.Name, "more than the limit of %d entries, implied directories counted", w.limits.Entries)
	}
	return nil
}

func (w *Writer) addWhiteout(e *tarstream.Entry, fd int, name string) error {
	st, ok, err := stat(fd, name)
	if err != nil {
		return err
	}
	if !ok {
		if err := w.count(e); err != nil {
			return err
		}
		if err := unix.Fsetxattr(fd, tarstream.OverlayOrigin, nil, 0); err != nil {
			return fmt.Errorf("set xattr %s: %w", tarstream.OverlayOrigin, err)
		}
		return unix.Mknodat(fd, name, unix.S_IFCHR, 0)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	dir, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }() // a directory
	return setOpaque(dir)
}

func (w *Writer) addLink(e *tarstream.Entry, fd int, name string) error {
	missing := tarstream.Invalidf(e.Name, "hard link to %s, which is no file of this layer", tarstream.Quote(e.Target))
	target, st, err := w.target(e)
	if err != nil {
		return err
	}
	if target >= 0 {
		defer func() { _ = unix.Close(target) }() // O_PATH
	}
	old, ok, err := stat(fd, name)
	if err != nil {
		return err
	}
	if target >= 0 && ok && old.Ino == st.Ino {
		return nil
	}
	if err := w.replace(fd, name); err != nil {
		return err
	}
	if target < 0 {
		return missing
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", target), fd, name, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.ENOENT) { // it was what the link replaces, or below it
		return missing
	}
	return err
}

// target opens the file that a hard link names; -1 if there is none that can be linked.
func (w *Writer) target(e *tarstream.Entry) (fd int, st unix.Stat_t, err error) {
	parent, name := tarstream.Split(e.Target)
	real, ok, err := tarstream.Walk(w, w.limits, e.Name, parent, false)
	if err != nil || !ok {
		return -1, st, err
	}
	fd, err = w.open(path.Join(real, name), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return -1, st, nil
	}
	if err != nil {
		return -1, st, err
	}
	err = unix.Fstat(fd, &st)
	if err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(&st) {
		_ = unix.Close(fd) // O_PATH
		return -1, st, err
	}
	return fd, st, nil
}

func (w *Writer) addDir(e *tarstream.Entry, fd int, name, real string) error {
	st, ok, err := stat(fd, name)
	if err != nil {
		return err
	}
	if ok && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return w.resetDir(e, fd, name, real)
	}
	if err := w.replace(fd, name); err != nil {
		return err
	}
	if err := w.count(e); err != nil {
		return err
	}
	if err := unix.Mkdirat(fd, name, 0o700); err != nil {
		return err
	}
	return w.finishDir(e, fd, name, real, ok && isWhiteout(&st))
}

// Finish sets what had to wait and lists in inventory what is there, for Check.
func (w *Writer) Finish(inventory io.Writer) (Summary, error) {
	defer w.Abort()
	for path, d := range w.dirs {
		if err := w.settle(path, d); err != nil {
			return Summary{}, fmt.Errorf("directory %s: %w", tarstream.Quote(path), err)
		}
	}
	return w.sum, w.writeInventory(inventory)
}

func (w *Writer) settle(path string, d pendingDir) error {
	fd, err := w.open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // replaced by a later entry
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // a directory
	if d.acl != "" {
		if err := unix.Fsetxattr(fd, tarstream.ACLDefault, []byte(d.acl), 0); err != nil {
			return fmt.Errorf("set xattr %s: %w", tarstream.ACLDefault, err)
		}
	}
	return setTimes(fd, "", d.mtime)
}

// Abort closes what is open. What was unpacked stays; it is harmless after Finish.
func (w *Writer) Abort() {
	w.closeLast()
	if w.root >= 0 {
		_ = unix.Close(w.root) // a directory
		w.root = -1
	}
}
