package cgroup

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
)

// counterFile is a control file with counters. parse says whether the text was what it should be; it does not allocate. It gets none of a file
// that is not there: pressure can be switched off.
type counterFile struct {
	controller string // "": there in every group of a cgroup2
	name       string
	kinds      Counters // all of which must be wanted
	parse      func(s *Stats, text []byte) bool
	known      known // nil: never
}

// known says whether a file need not be read, because s has what it says: files before it have told, or was, an earlier reading since which
// no task of the group has run; nil is none.
type known func(s, was *Stats) bool

// asWas is of what only tasks of the group change.
func asWas(_, was *Stats) bool { return was != nil }

// asSet is of limits that nobody sets but we.
func asSet(s, was *Stats) bool { return was != nil && s.changes == was.changes }

// asCharged is of what changes when memory is charged or given back.
func asCharged(s, was *Stats) bool { return was != nil && s.Memory.Usage == was.Memory.Usage }

// asCalm is of pressure for which a task waits after it has run. It lasts if no average is left that has to become smaller: nobody waits now,
// which would show. Where pressure was switched off, that of the processor is gone, too.
func asCalm(s, was *Stats) bool { return was != nil && s.Pressure.Known.CPU && was.Calm() }

// asLeast is of a limit of v1 that others may set, too: memory.stat gives the least of the group's and those above. Without any there is none of the
// group's own.
func asLeast(of func(*Stats) *uint64) known {
	return func(s, was *Stats) bool {
		least := *of(s)
		return least == NoLimit || asSet(s, was) && least == *of(was)
	}
}

var v1CounterFiles = []counterFile{
	{"cpuacct", "cpuacct.usage", CPU, single(func(s *Stats) *uint64 { return &s.CPU.Usage }), asWas},
	{"cpuacct", "cpuacct.stat", Details, keyed((*Stats).setCPUTicks), asWas},
	{"cpu", "cpu.stat", Details, keyed((*Stats).setCPU), asWas},
	{"memory", "memory.usage_in_bytes", Memory, single(func(s *Stats) *uint64 { return &s.Memory.Usage }), nil},
	{"memory", "memory.stat", Memory, keyed((*Stats).setMemoryV1), nil},
	{"memory", "memory.limit_in_bytes", Memory, limit(func(s *Stats) *uint64 { return &s.Memory.Limit }), asLeast(func(s *Stats) *uint64 { return &s.least })},
	{"memory", "memory.memsw.limit_in_bytes", Memory, limit(func(s *Stats) *uint64 { return &s.memsw }), asLeast(func(s *Stats) *uint64 { return &s.leastSwap })},
	{"memory", "memory.max_usage_in_bytes", Memory | Details, single(func(s *Stats) *uint64 { return &s.Memory.Peak }), asCharged},
	{"memory", "memory.kmem.usage_in_bytes", Memory | Details, single(func(s *Stats) *uint64 { return &s.Memory.Kernel }), asCharged},
	{"memory", "memory.soft_limit_in_bytes", Memory | Details, limit(func(s *Stats) *uint64 { return &s.Memory.Reservation }), asSet},
	{"memory", "memory.failcnt", Memory | Details, single(func(s *Stats) *uint64 { return &s.Memory.AtLimit }), asCharged},
	{"memory", "memory.oom_control", Details, keyed((*Stats).setMemoryEvent), asWas},
	{"pids", "pids.current", Tasks, single(func(s *Stats) *uint64 { return &s.Tasks.Current }), nil},
	{"pids", "pids.max", Details, limit(func(s *Stats) *uint64 { return &s.Tasks.Limit }), asSet},
	{"blkio", "blkio.throttle.io_serviced_recursive", Details, deviceLines(func(d *DeviceIO) (read, write *uint64) { return &d.Reads, &d.Writes }), asWas},
	{"blkio", "blkio.throttle.io_service_bytes_recursive", Details, deviceLines(func(d *DeviceIO) (read, write *uint64) { return &d.ReadBytes, &d.WriteBytes }),
		func(s, was *Stats) bool { return was != nil || len(s.IO) == 0 }},
}

// Of a cgroup2, files that are written back later count for it: io.stat is always read. So is memory.events: at its limit, a group fails to
// be charged for what the network brings it.
var v2CounterFiles = []counterFile{
	{"", "cpu.stat", CPU, keyed((*Stats).setCPU), asWas},
	{"", "cpu.pressure", Pressure, pressure(func(p *PressureStats) (*Stall, *bool) { return &p.CPU, &p.Known.CPU }), nil},
	{"", "memory.pressure", Pressure, pressure(func(p *PressureStats) (*Stall, *bool) { return &p.Memory, &p.Known.Memory }), asCalm},
	{"", "io.pressure", Pressure, pressure(func(p *PressureStats) (*Stall, *bool) { return &p.IO, &p.Known.IO }), asCalm},
	{"memory", "memory.current", Memory, single(func(s *Stats) *uint64 { return &s.Memory.Usage }), nil},
	{"memory", "memory.max", Memory, limit(func(s *Stats) *uint64 { return &s.Memory.Limit }), nil},
	{"memory", "memory.stat", Memory, keyed((*Stats).setMemoryV2), nil},
	{"memory", "memory.swap.current", Memory, swapCurrent, nil},
	{"memory", "memory.swap.max", Memory, limit(func(s *Stats) *uint64 { return &s.Memory.SwapLimit }), nil},
	{"memory", "memory.peak", Memory | Details, single(func(s *Stats) *uint64 { return &s.Memory.Peak }), asCharged},
	{"memory", "memory.low", Memory | Details, limit(func(s *Stats) *uint64 { return &s.Memory.Reservation }), asSet},
	{"memory", "memory.events", Memory | Details, keyed((*Stats).setMemoryEvent), nil},
	{"pids", "pids.current", Tasks, single(func(s *Stats) *uint64 { return &s.Tasks.Current }), nil},
	{"pids", "pids.max", Details, limit(func(s *Stats) *uint64 { return &s.Tasks.Limit }), asSet},
	{"io", "io.stat", Details, ioStat, nil},
}

func (v1) counterFiles() []counterFile { return v1CounterFiles }
func (v2) counterFiles() []counterFile { return v2CounterFiles }

// tick is the unit of cpuacct.stat, in nanoseconds: USER_HZ is 100 on every architecture.
const tick = 1e7

func (s *Stats) setCPUTicks(key []byte, n uint64) {
	switch string(key) {
	case "user":
		s.CPU.User = n * tick
	case "system":
		s.CPU.System = n * tick
	}
}

// setCPU takes cpu.stat of both versions: v1 counts nanoseconds, v2, by other names, microseconds.
func (s *Stats) setCPU(key []byte, n uint64) {
	switch string(key) {
	case "usage_usec":
		s.CPU.Usage = n * 1000
	case "user_usec":
		s.CPU.User = n * 1000
	case "system_usec":
		s.CPU.System = n * 1000
	case "nr_periods":
		s.CPU.Periods = n
	case "nr_throttled":
		s.CPU.Throttled = n
	case "throttled_usec":
		s.CPU.ThrottledTime = n * 1000
	case "throttled_time":
		s.CPU.ThrottledTime = n
	}
}

func (s *Stats) setMemoryV1(key []byte, n uint64) {
	m := &s.Memory
	switch string(key) {
	case "pgfault":
		m.OwnFaults = n
	case "pgmajfault":
		m.OwnMajor = n
	case "total_cache":
		m.File = n
	case "total_rss":
		m.Anon = n
	case "total_mapped_file":
		m.MappedFile = n
	case "total_swap":
		m.Swap, m.HasSwap = n, true
	case "total_pgfault":
		m.Faults = n
	case "total_pgmajfault":
		m.Major = n
	case "total_inactive_file":
		m.InactiveFile = n
	case "hierarchical_memory_limit":
		if s.least = n; n >= uint64(unlimited) {
			s.least, m.Limit = NoLimit, NoLimit
		}
	case "hierarchical_memsw_limit":
		if s.leastSwap = n; n >= uint64(unlimited) {
			s.leastSwap, s.memsw = NoLimit, NoLimit
		}
	}
}

func (s *Stats) setMemoryV2(key []byte, n uint64) {
	m := &s.Memory
	switch string(key) {
	case "anon":
		m.Anon = n
	case "file":
		m.File = n
	case "kernel":
		m.Kernel = n
	case "file_mapped":
		m.MappedFile = n
	case "inactive_file":
		m.InactiveFile = n
	case "pgfault":
		m.Faults, m.OwnFaults = n, n
	case "pgmajfault":
		m.Major, m.OwnMajor = n, n
	}
}

// setMemoryEvent takes memory.events and v1's memory.oom_control.
func (s *Stats) setMemoryEvent(key []byte, n uint64) {
	switch string(key) {
	case "max":
		s.Memory.AtLimit = n
	case "oom_kill":
		s.Memory.OOMKill = n
	}
}

func swapCurrent(s *Stats, text []byte) bool {
	n, ok := number(bytes.TrimSpace(text))
	s.Memory.Swap, s.Memory.HasSwap = n, ok
	return ok
}

// single reads a file that is one number.
func single(field func(*Stats) *uint64) func(*Stats, []byte) bool {
	return func(s *Stats, text []byte) bool {
		n, ok := number(bytes.TrimSpace(text))
		*field(s) = n
		return ok
	}
}

// limit reads a file that is one number or none.
func limit(field func(*Stats) *uint64) func(*Stats, []byte) bool {
	return func(s *Stats, text []byte) bool {
		text = bytes.TrimSpace(text)
		if string(text) == "max" {
			*field(s) = NoLimit
			return true
		}
		n, ok := number(text)
		if n >= uint64(unlimited) {
			n = NoLimit
		}
		*field(s) = n
		return ok
	}
}

// keyed reads lines of a word and a number; lines of another form are none of ours.
func keyed(set func(s *Stats, key []byte, n uint64)) func(*Stats, []byte) bool {
	return func(s *Stats, text []byte) bool {
		for len(text) > 0 {
			var line []byte
			line, text = cutLine(text)
			key, value, _ := bytes.Cut(line, space)
			if n, ok := number(value); ok {
				set(s, key, n)
			}
		}
		return true
	}
}

// pressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the like for full, which some kernels do not have.
func pressure(field func(*PressureStats) (*Stall, *bool)) func(*Stats, []byte) bool {
	return func(s *Stats, text []byte) bool {
		stall, known := field(&s.Pressure)
		*known = false
		for len(text) > 0 {
			var line, word []byte
			line, text = cutLine(text)
			word, line, _ = bytes.Cut(line, space)
			var t *StallTime
			switch string(word) {
			case "some":
				t = &stall.Some
			case "full":
				t = &stall.Full
			default:
				continue
			}
			if !t.parse(line) {
				return false
			}
			*known = true
		}
		return *known
	}
}

func (t *StallTime) parse(line []byte) bool {
	for len(line) > 0 {
		var pair []byte
		pair, line, _ = bytes.Cut(line, space)
		key, value, _ := bytes.Cut(pair, []byte{'='})
		var ok bool
		switch string(key) {
		case "total":
			var usec uint64
			usec, ok = number(value)
			t.Total = usec * 1000
		case "avg10":
			t.Avg10, ok = percent(value)
		case "avg60":
			t.Avg60, ok = percent(value)
		case "avg300":
			t.Avg300, ok = percent(value)
		default:
			ok = true
		}
		if !ok {
			return false
		}
	}
	return true
}

// deviceLines reads v1's "8:0 Read 4096" lines; the others are sums and other views of the same.
func deviceLines(field func(*DeviceIO) (read, write *uint64)) func(*Stats, []byte) bool {
	return func(s *Stats, text []byte) bool {
		for len(text) > 0 {
			var line []byte
			line, text = cutLine(text)
			device, rest, found := bytes.Cut(line, space)
			word, value, more := bytes.Cut(rest, space)
			if !found || !more {
				continue // "Total 0"
			}
			n, ok := number(value)
			if !ok {
				return false
			}
			d := s.device(device)
			if d == nil {
				return false
			}
			read, write := field(d)
			switch string(word) {
			case "Read":
				*read = n
			case "Write":
				*write = n
			}
		}
		return true
	}
}

// ioStat reads v2's "8:0 rbytes=0 wbytes=4096 rios=0 wios=1 dbytes=0 dios=0". A device without numbers is listed as well.
func ioStat(s *Stats, text []byte) bool {
	s.IO = nil
	for len(text) > 0 {
		var line []byte
		line, text = cutLine(text)
		device, rest, _ := bytes.Cut(line, space)
		d := s.device(device)
		if d == nil {
			return false
		}
		for len(rest) > 0 {
			var pair []byte
			pair, rest, _ = bytes.Cut(rest, space)
			key, value, _ := bytes.Cut(pair, []byte{'='})
			n, _ := number(value)
			switch string(key) {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
	}
	return true
}

// device finds or adds the one that is named like "8:0"; nil if that is no name.
func (s *Stats) device(name []byte) *DeviceIO {
	first, second, _ := bytes.Cut(name, []byte{':'})
	major, ok := number(first)
	minor, ok2 := number(second)
	if !ok || !ok2 || major > math.MaxUint32 || minor > math.MaxUint32 {
		return nil
	}
	for i := range s.IO {
		if s.IO[i].Major == uint32(major) && s.IO[i].Minor == uint32(minor) {
			return &s.IO[i]
		}
	}
	s.IO = append(s.IO, DeviceIO{Major: uint32(major), Minor: uint32(minor)})
	return &s.IO[len(s.IO)-1]
}

// hugeFiles are the control files of the page sizes of this machine, which do not change while it runs.
var hugeFiles = sync.OnceValue(func() (sizes []hugeFile) {
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages") // without: there are none
	for _, e := range entries {
		text, found := strings.CutPrefix(strings.TrimSuffix(e.Name(), "kB"), "hugepages-")
		kb, err := strconv.ParseUint(text, 10, 64)
		if !found || err != nil {
			continue
		}
		name := hugeSize(kb)
		sizes = append(sizes, hugeFile{size: name, usage: "hugetlb." + name + ".usage_in_bytes", peak: "hugetlb." + name + ".max_usage_in_bytes",
			current: "hugetlb." + name + ".current"})
	}
	return sizes
})

type hugeFile struct {
	size        string
	usage, peak string // v1
	current     string // v2
}

// hugeSize spells a size as the kernel does in names of files.
func hugeSize(kb uint64) string {
	switch {
	case kb >= 1<<20:
		return strconv.FormatUint(kb>>20, 10) + "GB"
	case kb >= 1<<10:
		return strconv.FormatUint(kb>>10, 10) + "MB"
	}
	return strconv.FormatUint(kb, 10) + "KB"
}

// countHugePages counts each size. Of v1, a group that never had pages of a size has none now.
func (r *counting) countHugePages(s *Stats) error {
	one := counterFile{kinds: Details}
	s.Huge = nil
	read := func(name string, to *uint64) error {
		one.parse = single(func(*Stats) *uint64 { return to })
		return r.count(&one, name, s)
	}
	for _, f := range hugeFiles() {
		s.Huge = append(s.Huge, HugePages{Size: f.size})
		page := &s.Huge[len(s.Huge)-1]
		if r.h.Unified {
			if err := read(f.current, &page.Usage); err != nil {
				return err
			}
			continue
		}
		if err := read(f.peak, &page.Peak); err != nil {
			return err
		}
		if page.Peak == 0 {
			continue
		}
		if err := read(f.usage, &page.Usage); err != nil {
			return err
		}
	}
	return nil
}

var space = []byte{' '}

func cutLine(text []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(text, []byte{'\n'})
	return line, rest
}

func number(text []byte) (n uint64, ok bool) {
	n, err := strconv.ParseUint(string(text), 10, 64) // of so short a string that it is not allocated
	return n, err == nil
}

// percent reads "12.34".
func percent(text []byte) (n float64, ok bool) {
	n, err := strconv.ParseFloat(string(text), 64)
	return n, err == nil
}
