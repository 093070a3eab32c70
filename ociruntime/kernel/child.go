package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// idmapFirst and idmapSize are the host's ids that the probes map to 0 and following.
const (
	idmapFirst = 100000
	idmapSize  = 65536
)

// stoppedChild runs f with a child that stands still before its first instruction (it is traced, and stops at execve)
// and whose pidfd is given. Afterwards the child is killed and reaped, and then after is run, with the pidfd still open.
func stoppedChild(cloneflags uintptr, f func(pid int) error, after func(pidfd int) error) (err error) {
	runtime.LockOSThread() // the tracer, and the parent for Pdeathsig, is a thread
	defer runtime.UnlockOSThread()
	pidfd := -1
	attr := &syscall.SysProcAttr{Cloneflags: cloneflags, Ptrace: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}
	if cloneflags&unix.CLONE_NEWUSER != 0 {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: idmapFirst, Size: idmapSize}}
		attr.UidMappings, attr.GidMappings = ids, ids
	}
	child, err := os.StartProcess("/proc/self/exe", []string{"criserver-probe"}, &os.ProcAttr{Sys: attr})
	if err != nil {
		return fmt.Errorf("start a stopped child: %w", err)
	}
	defer func() { closeFD(pidfd, nil) }()
	err = f(child.Pid)
	if killErr := child.Kill(); killErr != nil {
		return errors.Join(err, killErr)
	}
	if _, waitErr := child.Wait(); waitErr != nil {
		return errors.Join(err, waitErr)
	}
	if err == nil {
		err = after(pidfd)
	}
	return err
}

// withUserNS runs f with a descriptor of a user namespace that maps idmapFirst to 0.
func withUserNS(f func(userns int) error) error {
	return stoppedChild(unix.CLONE_NEWUSER, func(pid int) error {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(fd)
	}, func(int) error { return nil })
}

// UserNamespaces makes one, with a mapping.
var UserNamespaces = Probe("user-namespaces", "3.8", func() error {
	err := withUserNS(func(int) error { return nil })
	// EINVAL: not compiled in; ENOSPC: user.max_user_namespaces is 0, which is as good as absent until somebody mends it.
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("user.max_user_namespaces allows none: %w", err)
	}
	return absentIf(err, unix.EINVAL)
}).optional("pods with user namespaces (hostUsers: false) are refused")

// PidfdExitInfo kills a child, reaps it, and asks its pidfd how it died.
var PidfdExitInfo = Probe("pidfd-exit-info", "6.15", func() error {
	return stoppedChild(0, func(int) error { return nil }, func(pidfd int) error {
		status, err := ExitStatus(pidfd)
		if err == nil && (!status.Signaled() || status.Signal() != unix.SIGKILL) {
			return fmt.Errorf("%w: status of a killed child reads as %#x", errAbsent, uint32(status))
		}
		return absentIf(err, unix.ENOTTY, unix.EINVAL, unix.ESRCH, unix.ENODATA)
	})
}).optional("the exit code of a process that dies together with its pause is unknown")

// ExitStatus asks a pidfd for the wait status of its process, also if somebody else is or was its parent. The pidfd must
// have been opened before the process was reaped. ENODATA: it has not exited, or has not been reaped. Before Linux
// 6.15 the error is ENOTTY, EINVAL, ESRCH or ENODATA; see PidfdExitInfo.
func ExitStatus(pidfd int) (unix.WaitStatus, error) {
	const (
		getInfo  = 0xc040ff0b // PIDFD_GET_INFO: _IOWR(0xff, 11, 64 bytes)
		infoExit = 1 << 3     // PIDFD_INFO_EXIT
	)
	info := struct { // struct pidfd_info, version 0
		mask, cgroupID  uint64
		pid, tgid, ppid uint32
		ids             [8]uint32
		status          int32
	}{mask: infoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), getInfo, uintptr(unsafe.Pointer(&info)))
	switch {
	case errno != 0:
		return 0, errno
	case info.mask&infoExit == 0:
		return 0, unix.ENODATA
	}
	return unix.WaitStatus(info.status), nil
}
