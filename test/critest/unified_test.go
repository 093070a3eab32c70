package critest

import (
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What only a cgroup2 has: swap apart from memory, and keys that are written as they are given.
func TestUnified(t *testing.T) {
	d := use(t)
	if (cgroupFile{v2: "memory.max"}).find(t, suite.cgroups) == "" {
		t.Skip("memory is not in a cgroup2")
	}
	p := runPod(t, d)
	c := p.start(t, idle, func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{
			MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20, CpuShares: 2,
			Unified: map[string]string{"memory.high": "50331648", "memory.min": "4194304", "memory.oom.group": "1", "pids.max": "77", "cpu.weight": "33"},
		}
	})
	for file, want := range map[string]string{
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.high": "50331648", "memory.min": "4194304", "memory.oom.group": "1",
		"pids.max": "77", "cpu.weight": "33",
	} {
		if got := c.cgroupFile(t, file, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := c.exec(t, "cat /sys/fs/cgroup/memory.high; grep -c total= /sys/fs/cgroup/memory.pressure"); got != "50331648\n2\n" {
		t.Errorf("the container sees %q", got)
	}
	alone := p.start(t, idle, func(c *cri.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 64<<20, 64<<20
	})
	if got := alone.cgroupFile(t, "memory.swap.max", "memory.swap.max"); got != "0" {
		t.Errorf("with as much swap as memory together memory.swap.max is %q", got)
	}
	for key, value := range map[string]string{"nosuch.max": "1", "memory.nosuch": "1", "memory.high": "much", "../pids.max": "1", "cgroup.procs": "1"} {
		t.Run("refused: "+key, func(t *testing.T) {
			check(t, d)
			_, err := p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) { c.Linux.Resources.Unified = map[string]string{key: value} }))
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			refused(t, err, codes.InvalidArgument, key)
		})
	}
}
