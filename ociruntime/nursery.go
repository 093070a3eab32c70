package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/kernel"
	"github.com/criserver/criserver/ociruntime/mount"
)

// nursery is a thread that lives in the minimal mount namespace. Pauses are its children, so that what a
// container copies with CLONE_NEWNS does not depend on how many mounts the node has.
type nursery struct {
	births chan birth
	closed chan struct{}
	ns     *os.File // its mount namespace
}

type birth struct {
	argv  []string
	attr  syscall.ProcAttr
	reply chan bornOrNot
}

type bornOrNot struct {
	pid int
	err error
}

// newNursery builds the namespace. pauseBinary is a path of the host; dir is any directory of the host, on which the
// new root is attached for a moment, in the new namespace only. label is the SELinux label of what covers masked paths, places
// what containers have below /sys/fs/cgroup.
func newNursery(pauseBinary, dir, label string, places []hierarchyPlace) (*nursery, error) {
	n := &nursery{births: make(chan birth), closed: make(chan struct{})}
	ready := make(chan error)
	go kernel.Apart(func() { n.live(pauseBinary, dir, label, places, ready) })
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("build the minimal mount namespace: %w", err)
	}
	return n, nil
}

// live is what the thread does; nothing else runs in its namespace.
func (n *nursery) live(pauseBinary, dir, label string, places []hierarchyPlace, ready chan<- error) {
	err := buildMinimalNamespace(pauseBinary, dir, label, places)
	if err == nil {
		n.ns, err = os.Open(ownMountNamespace)
	}
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case b := <-n.births:
			pid, err := syscall.ForkExec(compile.PauseExe, b.argv, &b.attr)
			b.reply <- bornOrNot{pid, err}
		case <-n.closed:
			return
		}
	}
}

func (n *nursery) close() {
	close(n.closed)
	_ = n.ns.Close()
}

// ownMountNamespace is that of the calling thread, in a minimal namespace.
const ownMountNamespace = compile.ProcDir + "/thread-self/ns/mnt"

// hide attaches a detached mount in a mount namespace that has nothing else but what the minimal one has, and lives as long as
// somebody has the file that is returned.
func (n *nursery) hide(m *os.File) (ns *os.File, err error) {
	err = inMountNamespace(n.ns, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, compile.NewRoot, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("move_mount: %w", err)
		}
		ns, err = os.Open(ownMountNamespace)
		return err
	})
	return ns, err
}

// inMountNamespace runs f on a thread of its own in a mount namespace.
func inMountNamespace(ns *os.File, f func() error) error {
	enter := func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter a mount namespace: %w", err)
		}
		return f()
	}
	done := make(chan error, 1)
	go kernel.Apart(func() { done <- enter() })
	return <-done
}

// fork starts a pause and returns its pid, which is the caller's to reap.
func (n *nursery) fork(argv []string, attr syscall.ProcAttr) (int, error) {
	b := birth{argv, attr, make(chan bornOrNot, 1)}
	select {
	case n.births <- b:
	case <-n.closed:
		return 0, errors.New("runtime is closed")
	}
	r := <-b.reply
	return r.pid, r.err
}

func buildMinimalNamespace(pauseBinary, dir, label string, places []hierarchyPlace) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root, err := mount.New("tmpfs", "criserver", labelled(mount.Options{Data: []string{"mode=755", "size=64k", "nr_inodes=64"}}, label))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := furnish(root); err != nil {
		return err
	}
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the root: %w", err)
	}
	if err := attachBelow(root, pauseBinary, label); err != nil {
		return err
	}
	if err := attachCgroupDir(root, places); err != nil {
		return fmt.Errorf("attach %s: %w", compile.CgroupDir, err)
	}
	if err := mount.SetAttr(root, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return pivot(root)
}

// furnish creates the places that package compile names.
func furnish(root *os.File) error {
	for _, d := range []string{compile.ProcDir, compile.SysDir, compile.NewRoot, compile.CgroupDir} {
		if err := unix.Mkdirat(int(root.Fd()), d[1:], 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", d, err)
		}
	}
	if err := makeCovers(root); err != nil {
		return err
	}
	fd, err := unix.Openat(int(root.Fd()), compile.PauseExe[1:], unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return fmt.Errorf("create %s: %w", compile.PauseExe, err)
	}
	return unix.Close(fd)
}

// makeCovers makes the places of what masked paths show.
func makeCovers(dir *os.File) error {
	if err := unix.Mkdirat(int(dir.Fd()), compile.EmptyDir[1:], 0o755); err != nil {
		return fmt.Errorf("mkdir %s: %w", compile.EmptyDir, err)
	}
	if err := unix.Mknodat(int(dir.Fd()), compile.NullFile[1:], unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return fmt.Errorf("mknod %s: %w", compile.NullFile, err)
	}
	if err := unix.Fchmodat(int(dir.Fd()), compile.NullFile[1:], 0o666, 0); err != nil {
		return fmt.Errorf("chmod %s: %w", compile.NullFile, err)
	}
	return nil
}

// attachCgroupDir makes what is below /sys/fs/cgroup of most containers, unless there is one hierarchy only.
func attachCgroupDir(root *os.File, places []hierarchyPlace) error {
	if len(places) == 0 {
		return nil
	}
	dir, err := newCgroupDir(places, "")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := mount.SetAttr(dir, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	return unix.MoveMount(int(dir.Fd()), "", int(root.Fd()), compile.CgroupDir[1:], unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// attachBelow mounts a full proc and sysfs, an empty directory and the pause binary in the attached root.
func attachBelow(root *os.File, pauseBinary, label string) error {
	noSuidDev := mount.Attr{Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	all := mount.Attr{Set: noSuidDev.Set | unix.MOUNT_ATTR_NOEXEC}
	for _, m := range []struct {
		path, fstype string
		options      mount.Options
	}{
		{compile.ProcDir, "proc", mount.Options{Attr: all}},
		{compile.SysDir, "sysfs", mount.Options{Attr: all}},
		{compile.EmptyDir, "tmpfs", labelled(mount.Options{Attr: mount.Attr{Set: all.Set | unix.MOUNT_ATTR_RDONLY}, Data: []string{"mode=755", "size=4k", "nr_inodes=2"}}, label)},
	} {
		f, err := mount.New(m.fstype, m.fstype, m.options)
		if err != nil {
			return err
		}
		err = unix.MoveMount(int(f.Fd()), "", int(root.Fd()), m.path[1:], unix.MOVE_MOUNT_F_EMPTY_PATH)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("attach %s: %w", m.path, err)
		}
	}
	source, err := mount.OpenSource(pauseBinary)
	if err != nil {
		return err
	}
	defer source.Close()
	exe, err := mount.Bind(source, mount.Options{Attr: mount.Attr{Set: noSuidDev.Set | unix.MOUNT_ATTR_RDONLY}}, nil)
	if err != nil {
		return fmt.Errorf("bind %s: %w", pauseBinary, err)
	}
	defer exe.Close()
	if err := unix.MoveMount(int(exe.Fd()), "", int(root.Fd()), compile.PauseExe[1:], unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", compile.PauseExe, err)
	}
	return nil
}

func pivot(root *os.File) error {
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}
