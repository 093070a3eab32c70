package main

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/kernel"
)

// featureChecks are one row for each thing that a kernel may lack.
func featureChecks() []check {
	var rows []check
	for _, f := range kernel.All() {
		rows = append(rows, check{f.Name, func(Config) finding { return checkFeature(f) }})
	}
	return rows
}

func checkFeature(f *kernel.Feature) finding {
	has, err := f.Check()
	without := degraded
	if f.Required {
		without = missing
	}
	switch {
	case err != nil:
		return finding{without, "could not be told: " + err.Error(), "if it is missing, " + f.Lost, "run criserver check as root"}
	case !has:
		return finding{without, "not there", f.Lost, "boot Linux " + f.Since + " or newer"}
	}
	return finding{found: "there; Linux has it since " + f.Since}
}

func checkErofs(c Config) finding {
	const cost, mend = "layers are kept as directories: pulls and removals take longer", "boot Linux 6.12 or newer with CONFIG_EROFS_FS, and keep root on ext4, xfs or btrfs"
	e, err := kernel.ErofsFileBacked(existing(c.Root))
	switch {
	case err != nil:
		return finding{degraded, "could not be told: " + err.Error(), "if it is missing, " + cost, mend}
	case !e.FileBacked:
		return finding{degraded, "image files cannot be mounted from " + c.Root, cost, mend}
	case !e.DirectIO:
		return finding{degraded, "image files can be mounted, but not with direct I/O", "files of images are cached twice", mend}
	}
	return finding{found: "image files can be mounted from " + c.Root}
}

func checkIDMapped(c Config) finding {
	const cost, mend = "pods with hostUsers: false fail", "keep root on a file system that can be mounted idmapped: ext4, xfs, btrfs"
	ok, err := kernel.IDMapped(existing(c.Root))
	switch {
	case err != nil:
		return finding{degraded, "could not be told: " + err.Error(), "if they are missing, " + cost, mend}
	case !ok:
		return finding{degraded, "not of the file system of " + c.Root, cost, mend}
	}
	return finding{found: "of the file system of " + c.Root}
}

// oldestKernel is the oldest release that is supported: that of EL9.
var oldestKernel = [2]int{5, 14}

func checkKernel(Config) finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return finding{missing, err.Error(), "nothing is known of the kernel", "run criserver on Linux"}
	}
	release := unix.ByteSliceToString(name.Release[:])
	if v, ok := kernelVersion(release); !ok || slices.Compare(v[:], oldestKernel[:]) < 0 {
		return finding{missing, "Linux " + release, "the mount and pidfd calls that containers are made with are not there",
			fmt.Sprintf("boot Linux %d.%d or newer", oldestKernel[0], oldestKernel[1])}
	}
	return finding{found: "Linux " + release}
}

// kernelVersion reads the first two numbers of a release such as "6.1.0-13-amd64".
func kernelVersion(release string) (v [2]int, ok bool) {
	n, err := fmt.Sscanf(release, "%d.%d", &v[0], &v[1])
	return v, err == nil && n == 2
}

func checkCgroups(Config) finding {
	h, err := cgroup.Detect()
	if err != nil {
		return finding{missing, err.Error(), "no container can be limited or stopped", "mount cgroup2 on /sys/fs/cgroup"}
	}
	defer func() { _ = h.Close() }()
	return judgeCgroups(h)
}

// controllers says which hierarchies a machine has.
type controllers interface {
	Mode() cgroup.Mode
	Has(controller string) bool
}

func judgeCgroups(h controllers) finding {
	wanted := []string{"cpu", "memory", "pids", "cpuset"}
	if h.Mode() != cgroup.V2 {
		wanted = append(wanted, "devices", "freezer")
	}
	var absent []string
	for _, name := range wanted {
		if !h.Has(name) {
			absent = append(absent, name)
		}
	}
	found := h.Mode().String()
	if len(absent) > 0 {
		return finding{degraded, found + ", without " + strings.Join(absent, ", "), "limits of these are not enforced", "enable the controllers on the kernel's command line"}
	}
	return finding{found: found}
}
