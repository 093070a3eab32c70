package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// onlyV2 is the host, or skips unless the named controllers are in its cgroup2.
func onlyV2(t *testing.T, controllers ...string) *Hierarchies {
	t.Helper()
	hs := host(t)
	for _, c := range controllers {
		if h := hs.byController[c]; h == nil || !h.Unified {
			t.Skipf("no %s controller in a cgroup2", c)
		}
	}
	return hs
}

// limitFiles are control files of a leaf and what they say.
type limitFiles map[string]string

// anyText is what a file says that kernels do not agree on.
const anyText = "*"

func (want limitFiles) check(t *testing.T, g *Group) {
	t.Helper()
	for file, text := range want {
		if got := value(t, g, "", file); got != text && text != anyText {
			t.Errorf("%s = %q, want %q", file, got, text)
		}
	}
}

// with is want changed by others.
func (want limitFiles) with(others limitFiles) limitFiles {
	all := limitFiles{}
	for _, files := range []limitFiles{want, others} {
		for file, text := range files {
			all[file] = text
		}
	}
	return all
}

// everyLimit is one of each, and what the files of a leaf say then.
func everyLimit() (*specs.LinuxResources, limitFiles) {
	return &specs.LinuxResources{
			CPU:            &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20000)), Period: ptr(uint64(50000)), Burst: ptr(uint64(10000)), Cpus: "0", Mems: "0"},
			Memory:         &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(96 << 20)), Reservation: ptr(int64(32 << 20))},
			Pids:           &specs.LinuxPids{Limit: ptr(int64(77))},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}, {Pagesize: "512MB", Limit: 0}},
			Unified:        map[string]string{"memory.oom.group": "1", "memory.high": "50331648", "cgroup.max.depth": "3"},
		}, limitFiles{
			"cpu.weight": "59", "cpu.max": "20000 50000", "cpu.max.burst": "10000", "cpuset.cpus": "0", "cpuset.cpus.effective": "0", "cpuset.mems": "0",
			"memory.max": "67108864", "memory.swap.max": "33554432", "memory.low": "33554432", "memory.high": "50331648", "memory.oom.group": "1",
			"pids.max": "77", "hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304", "cgroup.max.depth": "3",
		}
}

func TestLimitsOnV2(t *testing.T) {
	hs := onlyV2(t, "cpu", "cpuset", "memory", "pids", "hugetlb")
	res, want := everyLimit()
	g := create(t, hs, res)
	want.check(t, g)
	for _, step := range []struct {
		name string
		res  specs.LinuxResources
		want limitFiles // others stay as they are
	}{
		{"raise memory, keep the swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(256 << 20))}}, limitFiles{"memory.max": "268435456"}},
		{"lower both", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(16 << 20))}},
			limitFiles{"memory.max": "16777216", "memory.swap.max": "0"}},
		{"raise the swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(48 << 20))}}, limitFiles{"memory.swap.max": "33554432"}},
		{"no limit of memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1)), Swap: ptr(int64(-1)), Reservation: ptr(int64(-1))}},
			limitFiles{"memory.max": "max", "memory.swap.max": "max", "memory.low": "max"}},
		{"lower the reservation", specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(4096))}}, limitFiles{"memory.low": "4096"}},
		{"zero is unchanged", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(0)), Quota: ptr(int64(0)), Period: ptr(uint64(0))},
			Memory: &specs.LinuxMemory{Limit: ptr(int64(0))}, Pids: &specs.LinuxPids{Limit: ptr(int64(0))}}, nil},
		{"quota below the burst", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(4000)), Burst: ptr(uint64(3000))}},
			limitFiles{"cpu.max": "4000 50000", "cpu.max.burst": "3000"}},
		{"burst above the quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(30000)), Burst: ptr(uint64(20000))}},
			limitFiles{"cpu.max": "30000 50000", "cpu.max.burst": "20000"}},
		{"no burst", specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: ptr(uint64(0))}}, limitFiles{"cpu.max.burst": "0"}},
		{"period alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(60000))}}, limitFiles{"cpu.max": "30000 60000"}},
		{"no quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(100000))}}, limitFiles{"cpu.max": "max 100000"}},
		{"idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(2))}}, limitFiles{"cpu.idle": "1", "cpu.weight": anyText}},
		{"not idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(0)), Shares: ptr(uint64(1024))}}, limitFiles{"cpu.idle": "0", "cpu.weight": "100"}},
		{"least shares", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(2))}}, limitFiles{"cpu.weight": "1"}},
		{"most shares", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(262144))}}, limitFiles{"cpu.weight": "10000"}},
		{"lower the pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(5))}}, limitFiles{"pids.max": "5"}},
		{"no limit of pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, limitFiles{"pids.max": "max"}},
		{"raise huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 8 << 20}}},
			limitFiles{"hugetlb.2MB.max": "8388608", "hugetlb.2MB.rsvd.max": "8388608"}},
		{"lower huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}},
			limitFiles{"hugetlb.2MB.max": "0", "hugetlb.2MB.rsvd.max": "0"}},
		{"unified", specs.LinuxResources{Unified: map[string]string{"memory.oom.group": "0", "memory.high": "max", "cpu.max": "7000 20000", "cgroup.max.depth": "max"}},
			limitFiles{"memory.oom.group": "0", "memory.high": "max", "cpu.max": "7000 20000", "cgroup.max.depth": "max"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			if _, err := g.Update(&step.res); err != nil {
				t.Fatal(err)
			}
			want = want.with(step.want)
			want.check(t, g)
		})
	}
	t.Run("another cpu", func(t *testing.T) {
		if runtime.NumCPU() < 2 {
			t.Skip("there is one only")
		}
		for _, cpus := range []string{"0-1", "1"} {
			if _, err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: cpus}}); err != nil {
				t.Fatal(err)
			}
			limitFiles{"cpuset.cpus": cpus, "cpuset.cpus.effective": cpus}.check(t, g)
		}
	})
}

// An update that fails in the middle leaves what was there before; one that succeeds can be taken back.
func TestUpdateTakenBackOnV2(t *testing.T) {
	hs := onlyV2(t, "cpu", "cpuset", "memory", "pids", "hugetlb")
	old, want := everyLimit()
	g := create(t, hs, old)
	start(t, g, "exec sleep 60")
	for name, to := range map[string]*specs.LinuxResources{
		"raise": {
			Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(256 << 20)), Reservation: ptr(int64(64 << 20))},
			CPU:    &specs.LinuxCPU{Shares: ptr(uint64(2048)), Quota: ptr(int64(90000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(50000))},
			Pids:   &specs.LinuxPids{Limit: ptr(int64(100))},
		},
		"lower": {
			Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20)), Reservation: ptr(int64(16 << 20))},
			CPU:    &specs.LinuxCPU{Shares: ptr(uint64(102)), Quota: ptr(int64(2000)), Period: ptr(uint64(10000)), Burst: ptr(uint64(1000))},
			Pids:   &specs.LinuxPids{Limit: ptr(int64(2))},
		},
	} {
		t.Run(name, func(t *testing.T) {
			to.Unified = map[string]string{"memory.oom.group": "7"}
			_, err := g.Update(to)
			if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), "set unified limit 7 in "+g.Paths()[""]+"/memory.oom.group: ") {
				t.Fatalf("Update = %v", err)
			}
			want.check(t, g)
			to.Unified = nil
			undo, err := g.Update(to)
			if err != nil {
				t.Fatal(err)
			}
			if got := value(t, g, "", "pids.max"); got == want["pids.max"] {
				t.Error("the update has changed nothing")
			}
			if err := undo.Undo(); err != nil {
				t.Error(err)
			}
			want.check(t, g)
		})
	}
}

func TestBlockIOOnV2(t *testing.T) {
	hs := onlyV2(t, "io")
	disks, err := filepath.Glob("/sys/block/[vs]d?/dev")
	if err != nil || len(disks) == 0 {
		t.Skipf("no disk: %v", err)
	}
	text, err := os.ReadFile(disks[0])
	if err != nil {
		t.Fatal(err)
	}
	number := strings.TrimSpace(string(text))
	var disk specs.LinuxBlockIODevice
	if _, err := fmt.Sscanf(number, "%d:%d", &disk.Major, &disk.Minor); err != nil {
		t.Fatal(err)
	}
	rate := func(n uint64) []specs.LinuxThrottleDevice {
		return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: disk, Rate: n}}
	}
	g := create(t, hs, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: rate(1 << 20), ThrottleWriteIOPSDevice: rate(100)}})
	for _, step := range []struct {
		name string
		to   *specs.LinuxBlockIO
		want string
	}{
		{"as created", nil, number + " rbps=1048576 wbps=max riops=max wiops=100"},
		{"two others", &specs.LinuxBlockIO{ThrottleWriteBpsDevice: rate(1 << 21), ThrottleReadIOPSDevice: rate(50)}, number + " rbps=1048576 wbps=2097152 riops=50 wiops=100"},
		{"raise and lower", &specs.LinuxBlockIO{ThrottleReadBpsDevice: rate(1 << 22), ThrottleWriteIOPSDevice: rate(10)}, number + " rbps=4194304 wbps=2097152 riops=50 wiops=10"},
		{"no limits", &specs.LinuxBlockIO{ThrottleReadBpsDevice: rate(0), ThrottleWriteBpsDevice: rate(0), ThrottleReadIOPSDevice: rate(0), ThrottleWriteIOPSDevice: rate(0)}, ""},
	} {
		if _, err := g.Update(&specs.LinuxResources{BlockIO: step.to}); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := value(t, g, "", "io.max"); got != step.want {
			t.Errorf("%s: io.max = %q, want %q", step.name, got, step.want)
		}
	}
	testBlockWeight(t, g, disk)
}

// testBlockWeight sets weights in the file of whichever scheduler the kernel has for them.
func testBlockWeight(t *testing.T, g *Group, disk specs.LinuxBlockIODevice) {
	t.Helper()
	_, err := g.Update(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500))}})
	for file, want := range map[string]string{"io.bfq.weight": "500", "io.weight": "4950"} {
		text, missing := os.ReadFile(g.Paths()[""] + "/" + file)
		if missing != nil {
			continue
		}
		if first, _, _ := strings.Cut(string(text), "\n"); err != nil || strings.TrimPrefix(first, "default ") != want {
			t.Errorf("%s = %q, want %s: %v", file, first, want, err)
		}
		weight := []specs.LinuxWeightDevice{{LinuxBlockIODevice: disk, Weight: ptr(uint16(1000))}}
		if _, err := g.Update(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{WeightDevice: weight}}); err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // which it is without a scheduler of weights
			t.Errorf("weight of one disk: %v", err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "io.weight: no such file") {
		t.Errorf("weight without a scheduler that knows it: %v", err)
	}
}

// swapOn makes sure that there is swap, if need be in a file.
func swapOn(t *testing.T) {
	t.Helper()
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		t.Skip(err)
	}
	if strings.Count(string(swaps), "\n") > 1 {
		return
	}
	const page, pages = 4096, 64 << 20 / 4096
	file := filepath.Join(t.TempDir(), "swap")
	area := make([]byte, page*pages)
	binary.LittleEndian.PutUint32(area[1024:], 1) // version, last page, bad pages; see union swap_header
	binary.LittleEndian.PutUint32(area[1028:], pages-1)
	copy(area[page-10:], "SWAPSPACE2")
	if err := os.WriteFile(file, area, 0o600); err != nil {
		t.Fatal(err)
	}
	name, err := unix.BytePtrFromString(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
		t.Skipf("cannot swap to a file: %v", errno)
	}
	t.Cleanup(func() {
		if _, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
			t.Error(errno)
		}
	})
}

// What does not fit into the memory goes to the swap, as far as that is allowed; beyond that the kernel kills.
func TestSwapOnV2(t *testing.T) {
	hs := onlyV2(t, "memory")
	swapOn(t)
	for _, c := range []struct {
		name  string
		swap  int64
		kills bool
	}{{"enough", 64 << 20, false}, {"none", 16 << 20, true}} {
		t.Run(c.name, func(t *testing.T) {
			g := create(t, hs, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: &c.swap}})
			cmd := start(t, g, `x=$(head -c 12m /dev/zero | tr '\0' x); read used <`+g.Paths()[""]+`/memory.swap.current; test ${#x} = 12582912 && test $used -gt 0`)
			err := cmd.Wait()
			kills, failed := g.OOMKills()
			if failed != nil {
				t.Fatal(failed)
			}
			if (err != nil) != c.kills || (kills > 0) != c.kills {
				t.Errorf("12 MiB, twice, in 16 MiB of memory: %v, %d kills", err, kills)
			}
			peak := value(t, g, "", "memory.swap.events")
			if most, err := parseKeyed(peak, "max"); err != nil || most != 0 && !c.kills {
				t.Errorf("the limit of swap was hit %d times: %v", most, err)
			}
		})
	}
}

// A limit below what a container has is refused, and kills nobody, unless the kernel can make room.
func TestMemoryLimitBelowUsageOnV2(t *testing.T) {
	hs := onlyV2(t, "memory")
	const limit = 64 << 20
	g := create(t, hs, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(limit)), Swap: ptr(int64(limit))}})
	if err := os.WriteFile(g.Paths()[""]+"/memory.reclaim", []byte("0"), 0); errors.Is(err, fs.ErrNotExist) {
		t.Skip("no memory.reclaim before Linux 5.19")
	}
	dir, err := os.MkdirTemp("/var/tmp", "critest-") // on a disk: what is in a tmpfs is no cache
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cmd := start(t, g, `cd `+dir+` && head -c 32m /dev/zero >cached && sync cached && x=$(head -c 4m /dev/zero | tr '\0' x) && echo ${#x} >ready; sleep 60; : $x`)
	if err := poll(ctx(t), func() (bool, error) {
		text, err := os.ReadFile(dir + "/ready")
		return len(text) > 0, ignoreGone(err)
	}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		limit int64
		want  error
		have  string
	}{{24 << 20, nil, "25165824"}, {2 << 20, unix.EAGAIN, "25165824"}} {
		usage := value(t, g, "", "memory.current")
		if _, err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &step.limit}}); !errors.Is(err, step.want) {
			t.Errorf("limit %d below the usage %s: %v, want %v", step.limit, usage, err, step.want)
		}
		limitFiles{"memory.max": step.have}.check(t, g)
	}
	if kills, err := g.OOMKills(); kills != 0 || err != nil || cmd.Process.Signal(unix.Signal(0)) != nil {
		t.Errorf("%d kills, %v", kills, err)
	}
}

// Kernels can lack the files of swap (swapaccount=0): only a limit that would not hold by itself needs them.
func TestLimitsWithoutSwapAccounting(t *testing.T) {
	dir := t.TempDir()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	h := &hierarchy{Hierarchy: Hierarchy{MountPoint: dir, Unified: true}, root: root, dialect: v2{}}
	if err := os.WriteFile(dir+"/memory.max", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for swap, want := range map[int64]error{100: nil, -1: nil, 150: fs.ErrNotExist} {
		settings, err := v2{}.memory(nil, &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: &swap})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.set("", settings, nil); !errors.Is(err, want) {
			t.Errorf("memory and swap together %d: %v, want %v", swap, err, want)
		}
	}
}

// The kubelet reads the pressure of every container.
func TestPressureOfGroup(t *testing.T) {
	hs := onlyV2(t, "cpu", "memory", "io")
	if _, err := os.ReadFile("/proc/pressure/cpu"); err != nil {
		t.Skipf("no pressure stall information: %v", err)
	}
	g := create(t, hs, nil)
	start(t, g, "exec sleep 60")
	for _, file := range []string{"cpu.pressure", "memory.pressure", "io.pressure"} {
		if text := value(t, g, "", file); !strings.HasPrefix(text, "some avg10=") || !strings.Contains(text, "\nfull avg10=") {
			t.Errorf("%s: %q", file, text)
		}
	}
	if _, err := g.Update(&specs.LinuxResources{Unified: map[string]string{"cgroup.pressure": "0"}}); err != nil {
		t.Fatal(err)
	}
	limitFiles{"cgroup.pressure": "0"}.check(t, g)
}

// There is one filter of a leaf, whatever was changed, and none where every device is allowed from the beginning.
func TestDeviceFilters(t *testing.T) {
	hs := host(t)
	if hs.unified == nil || hs.Mode() != V2 {
		t.Skip("device rules are those of v1")
	}
	attached := func(g *Group) []ebpf.ProgramID {
		t.Helper()
		dir, err := os.Open(g.Paths()[""])
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		programs, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupDevice})
		if err != nil {
			t.Fatal(err)
		}
		var ids []ebpf.ProgramID
		for _, p := range programs.Programs {
			ids = append(ids, p.ID)
		}
		return ids
	}
	all := []specs.LinuxDeviceCgroup{{Allow: false}, {Allow: true, Type: "a", Access: "rwm"}}
	g := create(t, hs, &specs.LinuxResources{Devices: all})
	if ids := attached(g); len(ids) != 0 {
		t.Errorf("filters %v of a leaf that is allowed everything", ids)
	}
	for _, rules := range [][]specs.LinuxDeviceCgroup{typical().Devices, all, typical().Devices} {
		before := attached(g)
		if _, err := g.Update(&specs.LinuxResources{Devices: rules}); err != nil {
			t.Fatal(err)
		}
		if ids := attached(g); len(ids) != 1 || len(before) == 1 && ids[0] == before[0] {
			t.Errorf("filters %v, before that %v", ids, before)
		}
	}
}
