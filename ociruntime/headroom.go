package ociruntime

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/rlimit"
)

const pauseOOMScore = -998 // what the kubelet expects of a sandbox process

// raised are the hard limits that every pause gets raised to, so that its children can be given as much.
var raised = []struct {
	name string
	nr   int
	to   uint64
}{
	{"RLIMIT_CORE", unix.RLIMIT_CORE, unix.RLIM_INFINITY},
	{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK, unix.RLIM_INFINITY},
	{"RLIMIT_NPROC", unix.RLIMIT_NPROC, unix.RLIM_INFINITY},
	{"RLIMIT_MSGQUEUE", unix.RLIMIT_MSGQUEUE, unix.RLIM_INFINITY},
	{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING, unix.RLIM_INFINITY},
	{"RLIMIT_NICE", unix.RLIMIT_NICE, unix.RLIM_INFINITY},
	{"RLIMIT_RTPRIO", unix.RLIMIT_RTPRIO, unix.RLIM_INFINITY},
	{"RLIMIT_STACK", unix.RLIMIT_STACK, unix.RLIM_INFINITY},
	{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, 1 << 20},
}

// inheritance is what criserver itself has of that in which pause has more. Processes whose spec does not say otherwise get
// it back: a hard limit that is left to them they may use, such as for real-time priorities.
type inheritance struct {
	rlimits  []specs.POSIXRlimit
	oomScore int
}

func readInheritance() (inheritance, error) {
	var own inheritance
	for _, r := range raised {
		var l unix.Rlimit
		if err := unix.Getrlimit(r.nr, &l); err != nil {
			return own, fmt.Errorf("getrlimit %s: %w", r.name, err)
		}
		own.rlimits = append(own.rlimits, specs.POSIXRlimit{Type: r.name, Soft: l.Cur, Hard: l.Max})
	}
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err == nil {
		own.oomScore, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	return own, err
}

// adjust gives a pause the limits that its children may need: they can lower them, and raise their OOM score, without
// any privilege. A criserver that lacks CAP_SYS_RESOURCE goes on with what it has.
func (r *Runtime) adjust(pid int) {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(pauseOOMScore)), 0); err != nil {
		r.config.Log.Debug("cannot lower oom_score_adj of pause", "pid", pid, "error", err)
	}
	for i, own := range r.own.rlimits {
		if own.Hard >= raised[i].to {
			continue
		}
		if err := unix.Prlimit(pid, raised[i].nr, &unix.Rlimit{Cur: own.Soft, Max: raised[i].to}, nil); err != nil {
			r.config.Log.Debug("cannot raise a limit of pause", "pid", pid, "limit", own.Type, "error", err)
		}
	}
}

// Ceiling is how far containers can be given limits of processes, by type: no further than the hard ones that pause has,
// unless criserver has CAP_SYS_RESOURCE and they are in no user namespace. Beyond fs.nr_open nobody can be given descriptors.
func Ceiling(userNS bool) (map[string]uint64, error) {
	caps, err := readCapabilities()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return nil, err
	}
	files, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("/proc/sys/fs/nr_open: %w", err)
	}
	able := caps.permitted&(1<<unix.CAP_SYS_RESOURCE) != 0
	if able && !userNS {
		return map[string]uint64{"RLIMIT_NOFILE": files}, nil
	}
	ceiling, err := rlimit.Own()
	if err != nil {
		return nil, err
	}
	for _, r := range raised {
		if able {
			ceiling[r.name] = max(ceiling[r.name], r.to)
		}
	}
	ceiling["RLIMIT_NOFILE"] = min(ceiling["RLIMIT_NOFILE"], files)
	return ceiling, nil
}
