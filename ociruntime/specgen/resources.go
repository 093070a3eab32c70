package specgen

import (
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const resourcesField = "linux.resources."

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

// Resources translates limits; zero and "" mean "not set". It serves updates, too.
func Resources(r *runtimev1.LinuxContainerResources, cgroupV2 bool) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	var err error
	if out.CPU, err = cpu(r); err != nil {
		return nil, err
	}
	if out.Memory, err = memory(r); err != nil {
		return nil, err
	}
	for i, h := range r.GetHugepageLimits() {
		name, err := hugepageName(indexed(resourcesField+"hugepage_limits", i)+".page_size", h.GetPageSize())
		if err != nil {
			return nil, err
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: name, Limit: h.GetLimit()})
	}
	return out, unified(r, cgroupV2, out)
}

func cpu(r *runtimev1.LinuxContainerResources) (*specs.LinuxCPU, error) {
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if p := r.GetCpuPeriod(); p < 0 {
		return nil, invalid(resourcesField+"cpu_period", "%d is negative", p)
	} else if p > 0 {
		c.Period = new(uint64(p))
	}
	if q := r.GetCpuQuota(); q < -1 {
		return nil, invalid(resourcesField+"cpu_quota", "%d is below -1, which means no limit", q)
	} else if q != 0 {
		c.Quota = &q
	}
	if s := r.GetCpuShares(); s < 0 {
		return nil, invalid(resourcesField+"cpu_shares", "%d is negative", s)
	} else if s > 0 {
		c.Shares = new(uint64(s))
	}
	if *c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return c, nil
}

// memory: the swap limit counts memory and swap together; without one, a container that has a memory limit gets no swap.
func memory(r *runtimev1.LinuxContainerResources) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit < -1:
		return nil, invalid(resourcesField+"memory_limit_in_bytes", "%d is below -1, which means no limit", limit)
	case swap < -1:
		return nil, invalid(resourcesField+"memory_swap_limit_in_bytes", "%d is below -1, which means no limit", swap)
	case swap > 0 && swap < limit:
		return nil, invalid(resourcesField+"memory_swap_limit_in_bytes", "%d is below the memory limit of %d, which it includes", swap, limit)
	case limit == 0 && swap == 0:
		return nil, nil
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit, m.Swap = &limit, &limit
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

func unified(r *runtimev1.LinuxContainerResources, cgroupV2 bool, out *specs.LinuxResources) error {
	for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
		switch {
		case !cgroupV2:
			return invalid(resourcesField+"unified", "%q: this host has no cgroup v2", key)
		case !isCgroupFile(key):
			return invalid(resourcesField+"unified", "%q is not the name of a cgroup file", key)
		case strings.ContainsRune(r.Unified[key], 0):
			return invalid(resourcesField+"unified", "value of %q contains a NUL byte", key)
		}
	}
	out.Unified = maps.Clone(r.GetUnified())
	return nil
}
