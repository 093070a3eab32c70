package kernel

import (
	"crypto/rand"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func closeFD(fd int, err error) {
	if err == nil && fd >= 0 {
		_ = unix.Close(fd)
	}
}

func unique() string { return strings.ToLower(rand.Text()[:12]) }

// detached makes a new mount of a file system that is attached nowhere. options are fsconfig calls.
func detached(fstype string, options ...func(fs int) error) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	for _, option := range options {
		if err := option(fs); err != nil {
			return -1, fmt.Errorf("configure %s: %w", fstype, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", fstype, err)
	}
	return fd, nil
}

func detachedTmpfs() (int, error) { return detached("tmpfs") }

func setString(key, value string) func(int) error {
	return func(fs int) error { return named(key, unix.FsconfigSetString(fs, key, value)) }
}

func setFlag(key string) func(int) error {
	return func(fs int) error { return named(key, unix.FsconfigSetFlag(fs, key)) }
}

func setFD(key string, fd int) func(int) error {
	return func(fs int) error { return named(key, unix.FsconfigSetFd(fs, key, fd)) }
}

func named(key string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func viaProc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// inPrivateNamespace runs f on a thread with a mount and a cgroup namespace of its own, and a new tmpfs attached at dir. The
// thread, and with it the namespaces and the mounts in them, ends with f. dir is a directory that every Linux has and no
// probe looks into: one made for this would stay if this process were killed.
func inPrivateNamespace(f func(dir string) error) error {
	const dir = "/sys"
	done := make(chan error)
	go Apart(func() {
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP); err != nil {
				return fmt.Errorf("unshare the mount and cgroup namespaces: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			if err := unix.Mount("probe", dir, "tmpfs", 0, "mode=0700"); err != nil {
				return fmt.Errorf("mount tmpfs: %w", err)
			}
			return f(dir)
		}()
	})
	return <-done
}

// Apart runs f in a thread that f may give namespaces of its own: it is never unlocked, so that it ends with its goroutine, which
// must be there for f alone. It is not the main thread, whose namespaces /proc/self shows, and which never ends.
func Apart(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{}) // holds the main thread until another is taken
	go func() {
		defer close(done)
		Apart(f)
	}()
	<-done
	runtime.UnlockOSThread()
}
