package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ptmxDevice is the device number of every ptmx.
var ptmxDevice = unix.Mkdev(5, 2)

// Terminal makes a terminal in the devpts that a running container has, for ExecConfig: what the command sees as
// /dev/pts/<n> is there. The caller closes both ends. The master can be waited for with deadlines.
func (c *Container) Terminal() (master, slave *os.File, err error) {
	root, err := c.openRoot()
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(root)
	fd, err := openPtmx(root)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/pts/ptmx of the container: %w", err)
	}
	slave, err = c.slave(fd)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		closeFiles([]*os.File{slave})
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), slave, nil
}

// openRoot opens the root directory of the container's first process. Its pid is its own as long as its pidfd says that it
// lives: the directory in /proc is opened before that is asked, and then belongs to no other process.
func (c *Container) openRoot() (int, error) {
	c.mu.Lock()
	pid, pidfd := c.pid, c.pidfd
	c.mu.Unlock()
	if _, exited := c.Exit(); pidfd == nil || exited {
		return -1, ErrNotRunning
	}
	proc, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(proc)
		err = unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0)
	}
	root := -1
	if err == nil {
		root, err = unix.Openat(proc, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return -1, ErrNotRunning
	}
	if err != nil {
		return -1, fmt.Errorf("open the container's root: %w", err)
	}
	return root, nil
}

// openPtmx opens the multiplexer of the container's devpts. The container may have put anything in its place: it is looked at
// before it is opened.
func openPtmx(root int) (int, error) {
	path, err := unix.Openat2(root, "dev/pts/ptmx", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return -1, err
	}
	defer unix.Close(path)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(path, &st), unix.Fstatfs(path, &fs)); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != ptmxDevice || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return -1, errors.New("it is not the multiplexer of a devpts")
	}
	return unix.Open("/proc/self/fd/"+strconv.Itoa(path), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
}

// slave opens the other end of a terminal and gives it to the container's user.
func (c *Container) slave(master int) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock: %w", err)
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, errno
	}
	f := os.NewFile(n, "terminal")
	m := c.pod.config.UserNS
	if err := unix.Fchown(int(n), int(m.uid(c.record.Process.User.UID)), int(m.gid(ttyGroup))); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("chown: %w", err)
	}
	return f, nil
}
