package critest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cadvisor are the metrics that Kubernetes' critest wants of a runtime, those of the network last.
var cadvisor = strings.Fields(`
	blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total cpu_system_seconds_total
	cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total
	fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt
	memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes
	memory_working_set_bytes oom_events_total pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total
	pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total
	processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes
	spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft
	network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
	network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total`)

// labelKeys are those of each metric.
func labelKeys(t *testing.T, d *daemon) map[string][]string {
	t.Helper()
	r, err := d.runtime.ListMetricDescriptors(bounded(t), &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, m := range r.GetDescriptors() {
		if m.GetHelp() == "" || keys[m.GetName()] != nil {
			t.Errorf("%s has no help or is there twice", m.GetName())
		}
		keys[m.GetName()] = m.GetLabelKeys()
	}
	return keys
}

func TestMetricDescriptors(t *testing.T) {
	keys := labelKeys(t, use(t))
	for _, name := range cadvisor {
		have := keys["container_"+name]
		for _, key := range []string{"container", "id", "image", "name", "namespace", "pod"} {
			if !slices.Contains(have, key) {
				t.Errorf("%s has no label %s", name, key)
			}
		}
	}
	if len(cadvisor) != 56 || len(keys) != 56 {
		t.Errorf("%d of %d metrics", len(keys), len(cadvisor))
	}
	for name, want := range map[string]string{"container_cpu_usage_seconds_total": "cpu", "container_memory_failures_total": "failure_type scope",
		"container_blkio_device_usage_total": "device major minor operation", "container_hugetlb_usage_bytes": "pagesize", "container_ulimits_soft": "ulimit",
		"container_network_receive_bytes_total": "interface", "container_fs_usage_bytes": "device", "container_processes": ""} {
		if got := strings.Join(keys[name][6:], " "); got != want {
			t.Errorf("%s has the labels %q besides, instead of %q", name, got, want)
		}
	}
}

// measured are the metrics of one container or pod: name and labels of its own, in the order of their keys, to value.
type measured map[string]*cri.Metric

func (m measured) value(name string) uint64 { return m[name].GetValue().GetValue() }

// take checks metrics against their descriptors and takes the labels that all of them have out.
func take(t *testing.T, metrics []*cri.Metric, keys map[string][]string, base map[string]string) measured {
	t.Helper()
	all := measured{}
	for _, m := range metrics {
		if m.GetValue() == nil || len(m.GetLabelValues()) != len(keys[m.GetName()]) {
			t.Errorf("%v does not fit the labels %q", m, keys[m.GetName()])
			continue
		}
		key := strings.TrimPrefix(m.GetName(), "container_")
		for i, label := range keys[m.GetName()] {
			value := m.GetLabelValues()[i]
			want, common := base[label]
			switch {
			case !common:
				key += " " + value
			case want != value && !(label == "id" && strings.HasSuffix(value, "/"+want)):
				t.Errorf("%s has %s=%q instead of %q", m.GetName(), label, value, want)
			}
		}
		if all[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		all[key] = m
	}
	return all
}

func (p *pod) metrics(t *testing.T) *cri.PodSandboxMetrics {
	t.Helper()
	r, err := p.d.runtime.ListPodSandboxMetrics(bounded(t), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.GetPodMetrics() {
		if m.GetPodSandboxId() == p.id {
			return m
		}
	}
	t.Fatalf("no metrics of pod %s in %v", p.id, r)
	return nil
}

func TestPodMetrics(t *testing.T) {
	d := use(t)
	keys := labelKeys(t, d)
	p := runPod(t, d, podNetwork, ownCgroup(t))
	began := time.Now()
	c := p.start(t, "nc -l -p 7 & "+busy, func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}
		c.Image.UserSpecifiedImage = "example.org/named:1"
	})
	c.waitOutput(t, "ready")
	exited := p.start(t, "true")
	exited.wait(t)
	var pod *cri.PodSandboxMetrics
	var m measured
	base := map[string]string{"container": c.config.Metadata.Name, "id": c.id, "image": "example.org/named:1", "name": c.id, "namespace": "critest", "pod": p.config.Metadata.Name}
	if !within(rpcBound, func() bool {
		pod = p.metrics(t)
		if len(pod.GetContainerMetrics()) != 1 || pod.GetContainerMetrics()[0].GetContainerId() != c.id {
			t.Fatalf("containers: %v", pod.GetContainerMetrics())
		}
		m = take(t, pod.GetContainerMetrics()[0].GetMetrics(), keys, base)
		return m.value("memory_rss") >= 8_000_000 && m.value("sockets") == 1 && m.value("cpu_cfs_throttled_periods_total") > 0 && layerBytes(m) >= 3<<20
	}) {
		t.Fatalf("memory_rss %d, sockets %d, throttled periods %d, bytes of the layer %d",
			m.value("memory_rss"), m.value("sockets"), m.value("cpu_cfs_throttled_periods_total"), layerBytes(m))
	}
	wantNames(t, m, pod)
	for name, want := range map[string]uint64{
		"spec_cpu_period": 100000, "spec_cpu_quota": 20000, "spec_cpu_shares": 1024, "spec_memory_limit_bytes": 64 << 20, "spec_memory_swap_limit_bytes": 64 << 20,
		"spec_memory_reservation_limit_bytes": 0, "threads_max": 0, "oom_events_total": 0,
	} {
		if got := m.value(name); got != want {
			t.Errorf("%s is %d instead of %d", name, got, want)
		}
	}
	for name, bounds := range map[string][2]uint64{
		"processes": {3, 20}, "threads": {3, 20}, "file_descriptors": {9, 200}, "ulimits_soft max_open_files": {1, 1 << 40},
		"start_time_seconds": {uint64(began.Unix()), uint64(time.Now().Unix())}, "last_seen": {uint64(began.Unix()), uint64(time.Now().Unix())},
		"memory_usage_bytes": {8_000_000, 64 << 20}, "memory_max_usage_bytes": {8_000_000, 64 << 20}, "cpu_cfs_periods_total": {1, 1e6},
		"memory_failures_total pgfault hierarchy": {1, 1e9}, "memory_failures_total pgfault container": {1, 1e9},
	} {
		if got := m.value(name); got < bounds[0] || got > bounds[1] {
			t.Errorf("%s is %d, not from %d to %d", name, got, bounds[0], bounds[1])
		}
	}
	network := take(t, pod.GetMetrics(), keys, map[string]string{"container": "", "id": p.id, "image": "", "name": p.id, "namespace": "critest", "pod": p.config.Metadata.Name})
	if network["network_receive_bytes_total eth0"] == nil || len(network) != 8 {
		t.Errorf("metrics of the network: %v", network)
	}
}

func layerBytes(m measured) (n uint64) {
	for key, metric := range m {
		if strings.HasPrefix(key, "fs_usage_bytes ") && metric.GetTimestamp() > 0 {
			n = metric.GetValue().GetValue()
		}
	}
	return n
}

// wantNames wants a value of every metric, but for those that this kernel does not count.
func wantNames(t *testing.T, m measured, pod *cri.PodSandboxMetrics) {
	t.Helper()
	names := map[string]bool{}
	for key := range m {
		names[strings.Fields(key)[0]] = true
	}
	for _, metric := range pod.GetMetrics() {
		names[strings.TrimPrefix(metric.GetName(), "container_")] = true
	}
	points, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	there := func(file string) bool {
		return slices.ContainsFunc(points, func(point string) bool {
			_, err := os.Stat(fmt.Sprint(point, suite.cgroups, "/", file))
			return err == nil
		})
	}
	for _, name := range cadvisor {
		switch {
		case names[name]:
		case strings.HasPrefix(name, "hugetlb_") && !there("hugetlb.2MB.current") && !there("hugetlb.2MB.usage_in_bytes"):
		case strings.HasPrefix(name, "pressure_") && !there("cpu.pressure"):
		default:
			t.Errorf("no value of %s", name)
		}
	}
}

func TestStreamPodMetrics(t *testing.T) {
	d := use(t)
	stream := func() (ids []string) {
		s, err := d.runtime.StreamPodSandboxMetrics(bounded(t), &cri.StreamPodSandboxMetricsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range drain(t, s.Recv, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics) {
			ids = append(ids, m.GetPodSandboxId())
		}
		slices.Sort(ids)
		return ids
	}
	if ids := stream(); len(ids) != 0 {
		t.Errorf("without pods: %q", ids)
	}
	p, q, stopped := runPod(t, d), runPod(t, d), runPod(t, d)
	stopped.stop(t)
	want := []string{p.id, q.id}
	slices.Sort(want)
	if ids := stream(); !slices.Equal(ids, want) {
		t.Errorf("%q instead of %q", ids, want)
	}
}

// A pod may call its devices whatever it likes; answers, which must be UTF-8, tell of it and of all others nevertheless.
func TestStrangeInterface(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	c := p.start(t, idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	})
	c.waitOutput(t, "ready")
	c.exec(t, `ip link set eth0 down && ip link set eth0 name "$(printf 'e\377')"`)
	const want = "e\uFFFD"
	if got := p.stats(t).GetLinux().GetNetwork().GetDefaultInterface().GetName(); got != want {
		t.Errorf("interface %q instead of %q", got, want)
	}
	list, err := d.runtime.ListPodSandboxStats(bounded(t), &cri.ListPodSandboxStatsRequest{})
	if err != nil || len(list.GetStats()) == 0 {
		t.Errorf("list of statistics: %v, %v", list, err)
	}
	if !slices.ContainsFunc(p.metrics(t).GetMetrics(), func(m *cri.Metric) bool { return slices.Contains(m.GetLabelValues(), want) }) {
		t.Errorf("no metric of interface %q", want)
	}
}
