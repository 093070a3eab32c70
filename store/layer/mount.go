package layer

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// fsContext is a file system that is being configured (fsopen). The first error stays.
type fsContext struct {
	fd   int
	kind string
	err  error
}

func openFS(kind string) *fsContext {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return &fsContext{fd: -1, kind: kind, err: fmt.Errorf("fsopen %s: %w", kind, err)}
	}
	return &fsContext{fd: fd, kind: kind}
}

func (c *fsContext) step(what string, call func() error) {
	if c.err != nil {
		return
	}
	if err := call(); err != nil {
		c.err = fmt.Errorf("%s: %s: %w%s", c.kind, what, err, c.log())
	}
}

func (c *fsContext) set(key, value string) {
	c.step(key+"="+value, func() error { return unix.FsconfigSetString(c.fd, key, value) })
}

func (c *fsContext) setFD(key string, f *os.File) {
	c.step(key, func() error { return unix.FsconfigSetFd(c.fd, key, int(f.Fd())) })
}

func (c *fsContext) flag(key string) {
	c.step(key, func() error { return unix.FsconfigSetFlag(c.fd, key) })
}

// mount makes the detached mount and ends c. attr are MOUNT_ATTR_* flags.
func (c *fsContext) mount(attr int) (*os.File, error) {
	c.step("create", func() error { return unix.FsconfigCreate(c.fd) })
	fd := -1
	c.step("fsmount", func() (err error) {
		fd, err = unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attr)
		return err
	})
	if c.fd >= 0 {
		_ = unix.Close(c.fd) // the mount holds what it needs
	}
	if c.err != nil {
		return nil, c.err
	}
	return os.NewFile(uintptr(fd), c.kind), nil
}

// log is what the kernel has to say, in brackets, or nothing.
func (c *fsContext) log() string {
	var lines []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(c.fd, buf)
		if err != nil || n == 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	if lines == nil {
		return ""
	}
	return " (" + strings.Join(lines, "; ") + ")"
}

// procPath names an open file for calls that want a path.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// mountEROFS mounts an image from its two files, read-only and detached.
func mountEROFS(metaPath, dataPath string, direct bool) (*os.File, error) {
	meta, err := os.Open(metaPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = meta.Close() }() // the mount has its own
	data, err := os.Open(dataPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = data.Close() }() // the mount has its own
	c := openFS("erofs")
	c.set("source", procPath(meta))
	c.set("device", procPath(data))
	c.flag("ro")
	if direct {
		c.flag("directio")
	}
	return c.mount(unix.MOUNT_ATTR_RDONLY)
}

// cloneMount gives a detached copy of the mount f, or of the directory f alone if it is not a mount's root.
func cloneMount(f *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("clone mount: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// idmapped clones f with its owners mapped as userNS maps them.
func idmapped(f, userNS *os.File) (*os.File, error) {
	clone, err := cloneMount(f)
	if err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())}
	if err := unix.MountSetattr(int(clone.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("idmap mount: %w", err), clone.Close())
	}
	return clone, nil
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}
