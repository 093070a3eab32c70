package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/sandbox/stats"
)

// ContainerStats is what a container uses at one moment.
type ContainerStats struct {
	*ContainerStatus
	Cgroup    string            // its path; empty with Usage nil
	Usage     *stats.Usage      // nil: it has ended, or its cgroup is gone
	Layer     *stats.LayerUsage // nil: not yet measured
	Processes *stats.Processes  // for metrics only
}

// PodStats is what a pod uses at one moment.
type PodStats struct {
	*PodStatus
	Cgroup     string         // path of that of pause
	Usage      *stats.Usage   // of all that is in the pod; nil: its cgroups are gone
	Network    *stats.Network // nil on the host's network
	Containers []ContainerStats
}

// ContainerStats measures a container. The error is ErrNotFound, or ErrInvalid if id fits several.
func (s *Service) ContainerStats(id ContainerID) (ContainerStats, error) {
	c, err := s.container(id)
	if err != nil {
		return ContainerStats{}, err
	}
	st, err := c.measure(whole, nil)
	if err != nil {
		return ContainerStats{}, fmt.Errorf("measure container %s: %w", c.id, err)
	}
	return st, nil
}

// MeasureContainer measures one container of a list; not ok if it was removed meanwhile. What cannot be measured of it is left out.
func (s *Service) MeasureContainer(status *ContainerStatus) (st ContainerStats, ok bool) {
	c, err := s.container(status.ID)
	if err != nil {
		return ContainerStats{}, false
	}
	st, err = c.measure(whole, nil)
	if err != nil {
		s.log.Warn("cannot measure a container", "container", c.id, "error", err)
	}
	return st, true
}

// PodStats measures a pod, which must be ready. The error is ErrNotFound, ErrState, or ErrInvalid if id fits several.
func (s *Service) PodStats(id ID) (PodStats, error) {
	p, err := s.pod(id)
	if err != nil {
		return PodStats{}, err
	}
	st, ready, err := p.measure(whole)
	switch {
	case !ready:
		return PodStats{}, fmt.Errorf("%w: pod %s is not ready", ErrState, p.id)
	case err != nil:
		return PodStats{}, fmt.Errorf("measure pod %s: %w", p.id, err)
	}
	return st, nil
}

// MeasurePod measures one pod of a list, like MeasureContainer; not ok also if it is not ready.
func (s *Service) MeasurePod(status *PodStatus) (PodStats, bool) { return s.measurePod(status, whole) }

// MeasurePodMetrics measures all that can be counted of the containers of a pod, like MeasurePod.
func (s *Service) MeasurePodMetrics(status *PodStatus) (PodStats, bool) {
	return s.measurePod(status, details)
}

func (s *Service) measurePod(status *PodStatus, how extent) (PodStats, bool) {
	p, err := s.pod(status.ID)
	if err != nil {
		return PodStats{}, false
	}
	st, ready, err := p.measure(how)
	if err != nil {
		s.log.Warn("cannot measure a pod", "pod", p.id, "error", err)
	}
	return st, ready
}

// measure reads what is wanted of a container, for statistics of its pod after pod was read. With an error, the rest is valid.
func (c *container) measure(how extent, pod *stats.Usage) (ContainerStats, error) {
	st := ContainerStats{ContainerStatus: c.status.Load()}
	if u, ok := c.written(); ok {
		st.Layer = &u
	}
	group := c.group()
	if st.State == ContainerExited || group == nil {
		return st, nil
	}
	var err error
	switch collector := c.p.s.collector; {
	case how.metrics:
		st.Usage, st.Processes, err = collector.ReadMetrics(group, st.Pid, &c.meter, &c.idle)
	case pod != nil:
		st.Usage, err = collector.ReadInside(pod, group, how.container, &c.meter, &c.atRest)
	default:
		st.Usage, err = collector.Read(group, how.container, &c.meter)
	}
	if st.Usage != nil {
		st.Cgroup = group.Path()
	}
	if c.status.Load().State == ContainerExited { // meanwhile
		err = nil
	}
	return st, err
}

// group is the container's cgroup; nil if there is none any more.
func (c *container) group() *cgroup.Group {
	if _, rt := c.look(); rt != nil {
		return rt.Cgroup()
	}
	return nil
}

// extent is how much of a pod is measured.
type extent struct {
	pod, container cgroup.Counters // pod 0: only containers and network
	metrics        bool            // all that can be counted of containers
	network        bool
}

var (
	whole   = extent{pod: stats.Pod, container: stats.Container, network: true}
	details = extent{metrics: true, network: true}
	rates   = extent{pod: stats.Rate, container: stats.Rate}
)

// measure reads what is wanted of a pod and its containers, if it is ready. With an error, the rest is valid.
func (p *pod) measure(how extent) (st PodStats, ready bool, err error) {
	st.PodStatus = p.status.Load()
	rt := p.runtime()
	if st.State != PodReady || rt == nil {
		return st, false, nil
	}
	if group := rt.Cgroup(); group != nil {
		st.Cgroup = group.Path()
	}
	var failed error
	around := rt.Around()
	switch {
	case around == nil:
		how.container |= how.pod // to be summed up
	case how.pod != 0:
		st.Usage, failed = p.s.collector.ReadPod(around, how.pod, &p.meter, &p.atRest)
	}
	for _, c := range p.containers(listed) {
		one, err := c.measure(how, st.Usage)
		if err != nil {
			failed = fmt.Errorf("container %s: %w", c.id, err)
		}
		st.Containers = append(st.Containers, one)
	}
	if around == nil && how.pod != 0 {
		if st.Usage, err = p.sum(rt, how.pod, st.Containers); err != nil {
			failed = err
		}
	}
	if how.network {
		if st.Network, err = p.network(rt); err != nil {
			failed = err
		}
	}
	if p.look() != podReady { // meanwhile
		return st, false, nil
	}
	return st, true, failed
}

// listed says whether List shows a container in this phase.
func listed(phase containerPhase) bool {
	return phase != containerCreating && phase != containerRemoved
}

// sum is the usage of pause and the containers.
func (p *pod) sum(rt RuntimePod, want cgroup.Counters, containers []ContainerStats) (*stats.Usage, error) {
	var all []stats.Usage
	if group := rt.Cgroup(); group != nil {
		u, err := p.s.collector.Read(group, want, &stats.Meter{})
		if err != nil {
			return nil, fmt.Errorf("pause: %w", err)
		}
		all = append(all, *u)
	}
	for _, c := range containers {
		if c.Usage != nil {
			all = append(all, *c.Usage)
		}
	}
	sum := stats.Sum(all)
	p.s.collector.Note(&sum, &p.meter)
	return &sum, nil
}

// network reads the traffic of the pod's own network through pause, which lives in it.
func (p *pod) network(rt RuntimePod) (*stats.Network, error) {
	if p.spec.hostNetwork {
		return nil, nil
	}
	n, err := stats.ReadNetwork(rt.Pid())
	select {
	case <-rt.Exited(): // the number may be another's
		return nil, nil
	default:
	}
	if err != nil {
		return nil, err
	}
	return &n, nil
}

// sample reads the CPU time of everything every period, for rates.
func (s *Service) sample(ctx context.Context) {
	ticker := time.NewTicker(s.config.StatsPeriod)
	defer ticker.Stop()
	for {
		for _, p := range s.table.Load().pods {
			if ctx.Err() != nil {
				return
			}
			_, _, _ = p.measure(rates) // whoever asks for it hears of the error
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// layers lists the writable layers that must be walked through.
func (s *Service) layers() []stats.Target {
	containers := s.table.Load().containers
	all := make([]stats.Target, 0, len(containers))
	for _, c := range containers {
		if _, counted := c.counted(); !counted {
			all = append(all, stats.Target{Layer: &c.layer, Dir: s.config.UpperDir(string(c.id))})
		}
	}
	return all
}

// measureLayer counts the writable layer for the first time, while it is as good as empty.
func (c *container) measureLayer(ctx context.Context) {
	if _, counted := c.counted(); counted {
		return
	}
	if config := &c.p.s.config; config.LayerPeriod > 0 && config.UpperDir != nil {
		c.layer.Visit(ctx, config.UpperDir(string(c.id)))
	}
}

// Written is what a container has written to its root, as far as it is known.
func (s *Service) Written(id string) (bytes, inodes uint64, known bool) {
	c, err := s.container(ContainerID(id))
	if err != nil {
		return 0, 0, false
	}
	u, known := c.written()
	return u.Bytes, u.Inodes, known
}

// written is what is known of the writable layer: counted by the file system, or found when it was walked through last.
func (c *container) written() (stats.LayerUsage, bool) {
	if u, ok := c.counted(); ok {
		return u, true
	}
	return c.layer.Usage()
}

// counted is what the file system says of the writable layer.
func (c *container) counted() (stats.LayerUsage, bool) {
	if c.p.s.config.Written == nil {
		return stats.LayerUsage{}, false
	}
	bytes, inodes, ok := c.p.s.config.Written(string(c.id))
	return stats.LayerUsage{At: time.Now(), Bytes: bytes, Inodes: inodes}, ok
}

// measuring begins what goes on beside requests for statistics.
func (s *Service) measuring() {
	if s.config.StatsPeriod > 0 {
		s.spawn(s.sample)
	}
	if s.config.LayerPeriod > 0 && s.config.UpperDir != nil {
		s.spawn(func(ctx context.Context) { stats.Walk(ctx, s.config.LayerPeriod, s.layers) })
	}
}

// LayerFileSystem is what there is of the file system of writable layers.
func (s *Service) LayerFileSystem() (stats.FileSystem, error) {
	return stats.ReadFileSystem(s.config.LayerDir)
}

// LayerDir is a directory on the file system of writable layers.
func (s *Service) LayerDir() string { return s.config.LayerDir }
