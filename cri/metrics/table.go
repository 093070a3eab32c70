package metrics

import (
	"strconv"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox/stats"
)

const (
	counter = runtimev1.MetricType_COUNTER
	gauge   = runtimev1.MetricType_GAUGE
)

// second is the unit of counters of time.
const second = 1e9

// layerUsage is the one metric that is measured in the background.
const layerUsage = "container_fs_usage_bytes"

// containerRow is a metric of containers. values emits each of its values with the row's labels.
type containerRow struct {
	description
	values func(s *source, emit emit)
}

type emit func(value uint64, labels ...string)

// networkRow is a metric of a pod's network devices.
type networkRow struct {
	description
	value func(*stats.Interface) uint64
}

var deviceLabels = []string{"device"}

var networkLabels = []string{"interface"}

var containerRows = []containerRow{
	{description{"container_blkio_device_usage_total", counter, []string{"device", "major", "minor", "operation"}, "Bytes read from and written to a block device."}, blockBytes},
	{description{"container_cpu_cfs_periods_total", counter, nil, "Periods of the CPU quota that have passed."}, cpu(func(u *stats.Usage) uint64 { return u.Counters.CPU.Periods })},
	{description{"container_cpu_cfs_throttled_periods_total", counter, nil, "Periods in which the CPU quota was used up."}, cpu(func(u *stats.Usage) uint64 { return u.Counters.CPU.Throttled })},
	{description{"container_cpu_cfs_throttled_seconds_total", counter, nil, "Seconds in which the CPU quota was used up."}, cpu(func(u *stats.Usage) uint64 { return u.Counters.CPU.ThrottledTime / second })},
	{description{"container_cpu_system_seconds_total", counter, nil, "CPU seconds used in the kernel."}, cpu(func(u *stats.Usage) uint64 { return u.Counters.CPU.System / second })},
	{description{"container_cpu_usage_seconds_total", counter, []string{"cpu"}, "CPU seconds used, of all processors together."}, cpu(func(u *stats.Usage) uint64 { return u.Counters.CPU.Usage / second }, "total")},
	{description{"container_cpu_user_seconds_total", counter, nil, "CPU seconds used by programs."}, cpu(func(u *stats.Usage) uint64 { return u.Counters.CPU.User / second })},
	{description{"container_file_descriptors", gauge, nil, "Open file descriptors of all processes."}, processes(func(p *stats.Processes) uint64 { return p.Descriptors })},
	{description{"container_fs_inodes_free", gauge, deviceLabels, "Inodes that are free on the file system of the root."}, fileSystem(func(f *stats.FileSystem) uint64 { return f.InodesFree })},
	{description{"container_fs_inodes_total", gauge, deviceLabels, "Inodes of the file system of the root."}, fileSystem(func(f *stats.FileSystem) uint64 { return f.Inodes })},
	{description{"container_fs_limit_bytes", gauge, deviceLabels, "Bytes that the container can use on the file system of its root: its size."}, fileSystem(func(f *stats.FileSystem) uint64 { return f.Bytes })},
	{description{"container_fs_reads_bytes_total", counter, deviceLabels, "Bytes read from a block device."}, device(func(d *stats.DeviceIO) uint64 { return d.ReadBytes })},
	{description{"container_fs_reads_total", counter, deviceLabels, "Reads from a block device."}, device(func(d *stats.DeviceIO) uint64 { return d.Reads })},
	{description{layerUsage, gauge, deviceLabels, "Bytes that the container has written to its root and that are there."}, written},
	{description{"container_fs_writes_bytes_total", counter, deviceLabels, "Bytes written to a block device."}, device(func(d *stats.DeviceIO) uint64 { return d.WriteBytes })},
	{description{"container_fs_writes_total", counter, deviceLabels, "Writes to a block device."}, device(func(d *stats.DeviceIO) uint64 { return d.Writes })},
	{description{"container_hugetlb_max_usage_bytes", gauge, []string{"pagesize"}, "Most bytes in huge pages of a size so far; of cgroup v2, which does not keep it, the present ones."}, hugePages(func(h *stats.HugePages) uint64 { return max(h.Peak, h.Usage) })},
	{description{"container_hugetlb_usage_bytes", gauge, []string{"pagesize"}, "Bytes in huge pages of a size."}, hugePages(func(h *stats.HugePages) uint64 { return h.Usage })},
	{description{"container_last_seen", gauge, nil, "When the container was last seen, in seconds since 1970."}, always(func(s *source) uint64 { return uint64(s.now.Unix()) })},
	{description{"container_memory_cache", gauge, nil, "Bytes of file pages."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.File })},
	{description{"container_memory_failcnt", counter, nil, "How often the memory limit was hit."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.AtLimit })},
	{description{"container_memory_failures_total", counter, []string{"failure_type", "scope"}, "Page faults, of the container without and with groups that it has made."}, faults},
	{description{"container_memory_kernel_usage", gauge, nil, "Bytes that the kernel uses for the container."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.Kernel })},
	{description{"container_memory_mapped_file", gauge, nil, "Bytes of files that are mapped."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.MappedFile })},
	{description{"container_memory_max_usage_bytes", gauge, nil, "Most bytes of memory so far."}, memory(func(u *stats.Usage) uint64 { return max(u.Counters.Memory.Peak, u.Counters.Memory.Usage) })},
	{description{"container_memory_rss", gauge, nil, "Bytes of memory that is no file's."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.Anon })},
	{description{"container_memory_swap", gauge, nil, "Bytes in swap."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.Swap })},
	{description{"container_memory_usage_bytes", gauge, nil, "Bytes of memory, whenever they were used."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.Usage })},
	{description{"container_memory_working_set_bytes", gauge, nil, "Bytes of memory without file pages that nobody has used of late."}, memory((*stats.Usage).WorkingSet)},
	{description{"container_oom_events_total", counter, nil, "Processes killed for want of memory."}, memory(func(u *stats.Usage) uint64 { return u.Counters.Memory.OOMKill })},
	{description{"container_pressure_cpu_stalled_seconds_total", counter, nil, "Seconds in which no task could run for want of a processor."}, stalled(func(s stats.Stalls) *stats.Stall { return s.CPU })},
	{description{"container_pressure_cpu_waiting_seconds_total", counter, nil, "Seconds in which tasks waited for a processor."}, waiting(func(s stats.Stalls) *stats.Stall { return s.CPU })},
	{description{"container_pressure_io_stalled_seconds_total", counter, nil, "Seconds in which no task could run for want of I/O."}, stalled(func(s stats.Stalls) *stats.Stall { return s.IO })},
	{description{"container_pressure_io_waiting_seconds_total", counter, nil, "Seconds in which tasks waited for I/O."}, waiting(func(s stats.Stalls) *stats.Stall { return s.IO })},
	{description{"container_pressure_memory_stalled_seconds_total", counter, nil, "Seconds in which no task could run for want of memory."}, stalled(func(s stats.Stalls) *stats.Stall { return s.Memory })},
	{description{"container_pressure_memory_waiting_seconds_total", counter, nil, "Seconds in which tasks waited for memory."}, waiting(func(s stats.Stalls) *stats.Stall { return s.Memory })},
	{description{"container_processes", gauge, nil, "Processes of the container."}, processes(func(p *stats.Processes) uint64 { return p.Count })},
	{description{"container_sockets", gauge, nil, "Open sockets of all processes."}, processes(func(p *stats.Processes) uint64 { return p.Sockets })},
	{description{"container_spec_cpu_period", gauge, nil, "Period of the CPU quota, in microseconds."}, always((*source).cpuPeriod)},
	{description{"container_spec_cpu_quota", gauge, nil, "CPU quota in microseconds a period; without a quota there is no value."}, quota},
	{description{"container_spec_cpu_shares", gauge, nil, "CPU shares, as cgroup v1 counts them."}, always((*source).cpuShares)},
	{description{"container_spec_memory_limit_bytes", gauge, nil, "Memory limit; 0 is none."}, memory((*stats.Usage).MemoryLimit)},
	{description{"container_spec_memory_reservation_limit_bytes", gauge, nil, "Memory that is reserved; 0 is none."}, memory((*stats.Usage).Reservation)},
	{description{"container_spec_memory_swap_limit_bytes", gauge, nil, "Limit of memory and swap together; 0 is none."}, memory((*stats.Usage).MemoryAndSwapLimit)},
	{description{"container_start_time_seconds", gauge, nil, "When the container was started, in seconds since 1970; 0 if it was not."}, always((*source).started)},
	{description{"container_threads", gauge, nil, "Threads of all processes."}, tasks(func(u *stats.Usage) uint64 { return u.Counters.Tasks.Current })},
	{description{"container_threads_max", gauge, nil, "How many threads there may be; 0 is no limit."}, tasks((*stats.Usage).TaskLimit)},
	{description{"container_ulimits_soft", gauge, []string{"ulimit"}, "Soft resource limits of the first process."}, maxFiles},
}

var networkRows = []networkRow{
	{description{"container_network_receive_bytes_total", counter, networkLabels, "Bytes received."}, func(i *stats.Interface) uint64 { return i.Receive.Bytes }},
	{description{"container_network_receive_errors_total", counter, networkLabels, "Errors of receiving."}, func(i *stats.Interface) uint64 { return i.Receive.Errors }},
	{description{"container_network_receive_packets_dropped_total", counter, networkLabels, "Packets dropped when they were received."}, func(i *stats.Interface) uint64 { return i.Receive.Dropped }},
	{description{"container_network_receive_packets_total", counter, networkLabels, "Packets received."}, func(i *stats.Interface) uint64 { return i.Receive.Packets }},
	{description{"container_network_transmit_bytes_total", counter, networkLabels, "Bytes sent."}, func(i *stats.Interface) uint64 { return i.Transmit.Bytes }},
	{description{"container_network_transmit_errors_total", counter, networkLabels, "Errors of sending."}, func(i *stats.Interface) uint64 { return i.Transmit.Errors }},
	{description{"container_network_transmit_packets_dropped_total", counter, networkLabels, "Packets dropped when they were to be sent."}, func(i *stats.Interface) uint64 { return i.Transmit.Dropped }},
	{description{"container_network_transmit_packets_total", counter, networkLabels, "Packets sent."}, func(i *stats.Interface) uint64 { return i.Transmit.Packets }},
}

func always(value func(*source) uint64) func(*source, emit) {
	return func(s *source, emit emit) { emit(value(s)) }
}

// counted emits a value of the usage if the kernel counts it.
func counted(known func(*stats.Usage) bool, value func(*stats.Usage) uint64, labels ...string) func(*source, emit) {
	return func(s *source, emit emit) {
		if known(s.Usage) {
			emit(value(s.Usage), labels...)
		}
	}
}

func cpu(value func(*stats.Usage) uint64, labels ...string) func(*source, emit) {
	return counted((*stats.Usage).HasCPU, value, labels...)
}

func memory(value func(*stats.Usage) uint64) func(*source, emit) {
	return counted((*stats.Usage).HasMemory, value)
}

func tasks(value func(*stats.Usage) uint64) func(*source, emit) {
	return counted((*stats.Usage).HasTasks, value)
}

func waiting(kind func(stats.Stalls) *stats.Stall) func(*source, emit) {
	return func(s *source, emit emit) {
		if p := kind(s.Usage.Stalls()); p != nil {
			emit(p.Some.Total / second)
		}
	}
}

func stalled(kind func(stats.Stalls) *stats.Stall) func(*source, emit) {
	return func(s *source, emit emit) {
		if p := kind(s.Usage.Stalls()); p != nil {
			emit(p.Full.Total / second)
		}
	}
}

func processes(value func(*stats.Processes) uint64) func(*source, emit) {
	return func(s *source, emit emit) {
		if s.Processes != nil {
			emit(value(s.Processes))
		}
	}
}

func maxFiles(s *source, emit emit) {
	if s.Processes != nil && s.Processes.MaxFiles > 0 {
		emit(s.Processes.MaxFiles, "max_open_files")
	}
}

func fileSystem(value func(*stats.FileSystem) uint64) func(*source, emit) {
	return func(s *source, emit emit) { emit(value(&s.t.layers), s.t.layers.Device) }
}

func written(s *source, emit emit) {
	if s.Layer != nil {
		emit(s.Layer.Bytes, s.t.layers.Device)
	}
}

func device(value func(*stats.DeviceIO) uint64) func(*source, emit) {
	return func(s *source, emit emit) {
		s.devices(func(name string, d *stats.DeviceIO) { emit(value(d), name) })
	}
}

func blockBytes(s *source, emit emit) {
	s.devices(func(name string, d *stats.DeviceIO) {
		major, minor := strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10)
		emit(d.ReadBytes, name, major, minor, "Read")
		emit(d.WriteBytes, name, major, minor, "Write")
	})
}

func hugePages(value func(*stats.HugePages) uint64) func(*source, emit) {
	return func(s *source, emit emit) {
		for i := range s.Usage.Counters.Huge {
			emit(value(&s.Usage.Counters.Huge[i]), s.Usage.Counters.Huge[i].Size)
		}
	}
}

func faults(s *source, emit emit) {
	if !s.Usage.HasMemory() {
		return
	}
	m := &s.Usage.Counters.Memory
	emit(m.OwnFaults, "pgfault", "container")
	emit(m.OwnMajor, "pgmajfault", "container")
	emit(m.Faults, "pgfault", "hierarchy")
	emit(m.Major, "pgmajfault", "hierarchy")
}

// What the kernel has for a group of which nothing else was said.
const (
	usualPeriod = 100_000
	usualShares = 1024
)

func (s *source) cpuPeriod() uint64 {
	if r := s.Limits.Resources; r != nil && r.CPU != nil && r.CPU.Period != nil && *r.CPU.Period > 0 {
		return *r.CPU.Period
	}
	return usualPeriod
}

func (s *source) cpuShares() uint64 {
	if r := s.Limits.Resources; r != nil && r.CPU != nil && r.CPU.Shares != nil && *r.CPU.Shares > 0 {
		return *r.CPU.Shares
	}
	return usualShares
}

func quota(s *source, emit emit) {
	if r := s.Limits.Resources; r != nil && r.CPU != nil && r.CPU.Quota != nil && *r.CPU.Quota > 0 {
		emit(uint64(*r.CPU.Quota))
	}
}

func (s *source) started() uint64 {
	if s.StartedAt.IsZero() {
		return 0
	}
	return uint64(s.StartedAt.Unix())
}
