package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Mode says which versions of cgroup are mounted.
type Mode int

// The modes a host can be in.
const (
	V1     Mode = iota + 1 // v1 hierarchies only
	Hybrid                 // v1 hierarchies and a cgroup2
	V2                     // one cgroup2 hierarchy only
)

// String gives the mode as people write it: "v1", "hybrid" or "v2".
func (m Mode) String() string {
	return map[Mode]string{V1: "v1", Hybrid: "hybrid", V2: "v2"}[m]
}

// A Hierarchy is one mounted cgroup tree.
type Hierarchy struct {
	MountPoint  string   // absolute
	Controllers []string // v1: of the mount, a named hierarchy as "name=systemd"; cgroup2: what cgroup.controllers of its root lists
	Unified     bool     // cgroup2
}

// hierarchy is a Hierarchy with its root opened.
type hierarchy struct {
	Hierarchy
	root    int // O_PATH
	dialect dialect
}

// Hierarchies is the set of cgroup trees that leaves are made in. But for its lock it does not change after it was made.
type Hierarchies struct {
	mode         Mode
	all          []*hierarchy          // the cgroup2, if any, is the last
	byController map[string]*hierarchy // "memory" to its hierarchy
	unified      *hierarchy            // nil on pure v1
	watch        *hierarchy            // where processes are counted and killed: cgroup2, else freezer

	parents sync.Mutex // held while what is above leaves is removed, and to make the directory of a guest, which forbids that
}

// Detect opens every cgroup hierarchy in this process' mount table. Bind mounts of subtrees are left out.
func Detect() (*Hierarchies, error) {
	mountinfo, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	return New(mounted(string(mountinfo)))
}

// unifiedPlace is where a host in unified mode has its cgroup2, as systemd and all other runtimes decide it.
const unifiedPlace = "/sys/fs/cgroup"

// mounted lists the hierarchies in a mountinfo file, each once, at the first place where it is mounted whole. In unified
// mode that is the cgroup2 alone: what else is mounted (net_cls, by some VPNs) is nobody's who starts containers.
func mounted(mountinfo string) []Hierarchy {
	var list []Hierarchy
	seen := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		m, ok := parseMount(line)
		if !ok || m.root != "/" {
			continue
		}
		h := Hierarchy{MountPoint: m.point, Unified: m.fstype == "cgroup2"}
		if h.Unified && h.MountPoint == unifiedPlace {
			return []Hierarchy{h}
		}
		if !h.Unified {
			h.Controllers = m.controllers()
		}
		key := m.fstype + " " + strings.Join(h.Controllers, ",")
		if !seen[key] {
			seen[key] = true
			list = append(list, h)
		}
	}
	return list
}

// New makes a Hierarchies of exactly the given trees; tests force a mode with it. For a cgroup2 without Controllers
// they are read from its root. Close gives the descriptors back.
func New(list []Hierarchy) (*Hierarchies, error) {
	if len(list) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	hs := &Hierarchies{byController: map[string]*hierarchy{}}
	for _, h := range list {
		if err := hs.add(h); err != nil {
			return nil, errors.Join(err, hs.Close())
		}
	}
	if hs.unified != nil { // last, so that a leaf that is there has all of its v1 directories
		i := slices.Index(hs.all, hs.unified)
		hs.all = append(slices.Delete(hs.all, i, i+1), hs.unified)
	}
	hs.mode = hs.findMode()
	hs.watch = hs.unified
	if hs.watch == nil {
		hs.watch = hs.byController["freezer"]
	}
	if hs.watch == nil {
		return nil, errors.Join(errors.New("neither a cgroup2 nor a v1 freezer hierarchy is mounted"), hs.Close())
	}
	return hs, nil
}

func (hs *Hierarchies) findMode() Mode {
	switch {
	case hs.unified == nil:
		return V1
	case len(hs.all) > 1:
		return Hybrid
	}
	return V2
}

func (hs *Hierarchies) add(h Hierarchy) error {
	root, err := unix.Open(h.MountPoint, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup hierarchy %s: %w", h.MountPoint, err)
	}
	one := &hierarchy{Hierarchy: h, root: root, dialect: v1{}}
	hs.all = append(hs.all, one)
	if h.Unified {
		if hs.unified != nil {
			return fmt.Errorf("two cgroup2 hierarchies: %s and %s", hs.unified.MountPoint, h.MountPoint)
		}
		hs.unified = one
		one.dialect = v2{}
		if one.Controllers == nil {
			text, err := one.read("", "cgroup.controllers")
			if err != nil {
				return err
			}
			one.Controllers = strings.Fields(text)
		}
	}
	for _, c := range one.Controllers {
		hs.byController[c] = one
		if c == "io" { // blkio's name in v2
			hs.byController["blkio"] = one
		}
	}
	return nil
}

// Close closes the roots. Groups of hs cannot be used afterwards.
func (hs *Hierarchies) Close() error {
	var errs []error
	for _, h := range hs.all {
		errs = append(errs, unix.Close(h.root))
	}
	hs.all = nil
	return errors.Join(errs...)
}

// Mode says which versions of cgroup are in use.
func (hs *Hierarchies) Mode() Mode { return hs.mode }

// List gives a copy of the trees in use, the cgroup2 last.
func (hs *Hierarchies) List() []Hierarchy {
	list := make([]Hierarchy, 0, len(hs.all))
	for _, h := range hs.all {
		one := h.Hierarchy
		one.Controllers = slices.Clone(one.Controllers)
		list = append(list, one)
	}
	return list
}

// Has says whether a controller ("memory", "pids") is mounted somewhere.
func (hs *Hierarchies) Has(controller string) bool { return hs.byController[controller] != nil }
