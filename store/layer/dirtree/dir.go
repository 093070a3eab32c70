package dirtree

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// in is how every path of a layer is resolved.
const in = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// open resolves a path of the layer that has no symbolic links, but maybe as its last component. What is longer than the
// kernel takes is resolved in parts.
func (w *Writer) open(p string, flags int, resolve uint64) (int, error) {
	if p == "" {
		p = "."
	}
	at := w.root
	for len(p) >= unix.PathMax {
		cut := strings.LastIndexByte(p[:unix.PathMax], '/')
		next, err := unix.Openat2(at, p[:cut], &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: in | unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			return -1, err
		}
		defer func() { _ = unix.Close(next) }() // O_PATH
		at, p = next, p[cut+1:]
	}
	return unix.Openat2(at, p, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: in | resolve})
}

// dir gives a descriptor of the directory p, which stays w's, and its path without symbolic links.
// Missing directories are made.
func (w *Writer) dir(e *tarstream.Entry, p string) (fd int, real string, err error) {
	if w.lastKnown && p == w.lastPath {
		return w.lastFD, w.lastReal, nil
	}
	real, _, err = tarstream.Walk(w, w.limits, e.Name, p, true)
	if err != nil {
		return -1, "", err
	}
	fd, err = w.open(real, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return -1, "", fmt.Errorf("open directory %s: %w", tarstream.Quote(real), err)
	}
	w.closeLast()
	w.lastFD, w.lastPath, w.lastReal, w.lastKnown = fd, p, real, true
	return fd, real, nil
}

func (w *Writer) closeLast() {
	if w.lastFD >= 0 {
		_ = unix.Close(w.lastFD) // a directory
	}
	w.lastFD, w.lastKnown = -1, false
}

// Root, Parent, Lookup and Mkdir make w a tarstream.Tree of paths without symbolic links.

// Root is the layer's root.
func (w *Writer) Root() string { return "" }

// Parent is the directory above dir.
func (w *Writer) Parent(dir string) string {
	parent, _ := tarstream.Split(dir)
	return parent
}

// Lookup says what name in dir is.
func (w *Writer) Lookup(dir, name string) (f tarstream.Found[string], err error) {
	p := path.Join(dir, name)
	if w.lastKnown && (p == w.lastReal || len(p) < len(w.lastReal) && w.lastReal[len(p)] == '/' && w.lastReal[:len(p)] == p) {
		f.Kind, f.Dir = tarstream.Dir, p // above the directory that is open
		return f, nil
	}
	fd, err := w.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("look up %s: %w", tarstream.Quote(p), err)
	}
	defer func() { _ = unix.Close(fd) }() // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return f, fmt.Errorf("stat %s: %w", tarstream.Quote(p), err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		f.Kind, f.Dir = tarstream.Dir, p
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		f.Kind = tarstream.Symlink
		f.Target, err = readlink(fd)
	case !isWhiteout(&st):
		f.Kind = tarstream.Regular
	}
	return f, err
}

// Mkdir makes a directory that entries imply.
func (w *Writer) Mkdir(dir, name string) (string, error) {
	p := path.Join(dir, name)
	fd, err := w.open(dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return "", fmt.Errorf("open directory %s: %w", tarstream.Quote(dir), err)
	}
	defer func() { _ = unix.Close(fd) }() // O_PATH
	opaque := false
	err = unix.Mkdirat(fd, name, 0o700)
	if errors.Is(err, unix.EEXIST) { // a whiteout, or Lookup would have found it
		opaque = true
		if err = w.remove(fd, name); err == nil {
			err = unix.Mkdirat(fd, name, 0o700)
		}
	}
	if err != nil {
		return "", fmt.Errorf("make directory %s: %w", tarstream.Quote(p), err)
	}
	implied := &tarstream.Entry{Name: p, Kind: tarstream.Dir, Perm: 0o755, ModTime: epoch}
	if err := w.count(implied); err != nil {
		return "", err
	}
	return p, w.finishDir(implied, fd, name, p, opaque)
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", fmt.Errorf("read link: %w", err)
	}
	return string(buf[:n]), nil
}

// stat gives what name in directory fd is; ok is false if there is nothing.
func stat(fd int, name string) (st unix.Stat_t, ok bool, err error) {
	err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return st, false, nil
	}
	return st, err == nil, err
}

// remove takes name away with all that is below it, following nothing.
func (w *Writer) remove(fd int, name string) error {
	st, ok, err := stat(fd, name)
	if err != nil || !ok {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if st.Nlink == 1 {
			w.sum.Inodes--
			w.sum.Bytes -= st.Blocks * 512
		}
		return unix.Unlinkat(fd, name, 0)
	}
	if err := w.empty(fd, name); err != nil {
		return err
	}
	w.sum.Inodes--
	w.sum.Bytes -= dirBytes
	return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
}

// empty removes all that directory name in fd has; the depth is bounded by the limits.
func (w *Writer) empty(fd int, name string) error {
	child, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(child), name)
	defer func() { _ = dir.Close() }() // a directory
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := w.remove(child, n); err != nil {
			return err
		}
	}
	return nil
}

// below is a path of name in directory fd for calls that take no descriptor.
func below(fd int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name) }
