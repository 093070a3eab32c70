package cgroup

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestUpdateTakenBackOnV1(t *testing.T) {
	hs := host(t)
	only(t, hs, "cpu", "cpuset", "memory", "pids", "blkio")
	files := map[string]string{"cpu.shares": "cpu", "cpu.cfs_quota_us": "cpu", "cpu.cfs_period_us": "cpu", "cpuset.cpus": "cpuset",
		"memory.limit_in_bytes": "memory", "memory.memsw.limit_in_bytes": "memory", "memory.soft_limit_in_bytes": "memory", "pids.max": "pids"}
	read := func(g *Group) map[string]string {
		now := map[string]string{}
		for file, controller := range files {
			now[file] = value(t, g, controller, file)
		}
		return now
	}
	g := create(t, hs, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(96 << 20))},
		CPU: &specs.LinuxCPU{Quota: ptr(int64(20000)), Period: ptr(uint64(50000))}})
	start(t, g, "exec sleep 60")
	before := read(g)
	check := func(t *testing.T) {
		t.Helper()
		for file, now := range read(g) {
			if now != before[file] {
				t.Errorf("%s = %s instead of %s", file, now, before[file])
			}
		}
	}
	nowhere := []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 511, Minor: 9}, Rate: 5}}
	for name, to := range map[string]*specs.LinuxResources{
		"raise": {
			CPU:    &specs.LinuxCPU{Shares: ptr(uint64(2048)), Quota: ptr(int64(90000)), Period: ptr(uint64(100000)), Cpus: "0"},
			Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(256 << 20)), Reservation: ptr(int64(1 << 20))},
			Pids:   &specs.LinuxPids{Limit: ptr(int64(100))},
		},
		"lower": {
			CPU:    &specs.LinuxCPU{Shares: ptr(uint64(2)), Quota: ptr(int64(2000)), Period: ptr(uint64(10000))},
			Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))},
			Pids:   &specs.LinuxPids{Limit: ptr(int64(2))},
		},
		"no limits": {CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(-1)), Swap: ptr(int64(-1))}},
	} {
		t.Run(name, func(t *testing.T) {
			to.BlockIO = &specs.LinuxBlockIO{ThrottleReadBpsDevice: nowhere}
			if _, err := g.Update(to); !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), "blkio.throttle.read_bps_device: no such device") {
				t.Fatalf("Update = %v", err)
			}
			check(t)
			to.BlockIO = nil
			undo, err := g.Update(to)
			if err != nil {
				t.Fatal(err)
			}
			if now := read(g); now["memory.limit_in_bytes"] == before["memory.limit_in_bytes"] || now["cpu.cfs_quota_us"] == before["cpu.cfs_quota_us"] {
				t.Errorf("the update has changed nothing: %v", now)
			}
			if err := undo.Undo(); err != nil {
				t.Error(err)
			}
			check(t)
		})
	}
}

func TestBackTo(t *testing.T) {
	for _, row := range []struct{ file, value, text, want string }{
		{"memory.max", "5", "max", "max"},
		{"cpu.max", "7000 20000", "max 100000", "max 100000"},
		{"cpuset.cpus", "0", "", "\n"},
		{"cpu.weight", "100", "0", ""},
		{"cpu.weight", "100", "59", "59"},
		{"io.max", "8:0 rbps=5", "8:1 rbps=1\n8:0 rbps=9 wbps=max", "8:0 rbps=9 wbps=max"},
		{"io.max", "8:0 rbps=5", "8:16 rbps=1", "8:0 rbps=max wbps=max riops=max wiops=max"},
		{"io.weight", "8:0 50", "default 100", "8:0 default"},
		{"io.weight", "50", "default 100\n8:0 7", "100"},
		{"io.bfq.weight", "8:0 50", "default 100\n8:0 7", "8:0 7"},
		{"io.latency", "8:0 target=5", "", "8:0 target=0"},
		{"blkio.throttle.read_bps_device", "8:0 5", "", "8:0 0"},
		{"blkio.bfq.weight", "50", "100", "100"},
		{"memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 3", "0"},
		{"misc.max", "sev 5", "sev 7\nsev_es max", "sev 7|sev_es max"},
	} {
		var got []string
		for _, s := range (setting{file: row.file, value: row.value}).backTo(row.text) {
			got = append(got, s.value)
		}
		if strings.Join(got, "|") != row.want {
			t.Errorf("%s, %q, after %q was written: %q, want %q", row.file, row.text, row.value, got, row.want)
		}
	}
}

// What the group above does not have is refused before anything is written, with what it has.
func TestCpusetOfTheGroupAbove(t *testing.T) {
	hs := host(t)
	h := hs.byController["cpuset"]
	if h == nil {
		t.Skip("no cpuset controller")
	}
	g := create(t, hs, nil)
	have, err := h.read(above(g.path), h.dialect.cpusetFile("cpus"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ cpus, mems, want string }{
		{"0-4000", "", "cpuset.cpus 0-4000: the group above, /" + above(g.path) + ", has " + strings.TrimSpace(have) + " only"},
		{"", "0-900", "cpuset.mems 0-900: the group above"},
	} {
		_, err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: row.cpus, Mems: row.mems, Shares: ptr(uint64(5))}})
		if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("Update = %v, want %q", err, row.want)
		}
	}
}

// The kernel takes memory from a group to fit it into a lower limit; what it cannot take is a refusal.
func TestMemoryLimitBelowUsageOnV1(t *testing.T) {
	hs := host(t)
	only(t, hs, "memory")
	g := create(t, hs, nil)
	dir := t.TempDir()
	start(t, g, "x=$(head -c 8m /dev/zero | tr '\\0' x) && echo ${#x} >"+dir+"/ready; sleep 60; : $x")
	if err := poll(ctx(t), func() (bool, error) {
		text, err := os.ReadFile(dir + "/ready")
		return len(text) > 0, ignoreGone(err)
	}); err != nil {
		t.Fatal(err)
	}
	_, err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), Swap: ptr(int64(1 << 20))}})
	if !errors.Is(err, ErrInUse) || !errors.Is(err, unix.EBUSY) {
		t.Errorf("Update = %v", err)
	}
	if n, err := strconv.ParseInt(value(t, g, "memory", "memory.limit_in_bytes"), 10, 64); err != nil || n < unlimited {
		t.Errorf("the limit is %d now: %v", n, err)
	}
}
