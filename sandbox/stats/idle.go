package stats

import (
	"sync"
	"time"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// settling is how long a group must have been idle before what is read of it is kept: the kernel counts some of what tasks did
// after they have stopped, a period of the CPU quota or the end of a zombie, in parts of a second.
const settling = time.Second

// An Idle remembers of a group what only its own tasks change, for as long as none of them runs: which they cannot without using
// processor time. A task that joins or leaves is seen, too. The zero value knows nothing.
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

// own is what only the tasks of a group change. It is immutable.
type own struct {
	counters  cgroup.Stats
	processes Processes
}

// settled gives what is remembered of a group that is idle; nil: it has to be read. keep says that it may then be remembered.
func (i *Idle) settled(at time.Time, now trace) (known *own, keep bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.since.IsZero() || now != i.trace {
		i.trace, i.since, i.own = now, at, nil
	}
	return i.own, at.Sub(i.since) >= settling
}

// remember keeps what was read after settled had said so, unless the group has run meanwhile.
func (i *Idle) remember(of trace, o *own) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if of == i.trace {
		i.own = o
	}
}

// ReadMetrics reads all that can be counted of a group and its processes, of which first is the first, and notes its CPU time in m.
// What only its tasks change is read again only if one has run since. With an error, what is not nil is valid.
func (c *Collector) ReadMetrics(g *cgroup.Group, first int, m *Meter, i *Idle) (*Usage, *Processes, error) {
	buf := c.buffers.Get().(*cgroup.StatsBuffer)
	defer c.buffers.Put(buf)
	u := &Usage{At: time.Now()}
	if err := g.Stats(cgroup.CPU|cgroup.Tasks, &u.Counters, buf); err != nil {
		return nil, nil, err
	}
	c.Note(u, m)
	now := trace{u.Counters.CPU.Usage, u.Counters.Tasks.Current}
	var known *own
	var keep bool
	if u.HasCPU() && u.HasTasks() {
		known, keep = i.settled(u.At, now)
	}
	want := cgroup.Memory | cgroup.Pressure | cgroup.Details
	if known == nil {
		want |= cgroup.Own
	}
	if err := g.MoreStats(want, &u.Counters, buf); err != nil {
		return nil, nil, err
	}
	if known != nil {
		u.Counters.KeepOwn(&known.counters)
		return u, known.processes.withLimit(first), nil
	}
	pids, err := g.Processes()
	if err != nil {
		return u, nil, err
	}
	p := countProcesses(pids)
	if keep && !u.Counters.HasHugePages() {
		i.remember(now, &own{u.Counters, p})
	}
	return u, p.withLimit(first), nil
}
