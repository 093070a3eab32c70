package cgroup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// mount is one line of mountinfo, as far as it matters here.
type mount struct {
	root, point, fstype, super string
}

// parseMount reads one line of /proc/PID/mountinfo; ok says whether it is a well-formed line of a cgroup file system.
func parseMount(line string) (m mount, ok bool) {
	before, after, found := strings.Cut(line, " - ")
	if !found {
		return mount{}, false
	}
	left, right := strings.Fields(before), strings.Fields(after)
	if len(left) < 6 || len(right) < 3 || (right[0] != "cgroup" && right[0] != "cgroup2") {
		return mount{}, false
	}
	return mount{root: unescape(left[3]), point: unescape(left[4]), fstype: right[0], super: right[2]}, true
}

// controllers finds those of a v1 mount among its superblock options.
func (m mount) controllers() []string {
	var list []string
	for option := range strings.SplitSeq(m.super, ",") {
		switch {
		case v1Controllers[option], strings.HasPrefix(option, "name="):
			list = append(list, option)
		}
	}
	return list
}

var v1Controllers = map[string]bool{
	"cpu": true, "cpuacct": true, "cpuset": true, "memory": true, "devices": true, "freezer": true, "blkio": true,
	"pids": true, "hugetlb": true, "net_cls": true, "net_prio": true, "perf_event": true, "rdma": true, "misc": true,
}

// unescape undoes the kernel's octal escapes (\040 for a blank).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseKeyed finds a number in a flat keyed file ("populated 1\nfrozen 0\n").
func parseKeyed(text, key string) (uint64, error) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if name == key {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("value of %s: %w", key, err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("no line %q", key)
}

// unlimited is how a limit that is not set reads: v2 says "max", v1 a number near the largest.
const unlimited = int64(1) << 62

// parseBytes reads a limit file; everything from unlimited on is unlimited, which it returns as that.
func parseBytes(text string) (int64, error) {
	text = strings.TrimSpace(text)
	if text == "max" || text == "-1" {
		return unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, err
	}
	if n >= uint64(unlimited) {
		return unlimited, nil
	}
	return int64(n), nil
}

// parsePIDs reads cgroup.procs or tasks. A process of another pid namespace reads as 0 and is left out.
func parsePIDs(text string) ([]int, error) {
	var pids []int
	for field := range strings.FieldsSeq(text) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid < 0 {
			return nil, fmt.Errorf("pid %q is not a number", field)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// unifiedDir finds the cgroup2 directory in /proc/PID/cgroup, relative to the root.
func unifiedDir(text string) (string, error) {
	for line := range strings.Lines(text) {
		if dir, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/"); ok {
			return cleanParent("/" + dir)
		}
	}
	return "", errors.New("no line 0::/")
}
