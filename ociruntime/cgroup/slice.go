package cgroup

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// Driver says who makes pod-level groups: the kubelet by mkdir, or systemd on its behalf.
type Driver string

// The two drivers that Kubernetes knows.
const (
	Cgroupfs Driver = "cgroupfs" // parents are paths: /kubepods/burstable/pod1
	Systemd  Driver = "systemd"  // parents are slices: kubepods-burstable-pod1.slice
)

// HostDriver is Systemd where systemd is the init system (sd_booted(3)), else Cgroupfs.
func HostDriver() Driver {
	if st, err := os.Lstat("/run/systemd/system"); err == nil && st.IsDir() {
		return Systemd
	}
	return Cgroupfs
}

// expandSlice finds a slice: "a-b.slice" is the unit a-b.slice at the cgroup path /a.slice/a-b.slice. "" is system.slice,
// as for systemd itself, and "-.slice" the root ("/"). A parent given with its path is taken if the path is right.
func expandSlice(parent string) (unit, cgroupPath string, err error) {
	if parent == "" {
		parent = "system.slice"
	}
	unit = path.Base(parent)
	name, isSlice := strings.CutSuffix(unit, ".slice")
	if !isSlice || checkName(unit) != nil || strings.Trim(name, unitCharacters) != "" {
		return "", "", fmt.Errorf("cgroup parent %q is no systemd slice", parent)
	}
	if name == "-" {
		return unit, "/", nil
	}
	cgroupPath, prefix := "", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" { // a dash at an end, or two of them
			return "", "", fmt.Errorf("cgroup parent %q is no systemd slice", parent)
		}
		prefix += part
		cgroupPath += "/" + prefix + ".slice"
		prefix += "-"
	}
	if given := strings.TrimPrefix(parent, "/"); given != unit && "/"+given != cgroupPath {
		return "", "", fmt.Errorf("cgroup parent %q: slice %s is at %s", parent, unit, cgroupPath)
	}
	return unit, cgroupPath, nil
}

// sliceAt is the unit of the slice at a cgroup path that is relative to the root.
func sliceAt(dir string) string {
	if dir == "" {
		return "-.slice"
	}
	return path.Base(dir)
}

// unitCharacters are those that systemd.unit(5) allows in names, but for the "@" of templates.
const unitCharacters = `abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\`
