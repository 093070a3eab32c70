package stats

import (
	"sync"
	"time"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// settling is how long a group must have been idle before what is read of it is kept: the kernel counts some of what tasks did
// after they have stopped, a period of the CPU quota or the end of a zombie, in parts of a second, and pressure every two. In twice
// that, a task that waits for something all the time shows.
const settling = 5 * time.Second

// An Idle remembers of a group what only its own tasks change, for as long as none of them runs, or none in the group around it: which
// they cannot without using processor time. A task that joins or leaves is seen, too. The zero value knows nothing.
type Idle struct {
	mu    sync.Mutex
	trace trace
	since time.Time // when trace was seen first
	own   *own      // read when trace had been seen for settling; nil: not yet
}

// trace is what does not stay if a task has run.
type trace struct {
	cpu, tasks uint64
}

// traced are the counters of a trace.
const traced = cgroup.CPU | cgroup.Tasks

// traceOf is nil where the kernel does not count all of it.
func traceOf(u *Usage) *trace {
	if u.Counters.Known&traced != traced {
		return nil
	}
	return &trace{u.Counters.CPU.Usage, u.Counters.Tasks.Current}
}

// readTrace begins a reading.
func (c *Collector) readTrace(g *cgroup.Group, m *Meter, buf *cgroup.StatsBuffer) (*Usage, *trace, error) {
	u := &Usage{At: time.Now()}
	if err := g.Stats(traced, &u.Counters, buf); err != nil {
		return nil, nil, err
	}
	c.Note(u, m)
	return u, traceOf(u), nil
}

// own is what only the tasks of a group change. It is immutable.
type own struct {
	kinds     cgroup.Counters // of counters
	counters  cgroup.Stats
	processes Processes // of metrics
}

// settled gives what is remembered of a group that is idle; nil: it has to be read. keep says that what is read after that may be remembered.
func (i *Idle) settled(at time.Time, now *trace) (known *own, keep bool) {
	if now == nil {
		return nil, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.since.IsZero() || *now != i.trace {
		i.trace, i.since, i.own = *now, at, nil
	}
	return i.own, at.Sub(i.since) >= settling
}

// remember keeps what is lasting of what was read after settled had said so, unless the group has run meanwhile.
func (i *Idle) remember(of trace, read *cgroup.Stats, p Processes) {
	i.mu.Lock()
	defer i.mu.Unlock()
	kinds := read.Lasting()
	if of == i.trace && (i.own == nil || kinds&^i.own.kinds != 0) {
		i.own = &own{kinds, *read, p}
	}
}

// more reads what is wanted of a group and not known.
func (o *own) more(g *cgroup.Group, want cgroup.Counters, s *cgroup.Stats, buf *cgroup.StatsBuffer) (kept cgroup.Counters, err error) {
	if o == nil {
		return 0, g.MoreStats(want, s, buf)
	}
	kept = o.kinds & want
	if err := g.MoreStats(want&^kept, s, buf); err != nil {
		return 0, err
	}
	s.Keep(kept, &o.counters)
	return kept, nil
}

// ReadPod reads what is wanted of the group around a pod, and notes its CPU time in m. What only its tasks change is read again only if
// one has run since.
func (c *Collector) ReadPod(g *cgroup.Group, want cgroup.Counters, m *Meter, i *Idle) (*Usage, error) {
	buf := c.buffers.Get().(*cgroup.StatsBuffer)
	defer c.buffers.Put(buf)
	u, now, err := c.readTrace(g, m, buf)
	if err != nil {
		return nil, err
	}
	known, keep := i.settled(u.At, now)
	if _, err := known.more(g, want&^traced, &u.Counters, buf); err != nil {
		return nil, err
	}
	if keep {
		i.remember(*now, &u.Counters, Processes{})
	}
	return u, nil
}

// ReadInside is ReadPod of a container in a pod, of which around was read before: a task of the container is one of the pod. As
// one that waits can be moved from one container to another, nothing is spared while somebody does.
func (c *Collector) ReadInside(around *Usage, g *cgroup.Group, want cgroup.Counters, m *Meter, i *Idle) (*Usage, error) {
	buf := c.buffers.Get().(*cgroup.StatsBuffer)
	defer c.buffers.Put(buf)
	u := &Usage{At: time.Now()}
	now := traceOf(around)
	if of := &around.Counters; of.Known&cgroup.WaitPressure&^of.Lasting() != 0 {
		now = nil
	}
	known, keep := i.settled(around.At, now)
	kept, err := known.more(g, want, &u.Counters, buf)
	if err != nil {
		return nil, err
	}
	if keep {
		i.remember(*now, &u.Counters, Processes{})
	}
	if kept&cgroup.CPU != 0 {
		u.At = around.At // it may have run again after that
	}
	c.Note(u, m)
	return u, nil
}

// ReadMetrics reads all that can be counted of a group and its processes, of which first is the first, and notes its CPU time in m.
// What only its tasks change is read again only if one has run since. With an error, what is not nil is valid.
func (c *Collector) ReadMetrics(g *cgroup.Group, first int, m *Meter, i *Idle) (*Usage, *Processes, error) {
	buf := c.buffers.Get().(*cgroup.StatsBuffer)
	defer c.buffers.Put(buf)
	u, now, err := c.readTrace(g, m, buf)
	if err != nil {
		return nil, nil, err
	}
	known, keep := i.settled(u.At, now)
	if _, err := known.more(g, cgroup.Memory|cgroup.Pressure|cgroup.Details|cgroup.Own, &u.Counters, buf); err != nil {
		return nil, nil, err
	}
	var p Processes
	if known != nil {
		p = known.processes
	} else {
		pids, err := g.Processes()
		if err != nil {
			return u, nil, err
		}
		p = countProcesses(pids)
	}
	if keep {
		i.remember(*now, &u.Counters, p)
	}
	return u, p.withLimit(first), nil
}
