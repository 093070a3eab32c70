package kernel

import (
	"errors"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls that everything rests on. EL9's 5.14, the oldest kernel that is supported, has them all.
var (
	Openat2 = Probe("openat2", "5.6", func() error {
		fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		closeFD(fd, err)
		return absentIf(err, unix.ENOSYS)
	}).required("paths inside a container cannot be resolved safely")

	MountAPI = Probe("mount-api", "5.2", func() error {
		fd, err := detachedTmpfs()
		closeFD(fd, err)
		if err == nil {
			fd, err = unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			closeFD(fd, err)
		}
		return absentIf(err, unix.ENOSYS)
	}).required("mounts cannot be made detached")

	MountSetattr = Probe("mount_setattr", "5.12", func() error {
		fd, err := detachedTmpfs()
		if err != nil {
			return absentIf(err, unix.ENOSYS)
		}
		defer unix.Close(fd)
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		return absentIf(unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr), unix.ENOSYS)
	}).required("mounts cannot be made read-only with everything below them")

	Pidfd = Probe("pidfd", "5.3", func() error {
		fd, err := unix.PidfdOpen(unix.Getpid(), 0)
		closeFD(fd, err)
		return absentIf(err, unix.ENOSYS)
	}).required("processes cannot be signalled and awaited without mistaking one for another")

	CloseRange = Probe("close_range", "5.11", func() error {
		// Far above every descriptor: nothing is changed.
		err := unix.CloseRange(math.MaxInt32, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
		return absentIf(err, unix.ENOSYS, unix.EINVAL)
	}).required("descriptors of pause cannot be kept from containers")

	MemfdSealing = Probe("memfd-seals", "3.17", func() error {
		fd, err := unix.MemfdCreate("criserver-probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			return absentIf(err, unix.ENOSYS, unix.EINVAL)
		}
		defer unix.Close(fd)
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
		return absentIf(err, unix.EINVAL)
	}).required("Programs cannot be handed to pause")

	Seccomp = Probe("seccomp", "3.17", func() error {
		return filterFlag(0)
	}).required("system calls of containers cannot be filtered")

	SeccompLog = Probe("seccomp-log", "4.14", func() error {
		return filterFlag(unix.SECCOMP_FILTER_FLAG_LOG)
	}).optional("profiles that ask for logging of refused system calls are refused")

	SeccompSpecAllow = Probe("seccomp-spec-allow", "4.17", func() error {
		return filterFlag(unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	}).optional("filtered containers run slower: speculative store bypass stays mitigated")

	SeccompListener = Probe("seccomp-listener", "5.0", func() error {
		return filterFlag(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	}).optional("profiles with a listener are refused")

	SeccompWaitKillable = Probe("seccomp-wait-killable", "5.19", func() error {
		return filterFlag(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	}).optional("profiles with a listener that ask for it are refused")
)

// filterFlag asks for a filter at no address: a kernel that knows the flags says EFAULT, one that does not EINVAL.
func filterFlag(flags uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, 0)
	if errno == unix.EFAULT {
		return nil
	}
	return absentIf(errno, unix.EINVAL, unix.ENOSYS)
}

// CloneIntoCgroup asks for a child in a cgroup at no descriptor: a kernel that knows the flag says EBADF, an older one
// finds the argument too long. No child is made.
var CloneIntoCgroup = Probe("clone-into-cgroup", "5.7", func() error {
	args := struct { // struct clone_args, version 2
		flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
	}{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: math.MaxInt32}
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno == unix.EBADF {
		return nil
	}
	return absentIf(errno, unix.E2BIG, unix.EINVAL, unix.ENOSYS)
}).optional("processes enter cgroup v2 leaves after their birth, each start and exec some 10 ms later")

// CgroupKill looks for the file in a group made for it, below that of this process: mounted from the initial cgroup
// namespace, cgroup2 would take the options of that mount for the whole host.
var CgroupKill = Probe("cgroup.kill", "5.14", func() error {
	return inPrivateNamespace(func(string) (err error) {
		root, err := detached("cgroup2")
		if err != nil {
			return absentIf(err, unix.ENODEV)
		}
		defer unix.Close(root)
		name := "criserver-probe-" + unique()
		if err := unix.Mkdirat(root, name, 0o755); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Unlinkat(root, name, unix.AT_REMOVEDIR)) }()
		return absentIf(unix.Faccessat(root, name+"/cgroup.kill", unix.W_OK, 0), unix.ENOENT)
	})
}).optional("containers are killed by way of the freezer")
