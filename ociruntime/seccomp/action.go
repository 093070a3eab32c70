package seccomp

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const maxErrno = 4095 // MAX_ERRNO: the kernel cuts larger values

var actions = map[specs.LinuxSeccompAction]uint32{
	specs.ActKill:        unix.SECCOMP_RET_KILL_THREAD,
	specs.ActKillThread:  unix.SECCOMP_RET_KILL_THREAD,
	specs.ActKillProcess: unix.SECCOMP_RET_KILL_PROCESS,
	specs.ActTrap:        unix.SECCOMP_RET_TRAP,
	specs.ActErrno:       unix.SECCOMP_RET_ERRNO,
	specs.ActTrace:       unix.SECCOMP_RET_TRACE,
	specs.ActAllow:       unix.SECCOMP_RET_ALLOW,
	specs.ActLog:         unix.SECCOMP_RET_LOG,
}

// verdict returns what the filter returns for an action. Without an errno, EPERM is meant.
func verdict(action specs.LinuxSeccompAction, errno *uint) (uint32, *fieldError) {
	ret, ok := actions[action]
	takesErrno := action == specs.ActErrno || action == specs.ActTrace
	switch {
	case action == specs.ActNotify:
		return 0, &fieldError{"action", fmt.Sprintf("%s is not supported: nobody would answer the notifications", action)}
	case !ok:
		return 0, &fieldError{"action", fmt.Sprintf("unknown value %q", action)}
	case errno == nil && takesErrno:
		return ret | uint32(unix.EPERM), nil
	case errno == nil:
		return ret, nil
	case !takesErrno:
		return 0, &fieldError{"errnoRet", fmt.Sprintf("%s returns no errno", action)}
	case *errno > maxErrno:
		return 0, &fieldError{"errnoRet", fmt.Sprintf("%d is above %d", *errno, maxErrno)}
	}
	return ret | uint32(*errno), nil
}

// fieldError is a fault in one field of a policy.
type fieldError struct{ field, fault string }

func (e *fieldError) Error() string { return e.field + ": " + e.fault }

// filterFlags translates the flags of a policy. A policy without flags gets SPEC_ALLOW, as runc does: without it the
// kernel turns off speculation on older processors, which costs some programs a third of their speed.
func filterFlags(p *specs.LinuxSeccomp) (uint64, error) {
	if len(p.Flags) == 0 {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint64
	for i, f := range p.Flags {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC": // the filter is loaded by the only task of a process
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			return 0, fmt.Errorf("flags[%d]: %s needs a rule with %s, which is not supported", i, f, specs.ActNotify)
		default:
			return 0, fmt.Errorf("flags[%d]: unknown value %q", i, f)
		}
	}
	return flags, nil
}
