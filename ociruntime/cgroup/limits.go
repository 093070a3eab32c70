package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// limits is all that has to do with one controller each, in the order in which it is written.
var limits = []struct {
	controller string
	reads      bool // looks at files of a new group too
	wanted     func(*specs.LinuxResources) bool
	settings   func(dialect, current, *specs.LinuxResources) ([]setting, error)
}{
	{"cpuset", false, wantsCpuset, cpusetSettings},
	{"cpu", false, wantsCPU, func(d dialect, now current, r *specs.LinuxResources) ([]setting, error) { return d.cpu(now, r.CPU) }},
	{"memory", false, wantsMemory, memorySettings},
	{"pids", false, wantsPids, pidsSettings},
	{"hugetlb", false, func(r *specs.LinuxResources) bool { return len(r.HugepageLimits) > 0 }, hugetlbSettings},
	{"blkio", true, wantsBlockIO, func(d dialect, now current, r *specs.LinuxResources) ([]setting, error) {
		return d.blockIO(now, r.BlockIO)
	}},
}

// unsupported refuses what neither CRI nor NRI can ask for and this package does not write: better an error than a
// limit that is silently not there.
func unsupported(r *specs.LinuxResources) error {
	switch {
	case r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0):
		return errors.New("network classes and priorities are not supported")
	case len(r.Rdma) > 0:
		return errors.New("rdma limits are not supported")
	case r.Memory != nil && set(r.Memory.KernelTCP):
		return errors.New("limits of TCP buffers are not supported")
	}
	return nil
}

// set says whether an optional number is there and not 0; 0 means "leave it" for all limits of bytes, processes and time.
func set[N int64 | uint64 | uint16](n *N) bool { return n != nil && *n != 0 }

func wantsCpuset(r *specs.LinuxResources) bool {
	return r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "")
}

func wantsCPU(r *specs.LinuxResources) bool {
	c := r.CPU
	return c != nil && (set(c.Shares) || set(c.Quota) || set(c.Period) || c.Burst != nil || c.Idle != nil || set(c.RealtimeRuntime) || set(c.RealtimePeriod))
}

func wantsMemory(r *specs.LinuxResources) bool {
	m := r.Memory
	return m != nil && (set(m.Limit) || set(m.Swap) || set(m.Reservation) || m.Swappiness != nil || (m.DisableOOMKiller != nil && *m.DisableOOMKiller))
}

func wantsPids(r *specs.LinuxResources) bool { return r.Pids != nil && set(r.Pids.Limit) }

func wantsBlockIO(r *specs.LinuxResources) bool {
	b := r.BlockIO
	return b != nil && (b.Weight != nil || set(b.LeafWeight) ||
		len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0)
}

func onlyZeroHugepages(r *specs.LinuxResources) bool {
	return !slices.ContainsFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool { return l.Limit != 0 })
}

func cpusetSettings(_ dialect, _ current, r *specs.LinuxResources) ([]setting, error) {
	var s []setting
	if r.CPU.Cpus != "" {
		s = append(s, setting{what: "cpuset", file: "cpuset.cpus", value: r.CPU.Cpus})
	}
	if r.CPU.Mems != "" {
		s = append(s, setting{what: "memory nodes", file: "cpuset.mems", value: r.CPU.Mems})
	}
	return s, nil
}

func memorySettings(d dialect, now current, r *specs.LinuxResources) ([]setting, error) {
	m := r.Memory
	if set(m.Limit) && set(m.Swap) && *m.Swap > 0 && (*m.Limit < 0 || *m.Swap < *m.Limit) {
		return nil, fmt.Errorf("memory and swap together (%d) are less than memory alone (%d)", *m.Swap, *m.Limit)
	}
	return d.memory(now, m)
}

func pidsSettings(_ dialect, _ current, r *specs.LinuxResources) ([]setting, error) {
	return []setting{{what: "pids limit", file: "pids.max", value: orMax(*r.Pids.Limit)}}, nil
}

// hugetlbSettings sets usage and, where the kernel has it (5.7), reservation. The files of a page size that the
// processor does not have are missing, which is in order for 0.
func hugetlbSettings(d dialect, _ current, r *specs.LinuxResources) ([]setting, error) {
	var s []setting
	for _, l := range r.HugepageLimits {
		if !isPageSize(l.Pagesize) {
			return nil, fmt.Errorf("%q is no huge page size such as 2MB", l.Pagesize)
		}
		value, what := strconv.FormatUint(l.Limit, 10), "limit of "+l.Pagesize+" pages"
		usage, reservation := d.hugetlbFiles(l.Pagesize)
		s = append(s, setting{what: what, file: usage, value: value, optional: l.Limit == 0},
			setting{what: what, file: reservation, value: value, optional: true})
	}
	return s, nil
}

// isPageSize accepts the kernel's spelling: a number and KB, MB or GB.
func isPageSize(size string) bool {
	number := strings.TrimRight(size, "KMGB")
	if _, err := strconv.ParseUint(number, 10, 32); err != nil {
		return false
	}
	return slices.Contains([]string{"KB", "MB", "GB"}, size[len(number):])
}

// ownLimits are the files of cgroup2 itself that limit something; the others move, freeze or kill processes.
var ownLimits = []string{"cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"}

// unifiedSettings checks cgroup2 files that are written verbatim. A value of several lines is several writes.
func unifiedSettings(files map[string]string, controllers []string) ([]setting, error) {
	var s []setting
	for _, file := range slices.Sorted(maps.Keys(files)) {
		controller, _, found := strings.Cut(file, ".")
		own := slices.Contains(ownLimits, file)
		if !found || checkName(file) != nil || (controller == "cgroup" && !own) {
			return nil, fmt.Errorf("unified limit %q is no control file of a controller", file)
		}
		if !own && !slices.Contains(controllers, controller) {
			return nil, fmt.Errorf("set unified limit %s: controller %s is not in the cgroup2 hierarchy", file, controller)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(files[file], "\n"), "\n") {
			s = append(s, setting{what: "unified limit", file: file, value: line})
		}
	}
	return s, nil
}

// orMax writes a limit; -1 is none.
func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}
