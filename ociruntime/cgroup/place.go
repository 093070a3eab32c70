package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
)

// A Placement is how one new process gets into a Group. All files are the caller's, who closes them.
type Placement struct {
	Tasks []*os.File // each opened for writing: the process writes "0" to it (v1: tasks; see PlacementByWrite for cgroup2)
	Dir   *os.File   // cgroup2 directory for CLONE_INTO_CGROUP; nil if there is none
}

// Close closes all files.
func (p *Placement) Close() error {
	var errs []error
	for _, f := range append(p.Tasks, p.Dir) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Placement opens what a child needs to get into g. The right to do so is that of this process for Tasks, but that of
// the cloning process for Dir: one inside a user namespace gets EACCES and needs PlacementByWrite.
func (g *Group) Placement() (*Placement, error) { return g.placement(unlessRefused(byClone)) }

// PlacementByWrite is Placement without Dir: the cgroup2 leaf is entered by a write too (to cgroup.procs), with the
// rights of this process. It costs a wait for an RCU grace period, so it is for user namespaces and for kernels
// that refuse CLONE_INTO_CGROUP.
func (g *Group) PlacementByWrite() (*Placement, error) { return g.placement(byWrite) }

// PlacementOfBorn is the Placement of a process that was born in the Dir of Begin, if there was one. It has no Dir.
func (g *Group) PlacementOfBorn() (*Placement, error) { return g.placement(unlessRefused(byBirth)) }

// entry is how a process gets into the cgroup2 leaf.
type entry int

const (
	byWrite entry = iota
	byClone
	byBirth // it is there
)

// unlessRefused is e, or a write on kernels without CLONE_INTO_CGROUP.
func unlessRefused(e entry) entry {
	if kernel.CloneIntoCgroup.Has() {
		return e
	}
	return byWrite
}

// Beside is the group that the process pid of the container is in now, as to cgroup2: g or one below. It is for
// processes that get no leaf of their own in a container that makes groups itself. Elsewhere it is g.
func (g *Group) Beside(pid int) (*Group, error) {
	if g.hs.unified == nil {
		return g, nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("find cgroup of process %d: %w", pid, err)
	}
	dir, err := unifiedDir(string(text))
	if err != nil {
		return nil, fmt.Errorf("find cgroup of process %d: %w", pid, err)
	}
	below, inside := strings.CutPrefix(dir, g.path)
	if !inside || (below != "" && below[0] != '/') {
		return nil, fmt.Errorf("process %d is in cgroup /%s, not in /%s", pid, dir, g.path)
	}
	return &Group{hs: g.hs, path: g.path, exec: strings.TrimPrefix(below, "/")}, nil
}

func (g *Group) placement(unified entry) (*Placement, error) {
	p := &Placement{Tasks: make([]*os.File, 0, len(g.hs.all))}
	for _, h := range g.hs.all {
		var f *os.File
		var err error
		switch {
		case !h.Unified:
			f, err = h.open(g.dir(h), "tasks", unix.O_WRONLY)
		case unified == byWrite:
			f, err = h.open(g.dir(h), "cgroup.procs", unix.O_WRONLY)
		case unified == byClone:
			p.Dir, err = h.open(g.dir(h), ".", unix.O_PATH|unix.O_DIRECTORY)
		}
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		if f != nil {
			p.Tasks = append(p.Tasks, f)
		}
	}
	return p, nil
}

// Monitor is what somebody needs to watch and kill a Group without this package, from descriptors alone.
// Any of the files may be nil; all are the caller's.
type Monitor struct {
	Events  *os.File // cgroup.events, read; nil on pure v1
	Kill    *os.File // cgroup.kill, write "1"; nil on pure v1 and before Linux 5.14
	Freezer *os.File // v1's freezer.state, read and write; nil if Kill is there
	Procs   *os.File // cgroup.procs, read; with Freezer of the same directory
	OOM     *os.File // memory.events or v1 memory.oom_control, read; nil without a memory controller
}

// Close closes all files.
func (m *Monitor) Close() error {
	var errs []error
	for _, f := range []*os.File{m.Events, m.Kill, m.Freezer, m.Procs, m.OOM} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// MonitorFiles opens the files of a Monitor.
func (g *Group) MonitorFiles() (*Monitor, error) {
	m := &Monitor{}
	h, killer := g.hs.watch, g.hs.watch
	canKill := h.Unified && kernel.CgroupKill.Has()
	if freezer := g.hs.byController["freezer"]; !canKill && g.exec == "" && freezer != nil {
		killer = freezer
	}
	memory := g.hs.byController["memory"]
	for _, f := range []struct {
		wanted   bool
		to       **os.File
		h        *hierarchy
		file     string
		flags    int
		optional bool
	}{
		{h.Unified, &m.Events, h, "cgroup.events", unix.O_RDONLY, false},
		{canKill, &m.Kill, h, "cgroup.kill", unix.O_WRONLY, false},
		{!killer.Unified, &m.Freezer, killer, "freezer.state", unix.O_RDWR, false},
		{true, &m.Procs, killer, "cgroup.procs", unix.O_RDONLY, false},
		{memory != nil, &m.OOM, memory, "", unix.O_RDONLY, true}, // missing in a leaf without controllers, see Scope
	} {
		if !f.wanted {
			continue
		}
		if f.file == "" {
			f.file = f.h.dialect.oomFile()
		}
		var err error
		*f.to, err = f.h.open(g.dir(f.h), f.file, f.flags)
		if err != nil && (!f.optional || !errors.Is(err, fs.ErrNotExist)) {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// OOMKills is how many processes of the leaf, in v2 of what is below too, the kernel has killed for want of memory since the leaf was
// made. It stays readable after their death. 0 without a memory controller.
func (g *Group) OOMKills() (uint64, error) { return g.oomKills(dialect.oomFile) }

// OwnOOMKills is OOMKills without what is below.
func (g *Group) OwnOOMKills() (uint64, error) { return g.oomKills(dialect.ownOOMFile) }

func (g *Group) oomKills(counts func(dialect) string) (uint64, error) {
	h := g.hs.byController["memory"]
	if h == nil {
		return 0, nil
	}
	file := counts(h.dialect)
	text, err := h.read(g.dir(h), file)
	if err != nil {
		return 0, err
	}
	n, err := parseKeyed(text, "oom_kill")
	if err != nil {
		return 0, &fs.PathError{Op: "parse", Path: path.Join(h.abs(g.dir(h)), file), Err: err}
	}
	return n, nil
}
