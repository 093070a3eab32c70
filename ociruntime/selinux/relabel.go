package selinux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const attribute = "security.selinux"

// ErrSystemPath says that relabelling would take a directory away from the host's own programs.
var ErrSystemPath = errors.New("is a directory of the system and must not be relabelled")

// systemPaths must not be relabelled themselves; what is below is the administrator's business.
var systemPaths = []string{"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/shadow", "/home", "/lib", "/lib64", "/opt", "/proc", "/root",
	"/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/local", "/usr/sbin", "/usr/share", "/var",
	"/var/lib", "/var/log", "/var/run", "/var/tmp"}

// Relabel gives path, behind symbolic links, and everything below it a label, below without following links. What has the
// label is not written to. A file system that keeps no labels is left alone. It ends early, with its error, when ctx does.
func Relabel(ctx context.Context, path, label string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "relabel", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }() // only a path
	real, err := os.Readlink(procPath(f))
	if err != nil {
		return err
	}
	if slices.Contains(systemPaths, real) {
		return fmt.Errorf("relabel: %s %w", real, ErrSystemPath)
	}
	w := walk{ctx, []byte(label)}
	if keeps, err := w.keeps(f); err != nil || !keeps {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		dir, err := os.OpenFile(procPath(f), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		return w.directory(dir, path)
	}
	return w.set(procPath(f), path, unix.Getxattr, unix.Setxattr)
}

// SetFile labels an open file: a pipe or a terminal, which the kernel labels for as long as it lives. Where a label cannot
// be changed, as on a file system that was mounted with one, or where the policy does not let criserver change it, it
// stays: then the policy's rules for streams of container runtimes apply.
func SetFile(f *os.File, label string) error {
	err := unix.Fsetxattr(int(f.Fd()), attribute, []byte(label), 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("label %s: %w", f.Name(), err)
	}
	return nil
}

func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// walk is one Relabel.
type walk struct {
	ctx   context.Context
	label []byte
}

// keeps says whether the file system of f keeps labels.
func (w walk) keeps(f *os.File) (bool, error) {
	_, err := unix.Getxattr(procPath(f), attribute, make([]byte, 256))
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ERANGE) {
		return false, &os.PathError{Op: "read the label of", Path: f.Name(), Err: err}
	}
	return true, nil
}

// directory relabels what is below dir, then dir, which it closes; path is its name for people.
func (w walk) directory(dir *os.File, path string) error {
	defer func() { _ = dir.Close() }() // read-only
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if err := w.entry(dir, e, filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return w.set(procPath(dir), path, unix.Getxattr, unix.Setxattr)
		}
		if err != nil {
			return fmt.Errorf("relabel %s: %w", path, err)
		}
	}
}

// entry relabels one entry of a directory, which a container may change meanwhile: it is reached by descriptors only.
func (w walk) entry(dir *os.File, e os.DirEntry, path string) error {
	if err := context.Cause(w.ctx); err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	if e.IsDir() {
		fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			return w.directory(os.NewFile(uintptr(fd), path), path)
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) { // it is gone, or something else now
			return &os.PathError{Op: "relabel", Path: path, Err: err}
		}
	}
	return w.set(procPath(dir)+"/"+e.Name(), path, unix.Lgetxattr, unix.Lsetxattr)
}

// set labels one file unless it has the label. A file that is gone, and one that cannot have a label, is no error.
func (w walk) set(name, path string, get func(string, string, []byte) (int, error), set func(string, string, []byte, int) error) error {
	buf := make([]byte, 256)
	if n, err := get(name, attribute, buf); err == nil && strings.TrimRight(string(buf[:n]), "\x00") == string(w.label) {
		return nil
	}
	err := set(name, attribute, w.label, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTSUP) {
		return &os.PathError{Op: "relabel", Path: path, Err: err}
	}
	return nil
}
