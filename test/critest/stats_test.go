package critest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ownCgroup gives a pod a cgroup of its own, which is made and removed as the kubelet does it.
func ownCgroup(t *testing.T) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) {
		g := podCgroup{dir: suite.cgroups + "/pod" + c.Metadata.Uid}
		g.parent = g.dir
		if suite.driver == driverSystemd {
			g.parent = strings.TrimSuffix(filepath.Base(suite.cgroups), ".slice") + "-pod" + strings.ReplaceAll(c.Metadata.Uid, "-", "_") + ".slice"
			g.dir = suite.cgroups + "/" + g.parent
		}
		g.make(t)
		c.Linux.CgroupParent = g.parent
	}
}

func (c *container) stats(t testing.TB) *cri.ContainerStats {
	t.Helper()
	r, err := c.p.d.runtime.ContainerStats(bounded(t), &cri.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("ContainerStats: %v", err)
	}
	return r.GetStats()
}

func (p *pod) stats(t testing.TB) *cri.PodSandboxStats {
	t.Helper()
	r, err := p.d.runtime.PodSandboxStats(bounded(t), &cri.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("PodSandboxStats: %v", err)
	}
	return r.GetStats()
}

// busy uses 8 MB of memory, some processor time, and 3 MB of its root.
const busy = "dd if=/dev/zero of=/data bs=1M count=3 2>/dev/null; x=$(head -c 8000000 /dev/zero | tr '\\0' x); " +
	"(while :; do for i in 1 2 3 4 5 6 7 8 9; do :; done; sleep 0.01; done) & " + idle

func TestContainerStats(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	const limit = 64 << 20
	c := p.start(t, busy, func(c *cri.ContainerConfig) {
		c.Labels, c.Annotations = map[string]string{"stats": "yes"}, map[string]string{"a": "b"}
		c.Linux.Resources.MemoryLimitInBytes = limit
	})
	c.waitOutput(t, "ready")
	var s *cri.ContainerStats
	eventually(t, rpcBound, "memory and rate of processor time are known", func() bool {
		s = c.stats(t)
		return s.GetMemory().GetRssBytes().GetValue() >= 8_000_000 && s.GetCpu().GetUsageNanoCores().GetValue() > 0
	})
	want := &cri.ContainerAttributes{Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations}
	if diff := cmp.Diff(want, s.GetAttributes(), protocmp.Transform()); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if u := s.GetCpu(); u.GetTimestamp() <= 0 || u.GetUsageCoreNanoSeconds().GetValue() == 0 || u.GetUsageNanoCores().GetValue() > 64e9 {
		t.Errorf("cpu: %v", u)
	}
	m := s.GetMemory()
	if m.GetTimestamp() <= 0 || m.GetUsageBytes().GetValue() > limit || m.GetWorkingSetBytes().GetValue() < m.GetRssBytes().GetValue()/2 ||
		m.GetWorkingSetBytes().GetValue() > m.GetUsageBytes().GetValue() || m.GetPageFaults().GetValue() == 0 || m.GetMajorPageFaults() == nil {
		t.Errorf("memory: %v", m)
	}
	if m.GetAvailableBytes().GetValue() != limit-m.GetWorkingSetBytes().GetValue() {
		t.Errorf("of %d bytes %d are available and %d the working set", limit, m.GetAvailableBytes().GetValue(), m.GetWorkingSetBytes().GetValue())
	}
	_, swapErr := os.Stat("/sys/fs/cgroup/memory/memory.memsw.usage_in_bytes")
	if swap := s.GetSwap(); swapErr == nil && (swap.GetTimestamp() <= 0 || swap.GetSwapUsageBytes() == nil) {
		t.Errorf("swap: %v", swap)
	}
	c.wantLayer(t, 3<<20)
}

// wantLayer waits until the writable layer has been measured with at least so many bytes.
func (c *container) wantLayer(t *testing.T, bytes uint64) {
	t.Helper()
	var l *cri.FilesystemUsage
	eventually(t, rpcBound, "the writable layer is measured", func() bool {
		l = c.stats(t).GetWritableLayer()
		return l.GetUsedBytes().GetValue() >= bytes && l.GetInodesUsed().GetValue() >= 2
	})
	if l.GetTimestamp() <= 0 || l.GetUsedBytes().GetValue() > bytes+1<<20 || l.GetInodesUsed().GetValue() > 100 {
		t.Errorf("writable layer: %v", l)
	}
	if _, err := os.Stat(l.GetFsId().GetMountpoint()); err != nil {
		t.Errorf("mountpoint of the writable layer: %v", err)
	}
}

// The kernel's pressure files are there or not, as it was booted; what is there is told.
func TestStatsPressure(t *testing.T) {
	d := use(t)
	p := runPod(t, d, ownCgroup(t))
	c := p.start(t, idle)
	told := c.stats(t).GetIo().GetPsi().GetSome() != nil
	points, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	parent := p.config.Linux.CgroupParent
	if suite.driver == driverSystemd { // the name of a slice, which is in that of the suite
		parent = filepath.Join(suite.cgroups, parent)
	}
	there := slices.ContainsFunc(points, func(point string) bool {
		text, err := os.ReadFile(filepath.Join(p.cgroup(point, parent), c.id, "io.pressure"))
		return err == nil && len(text) > 0
	})
	if told != there {
		t.Errorf("the kernel counts: %v, stats tell: %v", there, told)
	}
	s := p.stats(t).GetLinux()
	if told && (s.GetCpu().GetPsi().GetFull() == nil || s.GetMemory().GetPsi().GetSome() == nil || s.GetIo().GetPsi() == nil || s.GetIo().GetTimestamp() <= 0) {
		t.Errorf("pressure of the pod: %v", s)
	}
}

// In every state there are attributes; a container that has ended has its writable layer besides.
func TestContainerStatsStates(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	created, exited := p.create(t, idle), p.start(t, "echo text >/file")
	exited.wait(t)
	if s := created.stats(t); s.GetCpu().GetTimestamp() <= 0 || s.GetMemory().GetTimestamp() <= 0 || s.GetMemory().GetAvailableBytes().GetValue() != 0 {
		t.Errorf("created: %v", s)
	}
	exited.wantLayer(t, 4096)
	if s := exited.stats(t); s.GetAttributes().GetId() != exited.id || s.GetCpu() != nil || s.GetMemory() != nil || s.GetSwap() != nil || s.GetIo() != nil {
		t.Errorf("exited: %v", s)
	}
	exited.remove(t)
	_, err := d.runtime.ContainerStats(bounded(t), &cri.ContainerStatsRequest{ContainerId: exited.id})
	refused(t, err, codes.NotFound, exited.id)
	_, err = d.runtime.ContainerStats(bounded(t), &cri.ContainerStatsRequest{})
	refused(t, err, codes.InvalidArgument, "container_id")
}

func TestContainerStatsFilter(t *testing.T) {
	d := use(t)
	p, q := runPod(t, d), runPod(t, d)
	label := func(value string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Labels = map[string]string{"app": value, "test": t.Name()} }
	}
	a, b, c := p.start(t, idle, label("a")), p.start(t, idle, label("b")), q.start(t, idle, label("a"))
	for _, row := range []struct {
		name   string
		filter *cri.ContainerStatsFilter
		want   []*container
	}{
		{"none", nil, []*container{a, b, c}},
		{"id", &cri.ContainerStatsFilter{Id: b.id}, []*container{b}},
		{"short id", &cri.ContainerStatsFilter{Id: b.id[:13]}, []*container{b}},
		{"pod", &cri.ContainerStatsFilter{PodSandboxId: p.id}, []*container{a, b}},
		{"label", &cri.ContainerStatsFilter{LabelSelector: map[string]string{"app": "a"}}, []*container{a, c}},
		{"all of it", &cri.ContainerStatsFilter{Id: a.id, PodSandboxId: p.id, LabelSelector: map[string]string{"app": "a", "test": t.Name()}}, []*container{a}},
		{"label of another", &cri.ContainerStatsFilter{Id: b.id, LabelSelector: map[string]string{"app": "a"}}, nil},
		{"pod of another", &cri.ContainerStatsFilter{Id: c.id, PodSandboxId: p.id}, nil},
		{"unknown id", &cri.ContainerStatsFilter{Id: strings.Repeat("0", 64)}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			var want []string
			for _, c := range row.want {
				want = append(want, c.id)
			}
			slices.Sort(want)
			list, err := d.runtime.ListContainerStats(bounded(t), &cri.ListContainerStatsRequest{Filter: row.filter})
			if got := containerStatsIDs(list.GetStats()); err != nil || !slices.Equal(got, want) {
				t.Errorf("list: %q instead of %q, %v", got, want, err)
			}
			stream, err := d.runtime.StreamContainerStats(bounded(t), &cri.StreamContainerStatsRequest{Filter: row.filter})
			if err != nil {
				t.Fatal(err)
			}
			streamed := drain(t, stream.Recv, (*cri.StreamContainerStatsResponse).GetContainerStats)
			if got := containerStatsIDs(streamed); !slices.Equal(got, want) {
				t.Errorf("stream: %q instead of %q", got, want)
			}
		})
	}
}

func containerStatsIDs(all []*cri.ContainerStats) (ids []string) {
	for _, s := range all {
		ids = append(ids, s.GetAttributes().GetId())
	}
	slices.Sort(ids)
	return ids
}

// drain collects what a stream sends; no message may be without items.
func drain[R, T any](t *testing.T, receive func() (R, error), items func(R) []T) (all []T) {
	t.Helper()
	for {
		r, err := receive()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(items(r)) == 0 {
			t.Error("an empty message")
		}
		all = append(all, items(r)...)
	}
}

// A pod's usage is that of the cgroup around it, or of all that is in it if it shares its parent with others.
func TestPodStats(t *testing.T) {
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprintf("own cgroup %v", own), func(t *testing.T) {
			d := use(t)
			p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) {
				c.Annotations = map[string]string{"a": "b"}
				if own {
					ownCgroup(t)(c)
				}
			})
			a, b := p.start(t, busy), p.start(t, busy)
			a.waitOutput(t, "ready")
			b.waitOutput(t, "ready")
			var s *cri.LinuxPodSandboxStats
			eventually(t, rpcBound, "memory and rate of processor time of the pod are known", func() bool {
				s = p.stats(t).GetLinux()
				return s.GetMemory().GetUsageBytes().GetValue() >= 16_000_000 && s.GetMemory().GetRssBytes().GetValue() >= 8_000_000 &&
					s.GetCpu().GetUsageNanoCores().GetValue() > 0
			})
			want := &cri.PodSandboxAttributes{Id: p.id, Metadata: p.config.Metadata, Labels: p.config.Labels, Annotations: p.config.Annotations}
			if diff := cmp.Diff(want, p.stats(t).GetAttributes(), protocmp.Transform()); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
			if ids := containerStatsIDs(s.GetContainers()); len(ids) != 2 || !slices.Contains(ids, a.id) || !slices.Contains(ids, b.id) {
				t.Errorf("containers: %q", ids)
			}
			var sum uint64
			for _, c := range s.GetContainers() {
				sum += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
			}
			if total := s.GetCpu().GetUsageCoreNanoSeconds().GetValue(); total < sum {
				t.Errorf("the pod has used %d ns, its containers %d", total, sum)
			}
			if n := s.GetProcess(); n.GetTimestamp() <= 0 || n.GetProcessCount().GetValue() < 6 || n.GetProcessCount().GetValue() > 40 {
				t.Errorf("processes: %v", n)
			}
			before := s.GetNetwork()
			if before.GetTimestamp() <= 0 || before.GetDefaultInterface().GetName() != "eth0" || len(before.GetInterfaces()) != 0 {
				t.Errorf("network: %v", before)
			}
			gateway, _, _ := strings.Cut(strings.TrimSpace(a.exec(t, "ip route | grep ^default | cut -d' ' -f3")), " ")
			a.exec(t, "ping -c 3 -i 0.1 -s 1000 "+gateway)
			after := p.stats(t).GetLinux().GetNetwork().GetDefaultInterface()
			if sent := after.GetTxBytes().GetValue() - before.GetDefaultInterface().GetTxBytes().GetValue(); sent < 3000 {
				t.Errorf("3000 bytes were sent, counted are %d", sent)
			}
		})
	}
}

// Other interfaces than the pod's main one are listed, loopback is not.
func TestPodStatsInterfaces(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	c := p.start(t, idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	})
	c.exec(t, "ip link add second type bridge")
	n := p.stats(t).GetLinux().GetNetwork()
	if n.GetDefaultInterface().GetName() != "eth0" || len(n.GetInterfaces()) != 1 || n.GetInterfaces()[0].GetName() != "second" {
		t.Errorf("network: %v", n)
	}
}

func TestPodStatsFilter(t *testing.T) {
	d := use(t)
	p := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Labels["app"] = "p" })
	q := runPod(t, d)
	stopped := runPod(t, d)
	stopped.stop(t)
	for _, row := range []struct {
		name   string
		filter *cri.PodSandboxStatsFilter
		want   []string
	}{
		{"none", nil, []string{p.id, q.id}},
		{"id", &cri.PodSandboxStatsFilter{Id: q.id}, []string{q.id}},
		{"short id", &cri.PodSandboxStatsFilter{Id: q.id[:13]}, []string{q.id}},
		{"labels", &cri.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "p"}}, []string{p.id}},
		{"labels and id", &cri.PodSandboxStatsFilter{Id: q.id, LabelSelector: map[string]string{"app": "p"}}, nil},
		{"not ready", &cri.PodSandboxStatsFilter{Id: stopped.id}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			slices.Sort(row.want)
			list, err := d.runtime.ListPodSandboxStats(bounded(t), &cri.ListPodSandboxStatsRequest{Filter: row.filter})
			if got := podStatsIDs(list.GetStats()); err != nil || !slices.Equal(got, row.want) {
				t.Errorf("list: %q instead of %q, %v", got, row.want, err)
			}
			stream, err := d.runtime.StreamPodSandboxStats(bounded(t), &cri.StreamPodSandboxStatsRequest{Filter: row.filter})
			if err != nil {
				t.Fatal(err)
			}
			streamed := drain(t, stream.Recv, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats)
			if got := podStatsIDs(streamed); !slices.Equal(got, row.want) {
				t.Errorf("stream: %q instead of %q", got, row.want)
			}
		})
	}
	if n := p.stats(t).GetLinux().GetNetwork(); n != nil {
		t.Errorf("a pod on the host's network has %v", n)
	}
	_, err := d.runtime.PodSandboxStats(bounded(t), &cri.PodSandboxStatsRequest{PodSandboxId: stopped.id})
	refused(t, err, codes.FailedPrecondition, stopped.id, "not ready")
	_, err = d.runtime.PodSandboxStats(bounded(t), &cri.PodSandboxStatsRequest{PodSandboxId: strings.Repeat("0", 64)})
	refused(t, err, codes.NotFound)
	_, err = d.runtime.PodSandboxStats(bounded(t), &cri.PodSandboxStatsRequest{})
	refused(t, err, codes.InvalidArgument, "pod_sandbox_id")
}

func podStatsIDs(all []*cri.PodSandboxStats) (ids []string) {
	for _, s := range all {
		ids = append(ids, s.GetAttributes().GetId())
	}
	slices.Sort(ids)
	return ids
}

// A new criserver measures what it has adopted.
func TestStatsAfterRestart(t *testing.T) {
	d := use(t)
	alive(t, d)
	p := runPod(t, d, podNetwork, ownCgroup(t))
	c := p.start(t, busy)
	c.waitOutput(t, "ready")
	before := c.stats(t).GetCpu().GetUsageCoreNanoSeconds().GetValue()
	d.crash(t)
	d.resume(t)
	if after := c.stats(t).GetCpu().GetUsageCoreNanoSeconds().GetValue(); after < before {
		t.Errorf("processor time fell from %d to %d", before, after)
	}
	eventually(t, rpcBound, "there is a rate", func() bool { return c.stats(t).GetCpu().GetUsageNanoCores() != nil })
	c.wantLayer(t, 3<<20)
	if s := p.stats(t).GetLinux(); s.GetNetwork().GetDefaultInterface() == nil || s.GetMemory() == nil {
		t.Errorf("pod: %v", s)
	}
}
