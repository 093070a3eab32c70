package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens the socket of address, which validate has checked. A stale socket is what a killed criserver left, and is
// replaced; one with a listener is refused.
func listen(address string, mode fs.FileMode) (*net.UnixListener, error) {
	path := strings.TrimPrefix(address, "unix://")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := bind(path, mode)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, mode); err != nil { // the umask may have taken some of it
		_ = l.Close()
		return nil, fmt.Errorf("set mode of socket %s: %w", path, err)
	}
	return l, nil
}

// bind makes a socket whose file never has more permissions than mode: Linux takes them, less the umask, from the socket
// itself, so they are set before there is a file to connect to.
func bind(path string, mode fs.FileMode) (*net.UnixListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), uint32(mode.Perm())) })
		return errors.Join(err, failed)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// removeStale removes the socket at path if it has no listener.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("listen on %s: there is something that is not a socket", path)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("listen on %s: another process already does", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("ask whether somebody listens on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove socket that nobody listens on: %w", err)
	}
	return nil
}
