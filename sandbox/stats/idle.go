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

// An Idle remembers the latest reading of a group for as long as none of its tasks runs, or none in the group around it: which they cannot
// without using processor time. A task that joins or leaves is seen, too. The zero value knows nothing.
type Idle struct {
	mu    sync.Mutex
	trace trace
	since time.Time // when trace was seen first
	last  *whole    // read when trace had been seen for settling; nil: not yet
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

// whole is a reading of a group. It is immutable.
type whole struct {
	*cgroup.Stats
	processes Processes // of metrics
}

// counters are nil of no reading.
func (w *whole) counters() *cgroup.Stats {
	if w == nil {
		return nil
	}
	return w.Stats
}

// A look is what an Idle says before a reading.
type look struct {
	last *whole // the latest reading, since which no task has run; nil: there is none
	of   trace
	keep bool // the reading may be remembered
}

// look looks at a trace, or, with nil, remembers nothing.
func (i *Idle) look(at time.Time, now *trace) look {
	if now == nil {
		return look{}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.since.IsZero() || *now != i.trace {
		i.trace, i.since, i.last = *now, at, nil
	}
	return look{i.last, *now, at.Sub(i.since) >= settling}
}

// remember keeps what was read after a look, unless the group has run meanwhile.
func (i *Idle) remember(l look, read whole) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if l.keep && l.of == i.trace {
		i.last = &read
	}
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
	l := i.look(u.At, now)
	if err := g.MoreStats(want&^traced, &u.Counters, l.last.counters(), buf); err != nil {
		return nil, err
	}
	i.remember(l, whole{Stats: &u.Counters})
	return u, nil
}

// ReadInside is ReadPod of a container in a pod, of which around was read before: a task of the container is one of the pod. As
// one that waits can be moved from one container to another, nothing is spared while somebody does.
func (c *Collector) ReadInside(around *Usage, g *cgroup.Group, want cgroup.Counters, m *Meter, i *Idle) (*Usage, error) {
	buf := c.buffers.Get().(*cgroup.StatsBuffer)
	defer c.buffers.Put(buf)
	u := &Usage{At: time.Now()}
	now := traceOf(around)
	if !around.Counters.Calm() {
		now = nil
	}
	l := i.look(around.At, now)
	if err := g.MoreStats(want, &u.Counters, l.last.counters(), buf); err != nil {
		return nil, err
	}
	i.remember(l, whole{Stats: &u.Counters})
	if l.last != nil {
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
	l := i.look(u.At, now)
	if err := g.MoreStats(metrics&^traced, &u.Counters, l.last.counters(), buf); err != nil {
		return nil, nil, err
	}
	var p Processes
	if l.last != nil {
		p = l.last.processes
	} else {
		pids, err := g.Processes()
		if err != nil {
			return u, nil, err
		}
		p = countProcesses(pids)
	}
	i.remember(l, whole{&u.Counters, p})
	return u, p.withLimit(first), nil
}
