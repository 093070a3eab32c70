package limits

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// swapFile is the unified file that limits swap by itself. Who writes it does not want another limit of swap.
const swapFile = "memory.swap.max"

// Plan says what is to be written to get from old to what change asks for, and what the limits are then. Devices are left
// out of both. An error says why the limit of memory and swap together contradicts that of memory.
func Plan(old, change *specs.LinuxResources) (todo, next *specs.LinuxResources, err error) {
	if old == nil {
		old = &specs.LinuxResources{}
	}
	do := *change
	do.Devices = nil
	do.Memory = withSwap(old, change)
	next = merge(old, &do)
	do.BlockIO = toBlockIO(old.BlockIO, change.BlockIO)
	return &do, next, checkMemory(next.Memory)
}

// withSwap is the change of memory with the limit of swap that follows from it.
func withSwap(old, change *specs.LinuxResources) *specs.LinuxMemory {
	m := change.Memory
	if m == nil || !set(m.Limit) || set(m.Swap) {
		return m
	}
	if change.Unified[swapFile] != "" || old.Unified[swapFile] != "" {
		return m
	}
	swap := *m.Limit
	switch was := old.Memory; {
	case was == nil || !set(was.Swap) || *m.Limit < 0:
	case *was.Swap < 0:
		swap = -1
	case set(was.Limit) && *was.Limit > 0:
		swap += *was.Swap - *was.Limit
	}
	with := *m
	with.Swap = &swap
	return &with
}

func checkMemory(m *specs.LinuxMemory) error {
	if m == nil || !set(m.Swap) || *m.Swap < 0 {
		return nil
	}
	switch limit := m.Limit; {
	case !set(limit), *limit < 0:
		return fmt.Errorf("%d, which includes memory, needs a limit of memory", *m.Swap)
	case *m.Swap < *limit:
		return fmt.Errorf("%d is below the memory limit of %d, which it includes", *m.Swap, *limit)
	}
	return nil
}

// set says whether an optional number is there and not 0.
func set[N int64 | uint64 | uint16](n *N) bool { return n != nil && *n != 0 }
