package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// PinNetNS makes ns findable at path by bind-mounting it there. Missing parent directories are created (mode 0755).
// Pinning the same namespace again is no error; another namespace at path is. The mount propagates as the directory's
// mount does, see the package comment. ns stays the caller's.
func PinNetNS(ns *os.File, path string) error {
	if !IsNetNS(fdPath(ns)) {
		return fmt.Errorf("pin network namespace on %s: %s is not a namespace", path, ns.Name())
	}
	if IsNetNS(path) {
		if sameFile(fdPath(ns), path) {
			return nil
		}
		return fmt.Errorf("pin network namespace on %s: another namespace is there", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("pin network namespace: %w", err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("pin network namespace: create %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// By descriptor: what is mounted on is the file that was just opened, whatever path has become.
	err = unix.Mount(fdPath(ns), fmt.Sprintf("/proc/self/fd/%d", fd), "", unix.MS_BIND, "")
	runtime.KeepAlive(ns)
	if err != nil {
		_ = unlinkEmpty(path)
		return fmt.Errorf("pin network namespace on %s: %w", path, err)
	}
	return nil
}

// UnpinNetNS undoes PinNetNS, also half of it, also twice. The namespace itself lives on as long as anybody uses it.
func UnpinNetNS(path string) error {
	for IsNetNS(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unpin network namespace: unmount %s: %w", path, err)
		}
	}
	if err := unlinkEmpty(path); err != nil {
		return fmt.Errorf("unpin network namespace: %w", err)
	}
	return nil
}

// unlinkEmpty removes the mount point, but no file that somebody wrote something into.
func unlinkEmpty(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() != 0 {
		return fmt.Errorf("%s is not the empty file of a namespace", path)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// SetLoopbackUp sets the device lo of a network namespace up, which gives it 127.0.0.1 and ::1. It costs four system
// calls in a thread that enters the namespace and comes back; no plugin runs.
func SetLoopbackUp(ns *os.File) error {
	return inNetNS(ns, func() error {
		sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("set lo up: socket: %w", err)
		}
		defer func() { _ = unix.Close(sock) }()
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		if err := unix.IoctlIfreq(sock, unix.SIOCGIFFLAGS, lo); err != nil {
			return fmt.Errorf("set lo up: read its flags: %w", err)
		}
		lo.SetUint16(lo.Uint16() | unix.IFF_UP)
		if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, lo); err != nil {
			return fmt.Errorf("set lo up: write its flags: %w", err)
		}
		return nil
	})
}

// inNetNS runs fn in a thread that is in ns. A thread that cannot come back ends with its goroutine and is never used
// for anything else.
func inNetNS(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go inOtherThread(func() (keep bool) {
		keep, err := visit(ns, fn)
		done <- err
		return keep
	})
	err := <-done
	runtime.KeepAlive(ns)
	return err
}

// visit enters ns, runs fn and comes back. It returns false if the thread still is in ns.
func visit(ns *os.File, fn func() error) (back bool, err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() { _ = home.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("enter network namespace: %w", err)
	}
	err = fn()
	return unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil, err
}

// inOtherThread runs fn locked to a thread that is not the process's first one, by whose namespaces /proc/self and so
// the rest of the world judges the process. The thread ends with the calling goroutine unless fn returns true.
func inOtherThread(fn func() (keep bool)) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		done := make(chan struct{})
		go func() { // on another thread, since this one is held
			defer close(done)
			inOtherThread(fn)
		}()
		<-done
		runtime.UnlockOSThread()
		return
	}
	if fn() {
		runtime.UnlockOSThread()
	}
}
