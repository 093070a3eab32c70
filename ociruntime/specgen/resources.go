package specgen

import (
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/limits"
)

const (
	resourcesField = "linux.resources." // of a container's config
	updateField    = "linux."           // of an update
)

// resources adds the limits to the device rules that devices put there.
func (g *generator) resources() error {
	limits, err := Resources(g.Container.GetLinux().GetResources(), g.Host.CgroupV2)
	if err != nil {
		return err
	}
	limits.Devices = g.spec.Linux.Resources.Devices
	g.spec.Linux.Resources = limits
	return nil
}

// Resources translates the limits of a new container; zero and "" mean "not set".
func Resources(r *runtimev1.LinuxContainerResources, cgroupV2 bool) (*specs.LinuxResources, error) {
	change, err := limitsOf(resourcesField, r, cgroupV2)
	if err != nil {
		return nil, err
	}
	_, all, err := limits.Plan(nil, change)
	if err != nil {
		return nil, because(resourcesField+"memory_swap_limit_in_bytes", err)
	}
	return all, nil
}

// Change translates an update, of which zero and "" mean "leave it"; see limits.Plan for the rest.
func Change(r *runtimev1.LinuxContainerResources, cgroupV2 bool) (*specs.LinuxResources, error) {
	return limitsOf(updateField, r, cgroupV2)
}

func limitsOf(at string, r *runtimev1.LinuxContainerResources, cgroupV2 bool) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	var err error
	if out.CPU, err = cpu(at, r); err != nil {
		return nil, err
	}
	if out.Memory, err = memory(at, r); err != nil {
		return nil, err
	}
	for i, h := range r.GetHugepageLimits() {
		name, err := hugepageName(indexed(at+"hugepage_limits", i)+".page_size", h.GetPageSize())
		if err != nil {
			return nil, err
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: name, Limit: h.GetLimit()})
	}
	return out, unified(at, r, cgroupV2, out)
}

func cpu(at string, r *runtimev1.LinuxContainerResources) (*specs.LinuxCPU, error) {
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if p := r.GetCpuPeriod(); p < 0 {
		return nil, invalid(at+"cpu_period", "%d is negative", p)
	} else if p > 0 {
		c.Period = new(uint64(p))
	}
	if q := r.GetCpuQuota(); q < -1 {
		return nil, invalid(at+"cpu_quota", "%d is below -1, which means no limit", q)
	} else if q != 0 {
		c.Quota = &q
	}
	if s := r.GetCpuShares(); s < 0 {
		return nil, invalid(at+"cpu_shares", "%d is negative", s)
	} else if s > 0 {
		c.Shares = new(uint64(s))
	}
	if *c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return c, nil
}

// memory: the swap limit counts memory and swap together.
func memory(at string, r *runtimev1.LinuxContainerResources) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit < -1:
		return nil, invalid(at+"memory_limit_in_bytes", "%d is below -1, which means no limit", limit)
	case swap < -1:
		return nil, invalid(at+"memory_swap_limit_in_bytes", "%d is below -1, which means no limit", swap)
	case swap > 0 && swap < limit:
		return nil, invalid(at+"memory_swap_limit_in_bytes", "%d is below the memory limit of %d, which it includes", swap, limit)
	case limit == 0 && swap == 0:
		return nil, nil
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
	}
	if swap != 0 {
		m.Swap = &swap
	}
	return m, nil
}

// hugepageName translates Kubernetes' unit to that of the kernel's files: 2Mi is 2MB.
func hugepageName(field, size string) (string, error) {
	digits := strings.TrimLeft(size, "0123456789")
	number := strings.TrimSuffix(size, digits)
	switch unit := strings.TrimSuffix(strings.TrimSuffix(digits, "i"), "B"); {
	case number == "" || len(number) > 6 || !slices.Contains([]string{"K", "M", "G"}, unit) || len(digits) > 2:
		return "", invalid(field, "%q is not a page size such as 2Mi", size)
	default:
		return number + unit + "B", nil
	}
}

func unified(at string, r *runtimev1.LinuxContainerResources, cgroupV2 bool, out *specs.LinuxResources) error {
	for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
		switch {
		case !cgroupV2:
			return invalid(at+"unified", "%q: this host has no cgroup v2", key)
		case !isCgroupFile(key):
			return invalid(at+"unified", "%q is not the name of a cgroup file", key)
		case strings.ContainsRune(r.Unified[key], 0):
			return invalid(at+"unified", "value of %q contains a NUL byte", key)
		}
	}
	out.Unified = maps.Clone(r.GetUnified())
	return nil
}

// FromOCI is what a container's limits are in CRI's terms, in which some of OCI's have no name.
func FromOCI(r *specs.LinuxResources, oomScoreAdj int) *runtimev1.LinuxContainerResources {
	out := &runtimev1.LinuxContainerResources{OomScoreAdj: int64(oomScoreAdj)}
	if r == nil {
		return out
	}
	if c := r.CPU; c != nil {
		out.CpuPeriod, out.CpuQuota, out.CpuShares = int64(value(c.Period)), value(c.Quota), int64(value(c.Shares))
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if m := r.Memory; m != nil {
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = value(m.Limit), value(m.Swap)
	}
	for _, l := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &runtimev1.HugepageLimit{PageSize: l.Pagesize, Limit: l.Limit})
	}
	out.Unified = r.Unified
	return out
}

// value is an optional number, 0 if it is not there.
func value[N int64 | uint64](n *N) N {
	if n == nil {
		return 0
	}
	return *n
}
