package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// abs is the absolute path of a file or directory in h.
func (h *hierarchy) abs(names ...string) string {
	return path.Join(append([]string{h.MountPoint}, names...)...)
}

// uninterrupted repeats a system call while a signal interrupts it.
func uninterrupted(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// openFD opens file in the directory dir, which is relative to the root of h; "" is the root.
func (h *hierarchy) openFD(dir, file string, flags int) (int, error) {
	name := file
	if dir != "" {
		name = dir + "/" + file
	}
	return uninterrupted(func() (int, error) {
		return unix.Openat(h.root, name, flags|unix.O_CLOEXEC, 0)
	})
}

// open is openFD for a file that leaves this package.
func (h *hierarchy) open(dir, file string, flags int) (*os.File, error) {
	fd, err := h.openFD(dir, file, flags)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", h.abs(dir, file), err)
	}
	return os.NewFile(uintptr(fd), h.abs(dir, file)), nil
}

// read gives a whole control file.
func (h *hierarchy) read(dir, file string) (string, error) {
	fd, err := h.openFD(dir, file, unix.O_RDONLY)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", h.abs(dir, file), err)
	}
	defer unix.Close(fd)
	text, err := readAll(fd)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", h.abs(dir, file), err)
	}
	return text, nil
}

// readAll reads an open control file from its beginning to its end.
func readAll(fd int) (string, error) {
	var whole []byte
	var chunk [4096]byte
	for {
		n, err := uninterrupted(func() (int, error) { return unix.Pread(fd, chunk[:], int64(len(whole))) })
		if err != nil {
			return "", err
		}
		if n == 0 {
			return string(whole), nil
		}
		whole = append(whole, chunk[:n]...)
	}
}

// write sets a control file. The error carries no path: the caller knows what it was setting.
func (h *hierarchy) write(dir, file, value string) error {
	fd, err := h.openFD(dir, file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return writeFD(fd, value)
}

// writeFD writes value with one system call, as control files want it.
func writeFD(fd int, value string) error {
	n, err := uninterrupted(func() (int, error) { return unix.Write(fd, []byte(value)) })
	if err == nil && n != len(value) {
		return io.ErrShortWrite
	}
	return err
}

// children lists the groups directly below dir.
func (h *hierarchy) children(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(h.root, orDot(dir), &st, 0); err != nil {
		return nil, fmt.Errorf("stat %s: %w", h.abs(dir), err)
	}
	if st.Nlink <= 2 { // kernfs counts its subdirectories exactly
		return nil, nil
	}
	f, err := h.open(orDot(dir), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", h.abs(dir), err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func orDot(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}
