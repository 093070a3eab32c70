package cgroup

import (
	"fmt"
	"strconv"
	"strings"
)

// CrowdedBy names the limit of processes that leaves no room in g for one more and its helper, of g or of a group above it;
// "" if there is none.
func (g *Group) CrowdedBy() string {
	h := g.hs.byController["pids"]
	if h == nil {
		return ""
	}
	for dir := g.path; dir != ""; dir = above(dir) {
		most, limited := h.number(dir, "pids.max")
		have, known := h.number(dir, "pids.current")
		if limited && known && have+1 >= most {
			return fmt.Sprintf("the limit of processes of cgroup /%s is reached (%d of %d): raise it or end some", dir, have, most)
		}
	}
	return ""
}

// number reads a control file with one number; false if it has none, as without a limit.
func (h *hierarchy) number(dir, file string) (int64, bool) {
	text, err := h.read(dir, file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return n, err == nil
}

// StarvedBy names the lowest memory limit of g and the groups above it; "" if there is none.
func (g *Group) StarvedBy() string {
	h := g.hs.byController["memory"]
	if h == nil {
		return ""
	}
	lowest, of := int64(unlimited), ""
	for dir := g.path; dir != ""; dir = above(dir) {
		text, err := h.read(dir, h.dialect.memoryLimitFile())
		if err != nil {
			continue // not made, or without the controller
		}
		if n, err := parseBytes(text); err == nil && n < lowest {
			lowest, of = n, dir
		}
	}
	if of == "" {
		return ""
	}
	return fmt.Sprintf("the memory limit of cgroup /%s, %d KiB, is too small", of, lowest>>10)
}

// StarvedAbove says whether a group above g has ever had no memory left to give within its own limit. In v1 that cannot be told.
func (g *Group) StarvedAbove() bool {
	h := g.hs.byController["memory"]
	if h == nil {
		return false
	}
	for dir := above(g.path); dir != ""; dir = above(dir) {
		text, err := h.read(dir, "memory.events.local")
		if err != nil {
			continue // not there
		}
		if n, err := parseKeyed(text, "oom"); err == nil && n > 0 {
			return true
		}
	}
	return false
}
