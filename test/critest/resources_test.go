package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupFile reads the file of the container's cgroup that has one of these names, in whatever hierarchy.
func (c *container) cgroupFile(t *testing.T, v1, v2 string) string {
	t.Helper()
	points, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range points {
		for _, name := range []string{v1, v2} {
			text, err := os.ReadFile(filepath.Join(c.p.cgroup(point, suite.cgroups), c.id, name))
			if err == nil {
				return strings.TrimSpace(string(text))
			}
		}
	}
	t.Fatalf("no cgroup of the container has %s or %s", v1, v2)
	return ""
}

func TestResources(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle, func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{
			CpuPeriod: 50000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", CpusetMems: "0",
			HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1Gi", Limit: 0}},
		}
	})
	for _, row := range []struct{ v1, v2, want1, want2 string }{
		{"cpu.cfs_period_us", "cpu.max", "50000", "20000 50000"},
		{"cpu.cfs_quota_us", "cpu.max", "20000", "20000 50000"},
		{"cpu.shares", "cpu.weight", "512", "59"},
		{"memory.limit_in_bytes", "memory.max", "67108864", "67108864"},
		{"cpuset.cpus", "cpuset.cpus", "0", "0"},
		{"cpuset.mems", "cpuset.mems", "0", "0"},
		{"hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "4194304", "4194304"},
	} {
		if got := c.cgroupFile(t, row.v1, row.v2); got != row.want1 && got != row.want2 {
			t.Errorf("%s is %q", row.v1, got)
		}
	}
	if r := c.status(t).GetResources().GetLinux(); r.GetCpuShares() != 512 || r.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("status has the resources %v", r)
	}
	inside := c.exec(t, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max; touch /sys/fs/cgroup/x 2>/dev/null || echo read-only")
	if inside != "67108864\nread-only\n" {
		t.Errorf("the container sees %q", inside)
	}
	none := p.start(t, idle)
	if got := none.cgroupFile(t, "cpu.cfs_quota_us", "cpu.max"); got != "-1" && got != "max 100000" {
		t.Errorf("without limits the quota is %q", got)
	}
}

// A process cannot lower its oom_score_adj below where this machine's limit is, so the limit clamps; exec inherits it.
func TestOOMScoreAdj(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1000, 500, 0, -500} {
		c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Linux.Resources.OomScoreAdj = int64(want) })
		got, err := strconv.Atoi(strings.TrimSpace(c.exec(t, "cat /proc/1/oom_score_adj")))
		if err != nil {
			t.Fatal(err)
		}
		if got != want && (want >= own || got != own) {
			t.Errorf("oom_score_adj %d instead of %d", got, want)
		}
		if self := c.exec(t, "cat /proc/self/oom_score_adj"); self != fmt.Sprintf("%d\n", got) {
			t.Errorf("oom_score_adj of an exec is %s instead of %d", strings.TrimSpace(self), got)
		}
		c.remove(t)
	}
}

// A container cannot use more memory than its limit, whichever of its processes does.
func TestMemoryLimitOfExec(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 20 << 20 })
	r, err := c.tryExec(t, execBound, "dd", "if=/dev/zero", "of=/dev/null", "bs=50M", "count=1")
	if err != nil || r.GetExitCode() != 137 {
		t.Errorf("exit code %d: %v", r.GetExitCode(), err)
	}
	if s := c.status(t).GetState(); s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", s)
	}
}

func TestTerminal(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	p.prints(t, "/dev/pts/0\r\nall\r\n88\r\nxterm\r\nerr\r\nx\r\n",
		"tty; test -t 0 && test -t 1 && test -t 2 && echo all; stat -c %t /dev/console; echo $TERM; echo err >&2; echo x >/dev/tty",
		func(c *cri.ContainerConfig) { c.Tty = true })
	p.prints(t, "not a tty\nnone\n", "tty; test -t 1 || echo none")
}
