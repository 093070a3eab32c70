package seccomp

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// call is a system call of one architecture; tables are sorted by name.
type call struct {
	name string
	nr   uint32
}

// abi is one calling convention that a filter can see.
type abi struct {
	name   specs.Arch
	audit  uint32 // AUDIT_ARCH_*: what the kernel puts into seccomp_data.arch
	offset uint32 // added to every number: the bit of x32
	narrow bool   // arguments have 32 bits
	calls  []call
	// Numbers of [legacy[0], legacy[1]) are old although they are large; empty if both are 0.
	legacy [2]uint32
	// multiplexed tells behind which call, with which first argument, a call also hides.
	multiplexed map[string]hidden
}

type hidden struct {
	behind string
	number uint64
}

func (a *abi) number(name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(a.calls, name, func(c call, name string) int { return strings.Compare(c.name, name) })
	if !ok {
		return 0, false
	}
	return a.calls[i].nr, true
}

// old reports whether a large number is one of the old ones of its architecture.
func (a *abi) old(nr uint32) bool { return nr >= a.legacy[0] && nr < a.legacy[1] }
