package program

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// syscallNames has the calls that Programs of this project are made of.
var syscallNames = map[uint32]string{
	unix.SYS_READ: "read", unix.SYS_WRITE: "write", unix.SYS_CLOSE: "close", unix.SYS_PPOLL: "ppoll", unix.SYS_IOCTL: "ioctl",
	unix.SYS_SOCKET: "socket", unix.SYS_EXECVE: "execve", unix.SYS_FCHDIR: "fchdir", unix.SYS_CHDIR: "chdir",
	unix.SYS_SETUID: "setuid", unix.SYS_SETSID: "setsid", unix.SYS_SETGROUPS: "setgroups", unix.SYS_SETRESUID: "setresuid",
	unix.SYS_SETRESGID: "setresgid", unix.SYS_CAPSET: "capset", unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_PRCTL: "prctl",
	unix.SYS_UMOUNT2: "umount2", unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_KEYCTL: "keyctl", unix.SYS_IOPRIO_SET: "ioprio_set",
	unix.SYS_OPENAT: "openat", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat", unix.SYS_FCHOWNAT: "fchownat",
	unix.SYS_FCHOWN: "fchown", unix.SYS_FCHMOD: "fchmod", unix.SYS_UMASK: "umask", unix.SYS_UNSHARE: "unshare", unix.SYS_SETNS: "setns",
	unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_SECCOMP: "seccomp", unix.SYS_OPENAT2: "openat2", unix.SYS_CLOSE_RANGE: "close_range",
	unix.SYS_DUP3: "dup3", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPEN_TREE: "open_tree", unix.SYS_FSOPEN: "fsopen",
	unix.SYS_FSCONFIG: "fsconfig", unix.SYS_FSMOUNT: "fsmount", unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_SCHED_SETATTR: "sched_setattr", unix.SYS_SCHED_SETAFFINITY: "sched_setaffinity", unix.SYS_PERSONALITY: "personality",
	unix.SYS_GETPID: "getpid", unix.SYS_EXIT_GROUP: "exit_group", unix.SYS_MOUNT: "mount", unix.SYS_SET_MEMPOLICY: "set_mempolicy",
	unix.SYS_FCNTL: "fcntl", unix.SYS_KILL: "kill", unix.SYS_RT_SIGPROCMASK: "rt_sigprocmask", unix.SYS_SETXATTR: "setxattr",
}

func syscallName(nr uint32) string {
	if n, ok := syscallNames[nr]; ok {
		return n
	}
	return "syscall_" + strconv.Itoa(int(nr))
}

// Text prints the Program one call a line, nearly as strace would: what every start will do.
func (p *Program) Text() string {
	var b strings.Builder
	for i, in := range p.instrs {
		fmt.Fprintf(&b, "%3d  ", i)
		if in.dst != 0 {
			fmt.Fprintf(&b, "$%d = ", in.dst-1)
		}
		b.WriteString(syscallName(in.nr))
		b.WriteByte('(')
		for n, a := range in.source {
			if n > 0 {
				b.WriteString(", ")
			}
			b.WriteString(argumentText(a))
		}
		b.WriteByte(')')
		b.WriteString(p.outcome(in))
		fmt.Fprintf(&b, "  # %s\n", in.what)
	}
	return b.String()
}

// outcome says what follows the call if that is not simply the next one.
func (p *Program) outcome(in instr) string {
	var s string
	if in.flags&instrAgain != 0 {
		s = " again"
	}
	switch {
	case in.err == anyError:
		s += " | any error"
	case in.err2 != 0:
		s += " | " + unix.ErrnoName(unix.Errno(in.err)) + " or " + unix.ErrnoName(unix.Errno(in.err2))
	case in.err != 0:
		s += " | " + unix.ErrnoName(unix.Errno(in.err))
	}
	if in.errSkip != 0 {
		s += fmt.Sprintf(" -> %d", p.labels[in.errSkip-1])
	}
	if in.okSkip != 0 {
		s += fmt.Sprintf(" ; else -> %d", p.labels[in.okSkip-1])
	}
	if in.flags&instrNonzero != 0 {
		s += " != 0"
	}
	if in.flags&instrZero != 0 {
		s += " == 0"
	}
	return s
}

func argumentText(a any) string {
	switch v := a.(type) {
	case nil:
		return "NULL"
	case FD:
		return fmt.Sprintf("fd[%d]", int(v))
	case Slot:
		return fmt.Sprintf("$%d", int(v))
	case Pause:
		return "pause"
	case String:
		return strconv.Quote(string(v))
	case Strings:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case Bytes:
		return bytesText(v)
	case Struct:
		s := bytesText(v.Data)
		for _, w := range v.Words {
			s += fmt.Sprintf(" +%d:%s", w.Offset, argumentText(w.Value))
		}
		return "{" + s + "}"
	case int:
		return integerText(int64(v))
	case int64:
		return integerText(v)
	case uintptr:
		return integerText(int64(v))
	case uint32:
		return integerText(int64(v))
	case uint64:
		return integerText(int64(v))
	default:
		return fmt.Sprint(a)
	}
}

func integerText(v int64) string {
	switch {
	case v == unix.AT_FDCWD:
		return "AT_FDCWD"
	case v < 0 || v < 10:
		return strconv.FormatInt(v, 10)
	default:
		return "0x" + strconv.FormatInt(v, 16)
	}
}

// bytesText prints short data in full and long data by length and digest.
func bytesText(v []byte) string {
	if len(v) <= 32 {
		return fmt.Sprintf("%x", v)
	}
	return fmt.Sprintf("%d bytes %.4x", len(v), sha256.Sum256(v))
}
