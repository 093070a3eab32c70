package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Counters says which counters of a group are wanted. Every file that has some costs three system calls, and every hierarchy
// with several of them two more, for its directory.
type Counters uint8

// Kinds of counters.
const (
	CPU      Counters = 1 << iota // time used; one file
	Memory                        // usage, limit and memory.stat; v1 two files, four with limits, v2 five
	Tasks                         // how many there are; one file
	Pressure                      // stall information of a cgroup2; three files
	Details                       // what metrics want besides; v1 nine files, ten after I/O, v2 five, and those of huge pages
)

// NoLimit is the value of a limit that is not set.
const NoLimit = math.MaxUint64

// Stats are the counters of a group, its subgroups included. What was not asked for and what this kernel does not count is
// zero.
type Stats struct {
	Known    Counters // of what was wanted, the kinds that the kernel counts here
	CPU      CPUStats
	Memory   MemoryStats
	Tasks    TaskStats
	Pressure PressureStats
	IO       []DeviceIO
	Huge     []HugePages

	changes          uint32 // of limits before it was read
	memsw            uint64 // v1: limit of memory and swap together
	least, leastSwap uint64 // v1: least limit of the group and those above, of memory, and of it and swap
}

// StatsBuffer is what reading needs for a moment. It has room for every control file with counters: the longest, io.stat,
// needs 100 bytes a device.
type StatsBuffer [16 << 10]byte

// CPUStats are of processor time, in nanoseconds. Of v1, all but Usage is Details.
type CPUStats struct {
	Usage, User, System uint64
	Periods, Throttled  uint64 // how many there were
	ThrottledTime       uint64
}

// MemoryStats are in bytes where nothing else is said.
type MemoryStats struct {
	Usage, Limit    uint64
	InactiveFile    uint64
	Anon, File      uint64 // File is the page cache
	MappedFile      uint64
	Faults, Major   uint64 // page faults; Major are among Faults
	OwnFaults       uint64 // without subgroups; v2 does not tell them apart
	OwnMajor        uint64
	HasSwap         bool   // swap is accounted
	Swap, SwapLimit uint64 // of swap alone: of v1's limit of both, what is above that of memory
	Peak, Kernel    uint64 // Details. In v2 Peak is 0 before Linux 5.19
	Reservation     uint64 // Details. v1's soft limit, v2's memory.low; 0 and NoLimit are none
	AtLimit         uint64 // Details. How often the limit was hit
	OOMKill         uint64 // Details. How often a process was killed for want of memory
}

// TaskStats count threads.
type TaskStats struct {
	Current uint64
	Limit   uint64 // Details
}

// PressureStats say how long tasks of the group stood still for want of something.
type PressureStats struct {
	CPU, Memory, IO Stall
	Known           struct{ CPU, Memory, IO bool }
}

// Stall is one pressure file: times when some, and when all tasks that had something to do stood still.
type Stall struct {
	Some, Full StallTime
}

// StallTime has its total in nanoseconds, averages in percent.
type StallTime struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// DeviceIO is what the group has read from and written to a block device.
type DeviceIO struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// HugePages is how much the group has in huge pages of one size.
type HugePages struct {
	Size  string // "2MB", as in the names of files
	Usage uint64
	Peak  uint64 // v1 only
}

// Stats reads the counters that are wanted into s. The error is fs.ErrNotExist if the group is gone.
func (g *Group) Stats(want Counters, s *Stats, buf *StatsBuffer) error {
	*s = Stats{}
	return g.MoreStats(want, s, nil, buf)
}

// MoreStats adds counters to those that s has of the same group. was may be an earlier reading that had all of these, if since some seconds
// before it no task of the group has run: what can only have changed by that, or by an Update of g since, is not read again, but as it was.
func (g *Group) MoreStats(want Counters, s, was *Stats, buf *StatsBuffer) error {
	if was != nil {
		known := s.Known
		*s = *was
		s.Known = known
	}
	s.changes = atomic.LoadUint32(&g.changes)
	for _, h := range g.hs.all {
		if err := g.countIn(h, want, s, was, buf); err != nil {
			return err
		}
	}
	if s.Known == 0 && want != 0 {
		return fmt.Errorf("count in cgroup /%s: %w", g.path, fs.ErrNotExist)
	}
	s.settle()
	return nil
}

// countIn reads the files of one hierarchy.
func (g *Group) countIn(h *hierarchy, want Counters, s, was *Stats, buf *StatsBuffer) error {
	files := h.dialect.counterFiles()
	wanted := func(f *counterFile) bool { return f.kinds&^want == 0 && h.counts(f, g.hs.mode) }
	known := func(f *counterFile) bool { return f.known != nil && f.known(s, was) }
	huge := want&Details != 0 && g.hs.byController["hugetlb"] == h && (was == nil || was.hasHugePages())
	some, n := false, 0
	for i := range files {
		if f := &files[i]; wanted(f) {
			some = true
			if !known(f) {
				n++
			}
		}
	}
	if !some && !huge {
		return nil
	}
	r := counting{h: h, dir: g.dir(h), root: h.root, buf: buf}
	if n >= worthOpening || huge {
		if err := r.enter(); err != nil {
			return err
		}
		defer r.leave()
	}
	for i := range files {
		f := &files[i]
		switch {
		case !wanted(f):
		case !known(f):
			if err := r.count(f, f.name, s); err != nil {
				return err
			}
		case was != nil:
			s.Known |= f.kinds & was.Known
		}
	}
	if huge {
		return r.countHugePages(s)
	}
	return nil
}

// counts says whether a file is to be read in h. Beside v1 hierarchies, a cgroup2 is asked only for what they lack.
func (h *hierarchy) counts(f *counterFile, mode Mode) bool {
	if f.controller == "" {
		return mode != Hybrid || f.kinds&Pressure != 0
	}
	return slices.Contains(h.Controllers, f.controller)
}

// counting reads the counters of a group in one hierarchy. Finding a group takes as long as reading a counter: a directory
// with several of them is opened first.
type counting struct {
	h    *hierarchy
	dir  string
	root int  // that names are relative to: of h, or, once it is opened, dir
	open bool // root is dir
	gone bool // dir is not there
	buf  *StatsBuffer
}

// worthOpening is how many files of a directory make opening it cheaper than finding it for each.
const worthOpening = 3

// enter opens the directory.
func (r *counting) enter() error {
	fd, err := r.h.openFD(r.dir, ".", unix.O_PATH|unix.O_DIRECTORY)
	switch {
	case err == nil:
		r.root, r.open = fd, true
	case errors.Is(err, unix.ENOENT):
		r.gone = true
	default:
		return fmt.Errorf("open %s: %w", r.h.abs(r.dir), err)
	}
	return nil
}

func (r *counting) leave() {
	if r.open {
		_ = unix.Close(r.root)
	}
}

// count reads one file. One that is missing counts nothing: a kernel without it, a leaf without controllers, a group that
// is being removed.
func (r *counting) count(f *counterFile, name string, s *Stats) error {
	if r.gone {
		return nil
	}
	text, err := r.read(name)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP):
		f.parse(s, nil)
		return nil
	default:
		return fmt.Errorf("read %s: %w", r.h.abs(r.dir, name), err)
	}
	if !f.parse(s, text) {
		return fmt.Errorf("read %s: unexpected contents %.64q", r.h.abs(r.dir, name), text)
	}
	s.Known |= f.kinds
	return nil
}

// read reads a control file with counters, which the kernel makes whole for one read. What does not fit is left out,
// by lines.
func (r *counting) read(name string) ([]byte, error) {
	if !r.open && r.dir != "" {
		name = r.dir + "/" + name
	}
	fd, err := uninterrupted(func() (int, error) { return unix.Openat(r.root, name, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	n, err := uninterrupted(func() (int, error) { return unix.Read(fd, r.buf[:]) })
	_ = unix.Close(fd)
	if err != nil {
		return nil, err
	}
	text := r.buf[:n]
	if n == len(r.buf) {
		text = text[:bytes.LastIndexByte(text, '\n')+1]
	}
	return text, nil
}

// Calm says that no task of the group waits for memory or I/O, nor has in the last minutes.
func (s *Stats) Calm() bool { return s.Pressure.Memory.calm() && s.Pressure.IO.calm() }

func (s *Stall) calm() bool { return s.Some.calm() && s.Full.calm() }

func (t *StallTime) calm() bool { return t.Avg10 == 0 && t.Avg60 == 0 && t.Avg300 == 0 }

// hasHugePages says whether the group has some, which others can take away.
func (s *Stats) hasHugePages() bool {
	return slices.ContainsFunc(s.Huge, func(h HugePages) bool { return h.Usage > 0 })
}

// settle makes one of what v1 and v2 count differently.
func (s *Stats) settle() {
	m := &s.Memory
	switch {
	case s.memsw == 0:
	case s.memsw == NoLimit || m.Limit == NoLimit:
		m.SwapLimit = s.memsw
	default:
		m.SwapLimit = s.memsw - min(m.Limit, s.memsw)
	}
}
