package cgroup

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// fitsAbove refuses processors and memory nodes that the group above does not have: v1 would say no more than "permission
// denied", v2 would take them and use others.
func (g *Group) fitsAbove(h *hierarchy, c *specs.LinuxCPU) error {
	up := above(g.path)
	for _, row := range []struct{ what, wanted, file string }{
		{"cpuset.cpus", c.Cpus, h.dialect.cpusetFile("cpus")},
		{"cpuset.mems", c.Mems, h.dialect.cpusetFile("mems")},
	} {
		text, err := h.read(up, row.file)
		if err != nil || row.wanted == "" || strings.TrimSpace(text) == "" {
			continue // not given down, or to be inherited first: writing shows what goes
		}
		have, ok := parseList(text)
		wanted, known := parseList(row.wanted)
		if ok && known && !wanted.within(have) {
			return unfit(fmt.Errorf("%s %s: the group above, /%s, has %s only", row.what, row.wanted, up, strings.TrimSpace(text)))
		}
	}
	return nil
}

// list is a set of processors or memory nodes.
type list map[uint64]bool

func (l list) within(other list) bool {
	for n := range l {
		if !other[n] {
			return false
		}
	}
	return true
}

// parseList reads "0-3,7"; false for what only the kernel understands.
func parseList(text string) (list, bool) {
	all := list{}
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(low, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil {
			return nil, false
		}
		for n := first; n <= last; n++ {
			all[n] = true
		}
	}
	return all, true
}
