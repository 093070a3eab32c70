package mount

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Owner is whom made directories belong to, in ids of the host.
type Owner struct{ UID, GID uint32 }

// maxLinks is how many links that lead nowhere are followed, as many as the kernel follows of others.
const maxLinks = 40

// MkdirIn makes a directory and its missing parents inside the tree below root and returns it. Where a symbolic link
// leads to nothing yet, that is made, inside too.
func MkdirIn(root *os.File, path string, mode uint32, owner Owner) (*os.File, error) {
	return maker{root, mode, owner}.mkdir(path, maxLinks)
}

// Undangle makes what symbolic links on the way to a path lead to and is not there: directories, and where path itself is
// such a link and is to be a file, the directory of that. What is missing itself is not made, and what cannot be opened is
// left to whoever does. file is asked only if it matters.
func Undangle(root *os.File, path string, file func() bool, owner Owner) error {
	f, err := OpenIn(root, path, unix.O_PATH, 0)
	if err == nil {
		return f.Close()
	}
	return maker{root, 0o755, owner}.undangle(path, file, maxLinks)
}

func directory() bool { return false }

// maker makes directories below root. Paths are not cleaned: ".." behind a link is where the link leads.
type maker struct {
	root  *os.File
	mode  uint32
	owner Owner
}

func (m maker) mkdir(p string, links int) (*os.File, error) {
	done := "."
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." {
			continue
		}
		next := done + "/" + part
		f, err := OpenIn(m.root, next, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			_ = f.Close()
			done = next
			continue
		}
		if !errors.Is(err, unix.ENOENT) || part == ".." {
			return nil, err
		}
		if err := m.mkdirOne(done, part, links); err != nil {
			return nil, err
		}
		done = next
	}
	return OpenIn(m.root, done, unix.O_PATH|unix.O_DIRECTORY, 0)
}

func (m maker) mkdirOne(parent, name string, links int) error {
	dir, err := OpenIn(m.root, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = unix.Mkdirat(int(dir.Fd()), name, m.mode)
	if errors.Is(err, unix.EEXIST) { // since somebody looked, or a link
		return m.follow(parent, name, directory, links)
	}
	if err == nil && m.owner != (Owner{}) {
		err = unix.Fchownat(int(dir.Fd()), name, int(m.owner.UID), int(m.owner.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: parent + "/" + name, Err: err}
	}
	return nil
}

// follow makes what a link leads to. It does nothing if name is no link.
func (m maker) follow(parent, name string, file func() bool, links int) error {
	target, err := m.readlink(parent, name)
	if err != nil {
		return nil
	}
	if links == 0 {
		return &os.PathError{Op: "mkdir", Path: parent + "/" + name, Err: unix.ELOOP}
	}
	if !path.IsAbs(target) {
		target = parent + "/" + target
	}
	if file() {
		dir, _ := path.Split(target)
		f, err := m.mkdir(dir, links-1)
		if err != nil {
			return err
		}
		_ = f.Close()
		return m.undangle(target, file, links-1)
	}
	f, err := m.mkdir(target, links-1)
	if err == nil {
		_ = f.Close()
	}
	return err
}

func (m maker) readlink(parent, name string) (string, error) {
	dir, err := OpenIn(m.root, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (m maker) undangle(p string, file func() bool, links int) error {
	done := "."
	parts := strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
	kind := func(i int) func() bool {
		if i < len(parts)-1 {
			return directory
		}
		return file
	}
	for i, part := range parts {
		f, err := OpenIn(m.root, done+"/"+part, unix.O_PATH, 0)
		if err == nil {
			_ = f.Close()
		} else if !errors.Is(err, unix.ENOENT) {
			return nil
		} else if _, err := m.readlink(done, part); err != nil {
			return nil
		} else if err := m.follow(done, part, kind(i), links); err != nil {
			return err
		}
		done += "/" + part
	}
	return nil
}
