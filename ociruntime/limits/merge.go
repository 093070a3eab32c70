package limits

import (
	"cmp"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// merge is old with what change names.
func merge(old, change *specs.LinuxResources) *specs.LinuxResources {
	next := *old
	next.Devices = nil
	next.CPU = mergeCPU(old.CPU, change.CPU)
	next.Memory = mergeMemory(old.Memory, change.Memory)
	next.BlockIO = cmp.Or(change.BlockIO, old.BlockIO)
	next.HugepageLimits = mergeList(old.HugepageLimits, change.HugepageLimits, func(l specs.LinuxHugepageLimit) string { return l.Pagesize })
	if change.Pids != nil && set(change.Pids.Limit) {
		next.Pids = change.Pids
	}
	if change.Network != nil {
		next.Network = change.Network
	}
	next.Unified = mergeMap(old.Unified, change.Unified)
	next.Rdma = mergeMap(old.Rdma, change.Rdma)
	return &next
}

// pick is change if it is a number other than 0.
func pick[N int64 | uint64 | uint16](old, change *N) *N {
	if set(change) {
		return change
	}
	return old
}

func mergeCPU(old, change *specs.LinuxCPU) *specs.LinuxCPU {
	if old == nil || change == nil {
		return cmp.Or(change, old)
	}
	return &specs.LinuxCPU{
		Shares:          pick(old.Shares, change.Shares),
		Quota:           pick(old.Quota, change.Quota),
		Period:          pick(old.Period, change.Period),
		RealtimeRuntime: pick(old.RealtimeRuntime, change.RealtimeRuntime),
		RealtimePeriod:  pick(old.RealtimePeriod, change.RealtimePeriod),
		Burst:           cmp.Or(change.Burst, old.Burst),
		Idle:            cmp.Or(change.Idle, old.Idle),
		Cpus:            cmp.Or(change.Cpus, old.Cpus),
		Mems:            cmp.Or(change.Mems, old.Mems),
	}
}

// mergeMemory leaves out how an update is to be made.
func mergeMemory(old, change *specs.LinuxMemory) *specs.LinuxMemory {
	if change == nil {
		return old
	}
	if old == nil {
		old = &specs.LinuxMemory{}
	}
	return &specs.LinuxMemory{
		Limit:            pick(old.Limit, change.Limit),
		Swap:             pick(old.Swap, change.Swap),
		Reservation:      pick(old.Reservation, change.Reservation),
		KernelTCP:        pick(old.KernelTCP, change.KernelTCP),
		Swappiness:       cmp.Or(change.Swappiness, old.Swappiness),
		DisableOOMKiller: cmp.Or(change.DisableOOMKiller, old.DisableOOMKiller),
		UseHierarchy:     cmp.Or(change.UseHierarchy, old.UseHierarchy),
	}
}

// mergeList replaces what has the same key and appends the rest.
func mergeList[T any, K comparable](old, change []T, key func(T) K) []T {
	if len(change) == 0 {
		return old
	}
	next := slices.DeleteFunc(slices.Clone(old), func(o T) bool {
		return slices.ContainsFunc(change, func(c T) bool { return key(c) == key(o) })
	})
	return append(next, change...)
}

func mergeMap[V any](old, change map[string]V) map[string]V {
	switch {
	case len(change) == 0:
		return old
	case len(old) == 0:
		return change
	}
	next := maps.Clone(old)
	maps.Copy(next, change)
	return next
}
