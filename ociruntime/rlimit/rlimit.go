package rlimit

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var numbers = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// Number is the kernel's of a type such as "RLIMIT_NOFILE".
func Number(kind string) (int, bool) {
	n, ok := numbers[kind]
	return n, ok
}

// Parse reads a limit as "nofile=1024:524288", soft and hard, or "core=0", both alike; "unlimited" and -1 are none.
func Parse(text string) (specs.POSIXRlimit, error) {
	name, values, ok := strings.Cut(text, "=")
	kind := "RLIMIT_" + strings.ToUpper(name)
	if _, known := numbers[kind]; !ok || !known {
		return specs.POSIXRlimit{}, fmt.Errorf("%q is not a limit such as nofile=1024:524288", text)
	}
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	l := specs.POSIXRlimit{Type: kind}
	for _, v := range []struct {
		text string
		to   *uint64
	}{{soft, &l.Soft}, {hard, &l.Hard}} {
		if v.text == "unlimited" || v.text == "-1" {
			*v.to = unix.RLIM_INFINITY
			continue
		}
		var err error
		if *v.to, err = strconv.ParseUint(v.text, 10, 64); err != nil {
			return l, fmt.Errorf("%q: %q is neither a number nor unlimited", text, v.text)
		}
	}
	if l.Soft > l.Hard {
		return l, fmt.Errorf("%q: the soft limit is above the hard one", text)
	}
	return l, nil
}

// Own are the hard limits of this process, by type: beyond them only CAP_SYS_RESOURCE in the initial user namespace goes.
func Own() (map[string]uint64, error) {
	own := make(map[string]uint64, len(numbers))
	for kind, n := range numbers {
		var l unix.Rlimit
		if err := unix.Getrlimit(n, &l); err != nil {
			return nil, fmt.Errorf("getrlimit %s: %w", kind, err)
		}
		own[kind] = l.Max
	}
	return own, nil
}

// Clamp lowers limits to the hard ones of ceiling, and returns those that had to be lowered as they were. A type that
// ceiling does not have has none; limits is not changed.
func Clamp(limits []specs.POSIXRlimit, ceiling map[string]uint64) (clamped, lowered []specs.POSIXRlimit) {
	for _, l := range limits {
		if most, ok := ceiling[l.Type]; ok && l.Hard > most {
			lowered = append(lowered, l)
			l.Hard, l.Soft = most, min(l.Soft, most)
		}
		clamped = append(clamped, l)
	}
	return clamped, lowered
}
