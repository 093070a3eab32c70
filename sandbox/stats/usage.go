package stats

import (
	"math"
	"sync"
	"time"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// Usage is what the processes of a cgroup use.
type Usage struct {
	At       time.Time
	Counters cgroup.Stats
	Cores    uint64 // of CPU time in the last seconds, in billionths of a core
	HasCores bool   // false until there are two samples
}

// HasCPU says whether CPU time is counted.
func (u *Usage) HasCPU() bool { return u.Counters.Known&cgroup.CPU != 0 }

// HasMemory says whether memory is counted.
func (u *Usage) HasMemory() bool { return u.Counters.Known&cgroup.Memory != 0 }

// HasTasks says whether tasks are counted.
func (u *Usage) HasTasks() bool { return u.Counters.Known&cgroup.Tasks != 0 }

// WorkingSet is the memory that cannot be taken back without harm: all but file pages that nobody has used of late.
func (u *Usage) WorkingSet() uint64 {
	m := &u.Counters.Memory
	return m.Usage - min(m.Usage, m.InactiveFile)
}

// MemoryLimit is 0 if there is none.
func (u *Usage) MemoryLimit() uint64 { return orZero(u.Counters.Memory.Limit) }

// MemoryAndSwapLimit is 0 if there is none.
func (u *Usage) MemoryAndSwapLimit() uint64 {
	m := &u.Counters.Memory
	if !m.HasSwap {
		return u.MemoryLimit()
	}
	return orZero(addLimit(m.Limit, m.SwapLimit))
}

// Reservation is 0 if there is none.
func (u *Usage) Reservation() uint64 { return orZero(u.Counters.Memory.Reservation) }

// TaskLimit is 0 if there is none.
func (u *Usage) TaskLimit() uint64 { return orZero(u.Counters.Tasks.Limit) }

// Available is what is left of the memory limit, 0 without one.
func (u *Usage) Available() uint64 {
	limit := u.MemoryLimit()
	return limit - min(limit, u.WorkingSet())
}

// SwapAvailable is what is left of the swap limit, if there is one.
func (u *Usage) SwapAvailable() (available uint64, limited bool) {
	m := &u.Counters.Memory
	return m.SwapLimit - min(m.SwapLimit, m.Swap), m.SwapLimit != cgroup.NoLimit
}

// Stall says how long tasks stood still for want of one thing, and StallTime is a part of it.
type (
	Stall     = cgroup.Stall
	StallTime = cgroup.StallTime
)

// Stalls are the kinds of Stall; nil where the kernel does not count.
type Stalls struct{ CPU, Memory, IO *Stall }

// Stalls gives what is counted.
func (u *Usage) Stalls() Stalls {
	p := &u.Counters.Pressure
	known := func(s *Stall, ok bool) *Stall {
		if ok {
			return s
		}
		return nil
	}
	return Stalls{CPU: known(&p.CPU, p.Known.CPU), Memory: known(&p.Memory, p.Known.Memory), IO: known(&p.IO, p.Known.IO)}
}

func orZero(limit uint64) uint64 {
	if limit == cgroup.NoLimit {
		return 0
	}
	return limit
}

// What is read of cgroups for which purpose.
const (
	Rate      = cgroup.CPU
	Container = cgroup.CPU | cgroup.Memory | cgroup.Pressure
	Pod       = Container | cgroup.Tasks
	metrics   = Pod | cgroup.Details
)

// A Collector reads usages.
type Collector struct {
	period  time.Duration
	buffers sync.Pool
}

// NewCollector makes a Collector for usages that are sampled every period by somebody, or with 0 only when they are asked for.
func NewCollector(period time.Duration) *Collector {
	return &Collector{period: period, buffers: sync.Pool{New: func() any { return new(cgroup.StatsBuffer) }}}
}

// Read reads what is wanted of a group, and notes its CPU time in m.
func (c *Collector) Read(g *cgroup.Group, want cgroup.Counters, m *Meter) (*Usage, error) {
	buf := c.buffers.Get().(*cgroup.StatsBuffer)
	defer c.buffers.Put(buf)
	u := &Usage{At: time.Now()}
	if err := g.Stats(want, &u.Counters, buf); err != nil {
		return nil, err
	}
	c.Note(u, m)
	return u, nil
}

// Note adds the rate to a usage, whose CPU time it notes in m.
func (c *Collector) Note(u *Usage, m *Meter) {
	if u.HasCPU() {
		u.Cores, u.HasCores = m.Observe(u.At, u.Counters.CPU.Usage, c.period)
	}
}

// Sum adds usages up, as of groups that have no other around them. Pressure and details do not add up and are left out; a limit
// holds only if all have one. Without usages it is the zero Usage.
func Sum(all []Usage) Usage {
	var sum Usage
	for i := range all {
		u := &all[i]
		if i == 0 {
			sum.At, sum.Counters.Known = u.At, u.Counters.Known&^(cgroup.Pressure|cgroup.Details)
		}
		sum.Counters.Known &= u.Counters.Known
		to, from := &sum.Counters, &u.Counters
		to.CPU.Usage += from.CPU.Usage
		to.Tasks.Current += from.Tasks.Current
		t, f := &to.Memory, &from.Memory
		t.Usage += f.Usage
		t.InactiveFile += f.InactiveFile
		t.Anon += f.Anon
		t.File += f.File
		t.MappedFile += f.MappedFile
		t.Faults += f.Faults
		t.Major += f.Major
		t.Swap += f.Swap
		t.HasSwap = t.HasSwap || f.HasSwap
		t.Limit, t.SwapLimit = addLimit(t.Limit, f.Limit), addLimit(t.SwapLimit, f.SwapLimit)
	}
	return sum
}

func addLimit(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return cgroup.NoLimit
	}
	return a + b
}
