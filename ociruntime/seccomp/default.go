package seccomp

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// common are the calls that every container may make.
const common = `
	accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
	send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair

	access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
	fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
	fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
	futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
	ioctl lchown lchown32 lgetxattr link linkat listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek
	lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64
	preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename
	renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statmount statx
	symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat
	utimensat_time64 utimes vmsplice write writev

	epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
	_newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4
	io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioprio_get ioprio_set

	brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
	mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease
	remap_file_pages

	adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
	clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
	timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
	timerfd_gettime64 timerfd_settime timerfd_settime64 times

	futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list set_robust_list rseq restart_syscall
	ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
	msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget

	execve execveat exit exit_group fork getcpu get_thread_area gettid kill pause pidfd_open pidfd_send_signal prctl
	process_vm_readv process_vm_writev ptrace
	rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
	rt_sigtimedwait_time64 rt_tgsigqueueinfo set_thread_area set_tid_address sigaltstack sigprocmask sigreturn tgkill tkill
	uretprobe vfork wait4 waitid waitpid
	sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
	sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
	sched_yield

	capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid
	getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getuid getuid32
	landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules lsm_set_self_attr
	prlimit64 seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority
	setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32
	sysinfo ugetrlimit uname`

// byCapability are the calls that a capability adds.
var byCapability = []struct{ capability, calls string }{
	{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
	{"CAP_SYS_ADMIN", `bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
		open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare`},
	{"CAP_SYS_BOOT", "reboot"},
	{"CAP_SYS_CHROOT", "chroot"},
	{"CAP_SYS_MODULE", "delete_module init_module finit_module"},
	{"CAP_SYS_PACCT", "acct"},
	{"CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"},
	{"CAP_SYS_RAWIO", "iopl ioperm"},
	{"CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"},
	{"CAP_SYS_TTY_CONFIG", "vhangup"},
	{"CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"},
	{"CAP_SYSLOG", "syslog"},
	{"CAP_BPF", "bpf"},
	{"CAP_PERFMON", "perf_event_open"},
}

// newNamespaces are the flags of clone(2) that make a namespace.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID |
	unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// personalities are those that change nothing that protects: PER_LINUX, PER_LINUX32, UNAME26 with either, and the query.
var personalities = []uint64{0x0, 0x8, 0x20000, 0x20008, 0xffffffff}

// DefaultProfile is the policy of SeccompProfile RuntimeDefault for a container with these capabilities
// ("CAP_SYS_ADMIN", ...), in the shape that Docker gave it: what is not allowed fails with EPERM.
func DefaultProfile(capabilities []string) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for _, a := range abis {
		p.Architectures = append(p.Architectures, a.name)
	}
	p.Syscalls = append(p.Syscalls, allow(common))
	p.Syscalls = append(p.Syscalls, sockets()...)
	for _, v := range personalities {
		p.Syscalls = append(p.Syscalls, allow("personality", specs.LinuxSeccompArg{Value: v, Op: specs.OpEqualTo}))
	}
	p.Syscalls = append(p.Syscalls, allow(ofThisBuild))
	for _, c := range byCapability {
		if slices.Contains(capabilities, c.capability) {
			p.Syscalls = append(p.Syscalls, allow(c.calls))
		}
	}
	if !slices.Contains(capabilities, "CAP_SYS_ADMIN") {
		p.Syscalls = append(p.Syscalls, cloneWithoutNamespaces()...)
	}
	return p
}

func allow(names string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: strings.Fields(names), Action: specs.ActAllow, Args: args}
}

// sockets allows every address family but two: AF_ALG, the kernel's cryptography, which has no user in containers and a
// long list of holes, and AF_VSOCK, which reaches the hypervisor past every network namespace. Families are listed
// rather than excluded: the kernel cuts the argument to 32 bits, the filter sees 64, so "anything else" lets 1<<32|AF_ALG pass.
func sockets() []specs.LinuxSyscall {
	rules := []specs.LinuxSyscall{allow("socket", specs.LinuxSeccompArg{Value: unix.AF_ALG, Op: specs.OpLessThan})}
	for _, family := range []uint64{unix.AF_NFC, unix.AF_KCM, unix.AF_QIPCRTR, unix.AF_SMC, unix.AF_XDP, unix.AF_MCTP} {
		rules = append(rules, allow("socket", specs.LinuxSeccompArg{Value: family, Op: specs.OpEqualTo}))
	}
	return rules
}

// cloneWithoutNamespaces allows clone for processes and threads. The flags of clone3 lie in memory, where no filter sees
// them: ENOSYS makes C libraries use clone.
func cloneWithoutNamespaces() []specs.LinuxSyscall {
	enosys := uint(unix.ENOSYS)
	return []specs.LinuxSyscall{
		allow("clone", specs.LinuxSeccompArg{Value: newNamespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}),
		{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
	}
}
