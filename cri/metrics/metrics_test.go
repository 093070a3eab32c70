package metrics

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stats"
)

// known is a container of which everything is counted.
func known() *sandbox.ContainerStats {
	period, quota, shares := uint64(50000), int64(20000), uint64(512)
	u := &stats.Usage{Counters: cgroup.Stats{
		Known:  cgroup.CPU | cgroup.Memory | cgroup.Tasks | cgroup.Pressure | cgroup.Details,
		CPU:    cgroup.CPUStats{Usage: 5.9e9, User: 3e9, System: 2e9, Periods: 10, Throttled: 4, ThrottledTime: 1.5e9},
		Memory: cgroup.MemoryStats{Usage: 1000, Limit: 2000, InactiveFile: 300, Anon: 400, File: 500, MappedFile: 60, Faults: 9, Major: 2, OwnFaults: 8, OwnMajor: 1, HasSwap: true, Swap: 7, SwapLimit: 100, Peak: 1500, Kernel: 70, Reservation: cgroup.NoLimit, AtLimit: 3, OOMKill: 1},
		Tasks:  cgroup.TaskStats{Current: 11, Limit: cgroup.NoLimit},
		IO:     []cgroup.DeviceIO{{Major: 1 << 20, Minor: 5, ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}},
		Huge:   []cgroup.HugePages{{Size: "2MB", Usage: 1, Peak: 2}},
	}}
	u.Counters.Pressure.Known.CPU, u.Counters.Pressure.Known.Memory, u.Counters.Pressure.Known.IO = true, true, true
	u.Counters.Pressure.CPU = cgroup.Stall{Some: cgroup.StallTime{Total: 7e9}, Full: cgroup.StallTime{Total: 6e9}}
	u.Counters.Pressure.Memory.Some.Total, u.Counters.Pressure.IO.Full.Total = 5e9, 4e9
	return &sandbox.ContainerStats{
		ContainerStatus: &sandbox.ContainerStatus{StartedAt: time.Unix(1000, 0), Limits: sandbox.Limits{Resources: &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Period: &period, Quota: &quota, Shares: &shares}}}},
		Usage:     u,
		Layer:     &stats.LayerUsage{At: time.Unix(2000, 0), Bytes: 12, Inodes: 3},
		Processes: &stats.Processes{Count: 3, Descriptors: 20, Sockets: 2, MaxFiles: 1024},
	}
}

var fileSystem1 = stats.FileSystem{Device: "/dev/sda1", Major: 8, Minor: 1, Bytes: 1 << 40, Inodes: 100, InodesFree: 90}

// received are metrics as a client has them.
func received(t *testing.T, encoded []byte) []*runtimev1.Metric {
	t.Helper()
	m := &runtimev1.ContainerMetrics{}
	if err := proto.Unmarshal(encoded, m); err != nil {
		t.Fatal(err)
	}
	if n := proto.Size(m); n != len(encoded) {
		t.Errorf("messages have %d bytes instead of %d", len(encoded), n)
	}
	return m.Metrics
}

// lines prints metrics, but for the moment that last_seen is.
func lines(t *testing.T, encoded []byte) (all []string) {
	t.Helper()
	for _, m := range received(t, encoded) {
		if m.Name == "container_last_seen" {
			continue
		}
		line := fmt.Sprintf("%s %s = %d", strings.TrimPrefix(m.Name, "container_"), strings.Join(m.LabelValues, ","), m.Value.Value)
		if m.Timestamp != 0 {
			line += fmt.Sprintf(" at %d", m.Timestamp)
		}
		all = append(all, line)
	}
	return all
}

func TestValues(t *testing.T) {
	want := strings.Split(strings.TrimSpace(`
blkio_device_usage_total x,1048576:5,1048576,5,Read = 1
blkio_device_usage_total x,1048576:5,1048576,5,Write = 2
cpu_cfs_periods_total x = 10
cpu_cfs_throttled_periods_total x = 4
cpu_cfs_throttled_seconds_total x = 1
cpu_system_seconds_total x = 2
cpu_usage_seconds_total x,total = 5
cpu_user_seconds_total x = 3
file_descriptors x = 20
fs_inodes_free x,/dev/sda1 = 90
fs_inodes_total x,/dev/sda1 = 100
fs_limit_bytes x,/dev/sda1 = 1099511627776
fs_reads_bytes_total x,1048576:5 = 1
fs_reads_total x,1048576:5 = 3
fs_usage_bytes x,/dev/sda1 = 12 at 2000000000000
fs_writes_bytes_total x,1048576:5 = 2
fs_writes_total x,1048576:5 = 4
hugetlb_max_usage_bytes x,2MB = 2
hugetlb_usage_bytes x,2MB = 1
memory_cache x = 500
memory_failcnt x = 3
memory_failures_total x,pgfault,container = 8
memory_failures_total x,pgmajfault,container = 1
memory_failures_total x,pgfault,hierarchy = 9
memory_failures_total x,pgmajfault,hierarchy = 2
memory_kernel_usage x = 70
memory_mapped_file x = 60
memory_max_usage_bytes x = 1500
memory_rss x = 400
memory_swap x = 7
memory_usage_bytes x = 1000
memory_working_set_bytes x = 700
oom_events_total x = 1
pressure_cpu_stalled_seconds_total x = 6
pressure_cpu_waiting_seconds_total x = 7
pressure_io_stalled_seconds_total x = 4
pressure_io_waiting_seconds_total x = 0
pressure_memory_stalled_seconds_total x = 0
pressure_memory_waiting_seconds_total x = 5
processes x = 3
sockets x = 2
spec_cpu_period x = 50000
spec_cpu_quota x = 20000
spec_cpu_shares x = 512
spec_memory_limit_bytes x = 2000
spec_memory_reservation_limit_bytes x = 0
spec_memory_swap_limit_bytes x = 2100
start_time_seconds x = 1000
threads x = 11
threads_max x = 0
ulimits_soft x,max_open_files = 1024`), "\n")
	got := lines(t, NewTranslator(fileSystem1).values(known(), []string{"x"}))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What is not counted has no value; what was not set has what the kernel has by itself.
func TestValuesUnknown(t *testing.T) {
	c := &sandbox.ContainerStats{ContainerStatus: &sandbox.ContainerStatus{}, Usage: &stats.Usage{Counters: cgroup.Stats{Known: cgroup.CPU}}}
	got := lines(t, NewTranslator(fileSystem1).values(c, []string{"x"}))
	for _, want := range []string{"spec_cpu_period x = 100000", "spec_cpu_shares x = 1024", "start_time_seconds x = 0", "fs_reads_total x,/dev/sda1 = 0", "cpu_usage_seconds_total x,total = 0"} {
		if !slices.Contains(got, want) {
			t.Errorf("no line %q", want)
		}
	}
	for _, line := range got {
		for _, absent := range []string{"memory_", "spec_memory", "spec_cpu_quota", "pressure_", "threads", "processes", "sockets", "file_desc", "ulimits", "hugetlb", "fs_usage"} {
			if strings.HasPrefix(line, absent) {
				t.Errorf("unexpected %q", line)
			}
		}
	}
}

// Labels of one metric are not written over those of another, and each has as many as its description.
func TestValuesShareNoLabels(t *testing.T) {
	roomy := append(make([]string, 0, 10), "x")
	metrics := NewTranslator(fileSystem1).values(known(), roomy)
	if diff := cmp.Diff(lines(t, NewTranslator(fileSystem1).values(known(), []string{"x"})), lines(t, metrics)); diff != "" {
		t.Errorf("with room behind the labels of all (-without +with):\n%s", diff)
	}
	keys := map[string]int{}
	for _, d := range Descriptors() {
		keys[d.Name] = len(d.LabelKeys) - len(base)
	}
	for _, m := range received(t, metrics) {
		if len(m.LabelValues)-1 != keys[m.Name] {
			t.Errorf("%v has not %d labels besides", m, keys[m.Name])
		}
	}
}

// BenchmarkValues is what ListPodSandboxMetrics does for one container besides reading.
func BenchmarkValues(b *testing.B) {
	t, k := NewTranslator(fileSystem1), known()
	labels := []string{"container", "/kubepods/burstable/pod" + strings.Repeat("u", 36) + "/" + strings.Repeat("c", 64), "docker.io/library/busybox:1", strings.Repeat("c", 64), "namespace", "name"}
	b.ReportAllocs()
	for b.Loop() {
		c := &runtimev1.ContainerMetrics{}
		c.ProtoReflect().SetUnknown(t.values(k, labels))
		m := &runtimev1.PodSandboxMetrics{ContainerMetrics: []*runtimev1.ContainerMetrics{c}}
		if _, err := proto.Marshal(m); err != nil {
			b.Fatal(err)
		}
	}
}
