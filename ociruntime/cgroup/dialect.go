package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// dialect is what differs between cgroup v1 and v2. The limits are computed, not written: settings are plain values.
type dialect interface {
	// prepare makes a new directory usable (v1: fills cpusets; v2: distributes controllers down to it).
	prepare(h *hierarchy, dir string, res *specs.LinuxResources) error

	cpu(now current, c *specs.LinuxCPU) ([]setting, error)
	memory(now current, m *specs.LinuxMemory) ([]setting, error)
	blockIO(now current, b *specs.LinuxBlockIO) ([]setting, error)
	hugetlbFiles(pageSize string) (usage, reservation string)

	oomFile() string
	ownOOMFile() string // which does not count what is below
	memoryLimitFile() string
	cpusetFile(kind string) string // "cpus" or "mems": what a group may use
	counterFiles() []counterFile
	freeze(h *hierarchy, dir string, freeze bool) error
	frozen(h *hierarchy, dir string) (bool, error)       // it or a group above it
	frozenItself(h *hierarchy, dir string) (bool, error) // somebody has said so of this group
}

// setting is one write to one control file.
type setting struct {
	what     string // "memory limit", for errors
	file     string
	value    string
	optional bool // no error if the file is missing
}

// current reads a control file of the group whose limits are computed; nil for a new group, where nothing is limited yet.
type current func(file string) (string, error)

// bytes reads a limit or a usage; unlimited for a new group.
func (now current) bytes(file string) (int64, error) {
	if now == nil {
		return unlimited, nil
	}
	text, err := now(file)
	if err != nil {
		return 0, err
	}
	n, err := parseBytes(text)
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", file, err)
	}
	return n, nil
}

// Update changes the limits that res names and leaves the others as they are. If one cannot be changed, those before it
// are put back; otherwise the caller can do that with Undo, but for device rules, which are written last.
// An error can be ErrUnfit or ErrInUse.
func (g *Group) Update(res *specs.LinuxResources) (*Undo, error) {
	undo := &Undo{g: g}
	if err := g.apply(res, undo); err != nil {
		return nil, errors.Join(fmt.Errorf("update cgroup /%s: %w", g.path, err), undo.Undo())
	}
	return undo, nil
}

// apply computes the settings controller by controller and writes them. undo is nil for a new group.
func (g *Group) apply(res *specs.LinuxResources, undo *Undo) error {
	if res == nil {
		return nil
	}
	defer atomic.AddUint32(&g.changes, 1)
	if err := unsupported(res); err != nil {
		return unfit(err)
	}
	for _, l := range limits {
		if !l.wanted(res) {
			continue
		}
		h := g.hs.byController[l.controller]
		if h == nil {
			if l.controller == "hugetlb" && onlyZeroHugepages(res) {
				continue // the kubelet sends every page size with 0
			}
			return unfit(fmt.Errorf("set %s limit: no %s controller is mounted", l.controller, l.controller))
		}
		if l.controller == "cpuset" {
			if err := g.fitsAbove(h, res.CPU); err != nil {
				return fmt.Errorf("set cpuset limit: %w", err)
			}
		}
		var now current
		if undo != nil || l.reads {
			now = func(file string) (string, error) { return h.read(g.path, file) }
		}
		settings, err := l.settings(h.dialect, now, res)
		if err != nil {
			return fmt.Errorf("set %s limit: %w", l.controller, computed(err))
		}
		if err := h.set(g.path, settings, undo); err != nil {
			return err
		}
	}
	if err := g.applyUnified(res.Unified, undo); err != nil {
		return err
	}
	return g.applyDevices(res.Devices, undo == nil)
}

// applyUnified writes cgroup2 files verbatim.
func (g *Group) applyUnified(files map[string]string, undo *Undo) error {
	if len(files) == 0 {
		return nil
	}
	h := g.hs.unified
	if h == nil {
		return unfit(errors.New("set unified limits: no cgroup2 is mounted"))
	}
	settings, err := unifiedSettings(files, h.Controllers)
	if err != nil {
		return unfit(err)
	}
	return h.set(g.path, settings, undo)
}

// set writes settings in their order; consecutive writes to one file open it once. undo, if there is one, notes what
// the files said.
func (h *hierarchy) set(dir string, settings []setting, undo *Undo) error {
	fd, open := -1, ""
	defer func() { _ = unix.Close(fd) }()
	for _, s := range settings {
		if undo != nil {
			undo.before(h, s)
		}
		if s.file != open {
			_ = unix.Close(fd)
			var err error
			if fd, err = h.openFD(dir, s.file, unix.O_WRONLY); err != nil {
				fd, open = -1, ""
				missing := errors.Is(err, fs.ErrNotExist)
				if s.optional && missing {
					continue
				}
				err = s.failed(h, dir, err)
				if missing && unix.Faccessat(h.root, orDot(dir), unix.F_OK, 0) == nil { // the group is there
					err = unfit(err)
				}
				return err
			}
			open = s.file
		}
		if err := writeFD(fd, s.value); err != nil {
			return s.failed(h, dir, err)
		}
	}
	return nil
}

func (s setting) failed(h *hierarchy, dir string, err error) error {
	return fmt.Errorf("set %s %s in %s: %w", s.what, strings.TrimSuffix(s.value, "\n"), h.abs(dir, s.file), refused(err))
}
