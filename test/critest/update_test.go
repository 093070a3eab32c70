package critest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) tryUpdate(t testing.TB, r *cri.LinuxContainerResources) error {
	t.Helper()
	_, err := c.p.d.runtime.UpdateContainerResources(bounded(t), &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
	return err
}

func (c *container) update(t testing.TB, r *cri.LinuxContainerResources) {
	t.Helper()
	if err := c.tryUpdate(t, r); err != nil {
		t.Fatalf("UpdateContainerResources: %v", err)
	}
}

// limitFile is what a file of a container's cgroup should say, in v1 and v2.
type limitFile struct{ v1, v2, want1, want2 string }

func (f limitFile) check(t *testing.T, c *container) {
	t.Helper()
	want := f.want1
	if unifiedHost() {
		want = f.want2
	}
	if got := c.cgroupFile(t, f.v1, f.v2); got != want {
		t.Errorf("%s or %s is %q, want %q", f.v1, f.v2, got, want)
	}
}

// updateSteps are updates one after another, each with the file that shows it.
var updateSteps = []struct {
	name   string
	change *cri.LinuxContainerResources
	file   limitFile
	status func(*cri.LinuxContainerResources) // what else the status says; nil: nothing
}{
	{"nothing", &cri.LinuxContainerResources{}, limitFile{"cpu.shares", "cpu.weight", "512", "59"}, nil},
	{"shares", &cri.LinuxContainerResources{CpuShares: 1024}, limitFile{"cpu.shares", "cpu.weight", "1024", "100"}, nil},
	{"fewest shares", &cri.LinuxContainerResources{CpuShares: 2}, limitFile{"cpu.shares", "cpu.weight", "2", "1"}, nil},
	{"quota and period", &cri.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 50000}, limitFile{"cpu.cfs_quota_us", "cpu.max", "20000", "20000 50000"}, nil},
	{"quota alone", &cri.LinuxContainerResources{CpuQuota: 30000}, limitFile{"cpu.cfs_quota_us", "cpu.max", "30000", "30000 50000"}, nil},
	{"shorter period", &cri.LinuxContainerResources{CpuPeriod: 40000}, limitFile{"cpu.cfs_period_us", "cpu.max", "40000", "30000 40000"}, nil},
	{"no quota", &cri.LinuxContainerResources{CpuQuota: -1}, limitFile{"cpu.cfs_quota_us", "cpu.max", "-1", "max 40000"}, nil},
	{"more memory", &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, limitFile{"memory.limit_in_bytes", "memory.max", "134217728", "134217728"},
		func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = 128 << 20 }},
	{"swap", &cri.LinuxContainerResources{MemorySwapLimitInBytes: 192 << 20}, limitFile{"memory.memsw.limit_in_bytes", "memory.swap.max", "201326592", "67108864"}, nil},
	{"less memory, as much swap", &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}, limitFile{"memory.memsw.limit_in_bytes", "memory.swap.max", "100663296", "67108864"},
		func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = 96 << 20 }},
	{"much more memory", &cri.LinuxContainerResources{MemoryLimitInBytes: 512 << 20}, limitFile{"memory.limit_in_bytes", "memory.max", "536870912", "536870912"},
		func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = 576 << 20 }},
	{"no limit of memory", &cri.LinuxContainerResources{MemoryLimitInBytes: -1}, limitFile{"memory.memsw.limit_in_bytes", "memory.max", "9223372036854771712", "max"},
		func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = -1 }},
	{"both", &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}, limitFile{"memory.memsw.limit_in_bytes", "memory.swap.max", "67108864", "0"}, nil},
	{"processors", &cri.LinuxContainerResources{CpusetCpus: "0"}, limitFile{"cpuset.cpus", "cpuset.cpus", "0", "0"}, nil},
	{"memory nodes", &cri.LinuxContainerResources{CpusetMems: "0"}, limitFile{"cpuset.mems", "cpuset.mems", "0", "0"}, nil},
	{"huge pages", &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}},
		limitFile{"hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "4194304", "4194304"}, nil},
	{"no huge pages, by another name", &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2Mi"}, {PageSize: "16Gi"}}},
		limitFile{"hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "0", "0"},
		func(r *cri.LinuxContainerResources) {
			r.HugepageLimits = []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "16GB"}}
		}},
	{"OOM score", &cri.LinuxContainerResources{OomScoreAdj: 700}, limitFile{"pids.max", "pids.max", "max", "max"}, nil},
}

// Every field, of a container that was created and of one that runs: what is not named stays. All of it shows in the
// cgroup and the status, holds at the start, and for the next criserver.
func TestUpdateContainerResources(t *testing.T) {
	for _, started := range []bool{false, true} {
		t.Run(map[bool]string{false: "created", true: "running"}[started], func(t *testing.T) {
			d := use(t)
			alive(t, d)
			p := runPod(t, d)
			is := &cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}
			c := p.create(t, idle, func(c *cri.ContainerConfig) { c.Linux.Resources = proto.CloneOf(is) })
			begin := func() {
				if err := c.tryStart(t); err != nil {
					t.Fatal(err)
				}
				c.waitOutput(t, "ready")
			}
			if started {
				begin()
			}
			is.MemorySwapLimitInBytes = 64 << 20
			for _, step := range updateSteps {
				t.Run(step.name, func(t *testing.T) {
					c.update(t, step.change)
					is.HugepageLimits = nil
					proto.Merge(is, step.change)
					if step.status != nil {
						step.status(is)
					}
					step.file.check(t, c)
					got := c.status(t).GetResources().GetLinux()
					if step.change.GetHugepageLimits() == nil {
						is.HugepageLimits = got.GetHugepageLimits()
					}
					if !proto.Equal(got, is) {
						t.Errorf("status\ngot  %v\nwant %v", got, is)
					}
				})
			}
			d.crash(t)
			d.resume(t)
			if !started {
				begin()
			}
			if got := c.status(t).GetResources().GetLinux(); !proto.Equal(got, is) {
				t.Errorf("status of the next criserver\ngot  %v\nwant %v", got, is)
			}
			limitFile{"memory.memsw.limit_in_bytes", "memory.swap.max", "67108864", "0"}.check(t, c)
			if got := c.exec(t, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj"); got != "700\n700\n" {
				t.Errorf("OOM scores of the first process and of an exec: %q", got)
			}
			c.update(t, &cri.LinuxContainerResources{CpuShares: 99})
			limitFile{"cpu.shares", "cpu.weight", "99", "17"}.check(t, c)
		})
	}
}

// Files of cgroup2 by their names; in v1 there are none.
func TestUpdateUnified(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	high := &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "33554432", "memory.oom.group": "1"}}
	if !unifiedHost() {
		refused(t, c.tryUpdate(t, high), codes.InvalidArgument, "linux.unified", "memory.high", "no cgroup v2")
		return
	}
	c.update(t, high)
	c.update(t, &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "max", "memory.swap.max": "4096"}, MemoryLimitInBytes: 64 << 20})
	for file, want := range map[string]string{"memory.high": "max", "memory.oom.group": "1", "memory.swap.max": "4096", "memory.max": "67108864"} {
		limitFile{"", file, "", want}.check(t, c)
	}
	if got := c.status(t).GetResources().GetLinux().GetUnified(); len(got) != 3 || got["memory.high"] != "max" || got["memory.oom.group"] != "1" {
		t.Errorf("status: %v", got)
	}
	for file, part := range map[string]string{"nosuch.max": "controller nosuch", "memory.nosuch": "memory.nosuch: no such file", "cgroup.procs": "cgroup.procs"} {
		refused(t, c.tryUpdate(t, &cri.LinuxContainerResources{CpuShares: 7, Unified: map[string]string{file: "1"}}), codes.InvalidArgument, part)
	}
	limitFile{"", "cpu.weight", "", "100"}.check(t, c)
}

// What cannot be leaves everything as it was.
func TestUpdateRefused(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, `x=$(head -c 2m /dev/zero | tr '\0' x); `+idle+"; : $x", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000}
	})
	c.waitOutput(t, "ready")
	before := c.status(t)
	for _, row := range []struct {
		name   string
		change *cri.LinuxContainerResources
		code   codes.Code
		text   string
	}{
		{"shares", &cri.LinuxContainerResources{CpuShares: -1}, codes.InvalidArgument, "linux.cpu_shares: -1"},
		{"short period", &cri.LinuxContainerResources{CpuPeriod: 10}, codes.InvalidArgument, "linux.cpu_period: 10"},
		{"quota", &cri.LinuxContainerResources{CpuQuota: 10}, codes.InvalidArgument, "linux.cpu_quota: 10"},
		{"memory", &cri.LinuxContainerResources{MemoryLimitInBytes: -2}, codes.InvalidArgument, "linux.memory_limit_in_bytes: -2"},
		{"swap without memory", &cri.LinuxContainerResources{MemorySwapLimitInBytes: 1 << 30}, codes.InvalidArgument, "linux.memory_swap_limit_in_bytes: 1073741824"},
		{"swap below memory", &cri.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, MemorySwapLimitInBytes: 50 << 20}, codes.InvalidArgument, "linux.memory_swap_limit_in_bytes"},
		{"memory in use", &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 20, CpuShares: 7}, codes.FailedPrecondition, "memory"},
		{"processors that are not there", &cri.LinuxContainerResources{CpusetCpus: "0-500", CpuShares: 7}, codes.InvalidArgument, "cpuset.cpus 0-500: the group above"},
		{"no list", &cri.LinuxContainerResources{CpusetCpus: "all"}, codes.InvalidArgument, `linux.cpuset_cpus: "all"`},
		{"nodes that are not there", &cri.LinuxContainerResources{CpusetMems: "63", CpuQuota: 7000}, codes.InvalidArgument, "cpuset.mems 63: the group above"},
		{"page size of another machine", &cri.LinuxContainerResources{CpuShares: 7, HugepageLimits: []*cri.HugepageLimit{{PageSize: "32MB", Limit: 32 << 20}}}, codes.InvalidArgument, "32MB"},
		{"no page size", &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "large"}}}, codes.InvalidArgument, "linux.hugepage_limits[0].page_size"},
		{"OOM score", &cri.LinuxContainerResources{OomScoreAdj: 1001}, codes.InvalidArgument, "linux.oom_score_adj: 1001"},
		{"file elsewhere", &cri.LinuxContainerResources{Unified: map[string]string{"../memory.max": "1"}}, codes.InvalidArgument, `linux.unified: "../memory.max"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			refused(t, c.tryUpdate(t, row.change), row.code, row.text)
			if now := c.status(t); !proto.Equal(now, before) {
				t.Errorf("status\ngot  %v\nwant %v", now, before)
			}
			limitFile{"cpu.shares", "cpu.weight", "512", "59"}.check(t, c)
			limitFile{"cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"}.check(t, c)
			limitFile{"memory.limit_in_bytes", "memory.max", "9223372036854771712", "max"}.check(t, c)
		})
	}
	_, err := d.runtime.UpdateContainerResources(bounded(t), &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Windows: &cri.WindowsContainerResources{}})
	refused(t, err, codes.InvalidArgument, "windows")
	gone := &container{p: p, id: strings.Repeat("ab", 32)}
	refused(t, gone.tryUpdate(t, &cri.LinuxContainerResources{CpuShares: 7}), codes.NotFound, gone.id)
	c.stop(t, 0)
	refused(t, c.tryUpdate(t, &cri.LinuxContainerResources{CpuShares: 7}), codes.FailedPrecondition, "exited")
	c.remove(t)
	refused(t, c.tryUpdate(t, &cri.LinuxContainerResources{CpuShares: 7}), codes.NotFound, c.id)
}

// Updates of one container at the same time, while it is stopped, leave one of them, whole, and the cgroup agrees with the status.
func TestUpdatesInParallel(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, `trap : TERM; echo ready; while :; do sleep 1000 & wait; done`)
	c.waitOutput(t, "ready")
	var wg sync.WaitGroup
	for i := int64(1); i <= 20; i++ {
		wg.Go(func() {
			if err := c.tryUpdate(t, &cri.LinuxContainerResources{CpuShares: 100 + i, MemoryLimitInBytes: (64 + i) << 20}); err != nil {
				t.Errorf("update %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	r := c.status(t).GetResources().GetLinux()
	if r.GetMemoryLimitInBytes()>>20-64 != r.GetCpuShares()-100 {
		t.Errorf("the status is of two updates: %v", r)
	}
	memory := fmt.Sprint(r.GetMemoryLimitInBytes())
	limitFile{"memory.limit_in_bytes", "memory.max", memory, memory}.check(t, c)

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.stop(t, 1)
	}()
	for i := int64(1); ; i++ {
		err := c.tryUpdate(t, &cri.LinuxContainerResources{CpuShares: 1000 + i%2})
		if err == nil {
			continue
		}
		refused(t, err, codes.FailedPrecondition, "exited") // and until then they succeed
		break
	}
	<-ended
}

// The resources of a pod are taken note of and nothing else.
func TestUpdatePodSandboxResources(t *testing.T) {
	d := use(t)
	alive(t, d)
	p := runPod(t, d, func(c *cri.PodSandboxConfig) {
		c.Linux.Overhead = &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 100}
	})
	files := func() string {
		var all strings.Builder
		points, err := hierarchies()
		if err != nil {
			t.Fatal(err)
		}
		for _, point := range points {
			for _, name := range []string{"cpu.shares", "cpu.weight", "memory.limit_in_bytes", "memory.max"} {
				text, _ := os.ReadFile(filepath.Join(p.cgroup(point, suite.cgroups), name))
				all.Write(text)
			}
		}
		return all.String()
	}
	before := files()
	look := func(overhead, shares string) {
		t.Helper()
		r, err := d.runtime.PodSandboxStatus(bounded(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Overhead, Resources struct{ Linux map[string]any }
		}
		if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(info.Overhead.Linux["memory_limit_in_bytes"], info.Resources.Linux["cpu_shares"]); got != overhead+" "+shares {
			t.Errorf("info: %q, want %q", got, overhead+" "+shares)
		}
	}
	look("1.048576e+06", "100")
	update := func(r *cri.UpdatePodSandboxResourcesRequest) error {
		_, err := d.runtime.UpdatePodSandboxResources(bounded(t), r)
		return err
	}
	if err := update(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Resources: &cri.LinuxContainerResources{CpuShares: 300}}); err != nil {
		t.Fatal(err)
	}
	look("1.048576e+06", "300")
	if err := update(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Overhead: &cri.LinuxContainerResources{MemoryLimitInBytes: 2 << 20}}); err != nil {
		t.Fatal(err)
	}
	look("2.097152e+06", "300")
	d.crash(t)
	d.resume(t)
	look("2.097152e+06", "300")
	if files() != before {
		t.Error("the pod's cgroup has changed")
	}
	refused(t, update(&cri.UpdatePodSandboxResourcesRequest{}), codes.InvalidArgument, "pod_sandbox_id")
	refused(t, update(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: strings.Repeat("ab", 32)}), codes.NotFound)
	refused(t, update(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Overhead: &cri.LinuxContainerResources{CpuShares: -1}}), codes.InvalidArgument, "overhead.cpu_shares")
	refused(t, update(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Resources: &cri.LinuxContainerResources{CpuPeriod: 1}}), codes.InvalidArgument, "resources.cpu_period")
	look("2.097152e+06", "300")
}
