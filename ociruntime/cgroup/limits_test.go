package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func value(t testing.TB, g *Group, controller, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(g.Paths()[controller], file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// only skips unless the named v1 controllers are mounted.
func only(t *testing.T, hs *Hierarchies, controllers ...string) {
	t.Helper()
	for _, c := range controllers {
		if h := hs.byController[c]; h == nil || h.Unified {
			t.Skipf("no v1 %s hierarchy", c)
		}
	}
}

func TestLimitsOnV1(t *testing.T) {
	hs := host(t)
	only(t, hs, "cpu", "memory", "pids", "cpuset", "devices")
	g := create(t, hs, &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20000)), Period: ptr(uint64(50000)), Cpus: "0"},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(96 << 20)), Reservation: ptr(int64(32 << 20))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(77))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}, {Pagesize: "512MB", Limit: 0}},
		Devices: []specs.LinuxDeviceCgroup{
			{Allow: false, Access: "rwm"},
			{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"},
			{Allow: true, Type: "c", Major: ptr(int64(5)), Access: "mr"},
		},
	})
	type want struct{ controller, file, value string }
	check := func(wants ...want) {
		t.Helper()
		for _, w := range wants {
			if got := value(t, g, w.controller, w.file); got != w.value {
				t.Errorf("%s = %q, want %q", w.file, got, w.value)
			}
		}
	}
	check(want{"cpu", "cpu.shares", "512"}, want{"cpu", "cpu.cfs_quota_us", "20000"}, want{"cpu", "cpu.cfs_period_us", "50000"},
		want{"cpuset", "cpuset.cpus", "0"}, want{"memory", "memory.limit_in_bytes", "67108864"},
		want{"memory", "memory.memsw.limit_in_bytes", "100663296"}, want{"memory", "memory.soft_limit_in_bytes", "33554432"},
		want{"pids", "pids.max", "77"}, want{"devices", "devices.list", "c 1:3 rwm\nc 5:* rm"})

	for _, step := range []struct {
		name  string
		res   specs.LinuxResources
		wants []want
	}{
		{"raise memory, keep the swap allowance", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(256 << 20))}},
			[]want{{"memory", "memory.limit_in_bytes", "268435456"}, {"memory", "memory.memsw.limit_in_bytes", "301989888"}}},
		{"lower both", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(16 << 20))}},
			[]want{{"memory", "memory.limit_in_bytes", "16777216"}, {"memory", "memory.memsw.limit_in_bytes", "16777216"}}},
		{"raise both beyond", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(128 << 20))}},
			[]want{{"memory", "memory.limit_in_bytes", "134217728"}, {"memory", "memory.memsw.limit_in_bytes", "134217728"}}},
		{"unlimited", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}},
			[]want{{"memory", "memory.limit_in_bytes", "9223372036854771712"}, {"memory", "memory.memsw.limit_in_bytes", "9223372036854771712"}}},
		{"zero is unchanged", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(0)), Quota: ptr(int64(0)), Period: ptr(uint64(0))}},
			[]want{{"cpu", "cpu.shares", "512"}, {"cpu", "cpu.cfs_quota_us", "20000"}}},
		{"shorter period", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(4000)), Period: ptr(uint64(10000))}},
			[]want{{"cpu", "cpu.cfs_quota_us", "4000"}, {"cpu", "cpu.cfs_period_us", "10000"}}},
		{"no quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(100000))}},
			[]want{{"cpu", "cpu.cfs_quota_us", "-1"}, {"cpu", "cpu.cfs_period_us", "100000"}}},
		{"no pids limit", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, []want{{"pids", "pids.max", "max"}}},
		{"all devices", specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}},
			[]want{{"devices", "devices.list", "a *:* rwm"}}},
	} {
		t.Run(step.name, func(t *testing.T) {
			if _, err := g.Update(&step.res); err != nil {
				t.Fatal(err)
			}
			check(step.wants...)
		})
	}
}

func TestUpdateRefusesLimitBelowUsage(t *testing.T) {
	hs := host(t)
	if !hs.Has("memory") {
		t.Skip("no memory controller")
	}
	g := create(t, hs, nil)
	start(t, g, "exec sleep 60")
	used := func() (bool, error) { // not what it had before it came, in v1
		memory := hs.byController["memory"]
		usage, known := memory.number(g.dir(memory), map[bool]string{false: "memory.usage_in_bytes", true: "memory.current"}[memory.Unified])
		return known && usage > 4096, nil
	}
	if err := poll(ctx(t), used); err != nil {
		t.Fatal(err)
	}
	_, err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(4096)), CheckBeforeUpdate: ptr(true)}})
	if err == nil || !strings.Contains(err.Error(), "new memory limit 4096 is below the present usage") {
		t.Errorf("Update = %v", err)
	}
}

func TestMissingControllerIsAnError(t *testing.T) {
	list := slices.DeleteFunc(pureV1(t).List(), func(h Hierarchy) bool {
		return slices.Contains(h.Controllers, "pids") || slices.Contains(h.Controllers, "hugetlb")
	})
	hs, err := New(list)
	if err != nil {
		t.Fatal(err)
	}
	defer hs.Close()
	parent := testParent(t, hs)
	for want, res := range map[string]*specs.LinuxResources{
		"set pids limit: no pids controller is mounted":       {Pids: &specs.LinuxPids{Limit: ptr(int64(5))}},
		"set hugetlb limit: no hugetlb controller is mounted": {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1 << 21}}},
	} {
		if _, err := hs.Create(parent, "x", res, nil); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("Create = %v, want %q", err, want)
		}
	}
}

func TestHugetlbOnTheUnifiedHierarchy(t *testing.T) {
	hs := host(t)
	if h := hs.byController["hugetlb"]; h == nil || !h.Unified {
		t.Skip("hugetlb is not in a cgroup2")
	}
	g := create(t, hs, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}})
	if got := value(t, g, "", "hugetlb.2MB.max"); got != "4194304" {
		t.Errorf("hugetlb.2MB.max = %s", got)
	}
	if _, err := g.Update(&specs.LinuxResources{Unified: map[string]string{"hugetlb.2MB.max": "max"}}); err != nil {
		t.Fatal(err)
	}
	if got := value(t, g, "", "hugetlb.2MB.max"); got != "max" {
		t.Errorf("hugetlb.2MB.max = %s", got)
	}
}

func TestEmptyCpusetsAreFilledDownwards(t *testing.T) {
	hs := host(t)
	only(t, hs, "cpuset")
	root := hs.byController["cpuset"].abs()
	all, err := os.ReadFile(filepath.Join(root, "cpuset.cpus"))
	if err != nil {
		t.Fatal(err)
	}
	g := create(t, hs, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}})
	up := filepath.Dir(g.Paths()["cpuset"])
	for file, want := range map[string]string{
		filepath.Join(up, "cpuset.cpus"):                        strings.TrimSpace(string(all)),
		filepath.Join(up, "cpuset.mems"):                        "0",
		filepath.Join(g.Paths()["cpuset"], "cpuset.cpus"):       "0",
		filepath.Join(g.Paths()["cpuset"], "cpuset.mems"):       "0",
		filepath.Join(filepath.Dir(up), "cpuset.mems"):          "0",
		filepath.Join(filepath.Dir(up), "cgroup.sane_behavior"): "",
	} {
		text, err := os.ReadFile(file)
		if want == "" {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", file, err)
			}
			continue
		}
		if got := strings.TrimSpace(string(text)); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestOOMKillsAreCounted(t *testing.T) {
	hs := host(t)
	if !hs.Has("memory") {
		t.Skip("no memory controller")
	}
	g := create(t, hs, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(16 << 20))}})
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Fatalf("OOMKills before = %d, %v", n, err)
	}
	below, err := hs.Open(g.Path(), "unmade")
	if err != nil || below.StarvedAbove() {
		t.Fatalf("no limit has been met: %v", err)
	}
	cmd := start(t, g, "exec tail /dev/zero")
	if err := cmd.Wait(); err == nil {
		t.Fatal("tail of /dev/zero ended well")
	}
	if err := g.WaitEmpty(ctx(t)); err != nil {
		t.Fatal(err)
	}
	v2 := hs.byController["memory"].Unified
	parent, err := hs.Open(path.Split(path.Dir(g.Path())))
	if err != nil {
		t.Fatal(err)
	}
	for group, own := range map[*Group]uint64{g: 1, parent: 0} {
		all := own
		if v2 {
			all = 1
		}
		if n, err := group.OOMKills(); n != all || err != nil {
			t.Errorf("OOMKills of %s = %d, %v", group.Path(), n, err)
		}
		if n, err := group.OwnOOMKills(); n != own || err != nil {
			t.Errorf("OwnOOMKills of %s = %d, %v", group.Path(), n, err)
		}
	}
	if starved := below.StarvedAbove(); starved != v2 {
		t.Errorf("that the limit above was met is told: %v", starved)
	}
}

func TestDeviceRulesHold(t *testing.T) {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"}, // null
		{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(5)), Access: "r"},   // zero
	}
	probe := `exec 2>/dev/null
		: <>/dev/null && : </dev/zero && ! : <>/dev/zero && ! : </dev/full && exit 7; exit 8`
	check := func(t *testing.T, g *Group, want string) {
		t.Helper()
		cmd := start(t, g, probe)
		if err := cmd.Wait(); err == nil || err.Error() != want {
			t.Errorf("devices probe ended with %v, want %s", err, want)
		}
	}
	t.Run("v1", func(t *testing.T) {
		hs := host(t)
		only(t, hs, "devices")
		check(t, create(t, hs, &specs.LinuxResources{Devices: rules}), "exit status 7")
	})
	t.Run("v2", func(t *testing.T) {
		hs := host(t)
		if hs.unified == nil {
			t.Skip("no cgroup2")
		}
		var list []Hierarchy
		for _, h := range hs.List() {
			if h.Unified {
				list = append(list, h)
			}
		}
		alone, err := New(list)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = alone.Close() })
		if alone.Mode() != V2 {
			t.Errorf("mode of a cgroup2 alone is %v", alone.Mode())
		}
		g := create(t, alone, &specs.LinuxResources{Devices: rules})
		check(t, g, "exit status 7")
		open := []specs.LinuxDeviceCgroup{{Allow: true, Type: "a"}, {Allow: false, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(7)), Access: "w"}}
		if _, err := g.Update(&specs.LinuxResources{Devices: open}); err != nil {
			t.Fatal(err)
		}
		check(t, g, "exit status 8") // zero may be written now
		if _, err := g.Update(&specs.LinuxResources{Devices: rules}); err != nil {
			t.Fatal(err)
		}
		check(t, g, "exit status 7") // the earlier filters are not there beside this one
	})
}

// fakeFiles is what a cgroup2 directory says, for limits that no v2 controller of this host can show.
func fakeFiles(files map[string]string) current {
	return func(name string) (string, error) {
		text, ok := files[name]
		if !ok {
			return "", fmt.Errorf("open %s: %w", name, unix.ENOENT)
		}
		return text, nil
	}
}

func TestV2Settings(t *testing.T) {
	now := fakeFiles(map[string]string{"cpu.max": "20000 100000\n", "memory.max": "67108864\n", "memory.current": "1000\n"})
	for _, c := range []struct {
		name string
		now  current
		res  specs.LinuxResources
		want string // "file=value" in the order of writing, or "error: "
	}{
		{"shares and quota", nil, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(5000)), Period: ptr(uint64(10000))}},
			"cpu.weight=100 cpu.max=5000 10000"},
		{"no quota", nil, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}}, "cpu.max=max"},
		{"period keeps the quota", now, specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(50000))}}, "cpu.max=20000 50000"},
		{"idle wins over shares", nil, specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(2))}}, "cpu.idle=1"},
		{"cpuset", nil, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}}, "cpuset.cpus=0-1 cpuset.mems=0"},
		{"swap is what is beyond", nil, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150))}},
			"memory.max=100 memory.swap.max=50"},
		{"no swap", nil, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(100)), Reservation: ptr(int64(60))}},
			"memory.max=100 memory.swap.max=0 memory.low=60"},
		{"swap of the present limit", now, specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(67108865))}}, "memory.swap.max=1"},
		{"swap before limit on update", now, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(4096)), Swap: ptr(int64(-1))}},
			"memory.swap.max=max memory.max=4096"},
		{"swap without limit", nil, specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(100))}}, "error: a limit of memory and swap together needs a memory limit"},
		{"below usage", now, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(999)), CheckBeforeUpdate: ptr(true)}},
			"error: new memory limit 999 is below the present usage 1000"},
		{"room below usage", now, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(999)), Swap: ptr(int64(-1))}},
			"memory.swap.max=max memory.reclaim=1 memory.max=999"},
		{"swappiness", nil, specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(1))}}, "error: swappiness does not exist in cgroup v2"},
		{"pids", nil, specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, "pids.max=max"},
		{"huge pages", nil, specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 5}}}, "hugetlb.1GB.max=5 hugetlb.1GB.rsvd.max=5"},
		{"block", now, specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000)),
			ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8, Minor: 1}, Rate: 9}},
			ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8}}}}},
			"io.weight=10000 io.max=8:1 rbps=9 io.max=8:0 wiops=max"},
		{"block weights", now, specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(0)),
			WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8}, Weight: ptr(uint16(10))},
				{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8, Minor: 1}, Weight: ptr(uint16(0))}}}}, "io.weight=100 io.weight=8:0 1 io.weight=8:1 default"},
		{"weights of BFQ", fakeFiles(map[string]string{"io.bfq.weight": "default 100"}), specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(0)),
			WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8}, Weight: ptr(uint16(0))}}}},
			"io.bfq.weight=100 io.bfq.weight=8:0 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := planned(v2{}, c.now, &c.res); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// Controllers that the parent cannot give are missed only by limits that need them.
func TestControllersThatCannotBeHad(t *testing.T) {
	list := slices.DeleteFunc(host(t).List(), func(h Hierarchy) bool { return !h.Unified })
	if len(list) == 0 {
		t.Skip("no cgroup2")
	}
	list[0].Controllers = append(list[0].Controllers, "nonesuch", "hugetlb")
	if slices.Contains(list[0].Controllers, "memory") {
		t.Skip("every controller is in the cgroup2")
	}
	list[0].Controllers = append(list[0].Controllers, "memory")
	hs, err := New(list)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hs.Close() })
	create(t, hs, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}})
	for want, res := range map[string]*specs.LinuxResources{
		"enable controller memory in ":   {Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20))}},
		"enable controller nonesuch in ": {Unified: map[string]string{"nonesuch.max": "1"}},
	} {
		if _, err := hs.Create(testParent(t, hs), "leaf", res, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// planned prints the settings that a dialect computes.
func planned(d dialect, now current, res *specs.LinuxResources) string {
	var out []string
	for _, l := range limits {
		if !l.wanted(res) {
			continue
		}
		settings, err := l.settings(d, now, res)
		if err != nil {
			return "error: " + err.Error()
		}
		for _, s := range settings {
			out = append(out, s.file+"="+s.value)
		}
	}
	return strings.Join(out, " ")
}

func TestV1MemoryOrder(t *testing.T) {
	limited := map[string]string{"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "150", "memory.usage_in_bytes": "10"}
	for _, c := range []struct {
		name        string
		now         map[string]string
		limit, swap int64
		want        string
	}{
		{"new", nil, 100, 150, "memory.limit_in_bytes=100 memory.memsw.limit_in_bytes=150"},
		{"lower", limited, 50, 60, "memory.limit_in_bytes=50 memory.memsw.limit_in_bytes=60"},
		{"raise within", limited, 120, 200, "memory.limit_in_bytes=120 memory.memsw.limit_in_bytes=200"},
		{"raise beyond", limited, 151, 200, "memory.memsw.limit_in_bytes=200 memory.limit_in_bytes=151"},
		{"raise, allowance kept", limited, 400, 0, "memory.memsw.limit_in_bytes=450 memory.limit_in_bytes=400"},
		{"lower, allowance kept", limited, 40, 0, "memory.limit_in_bytes=40 memory.memsw.limit_in_bytes=90"},
		{"unlimit", limited, -1, 0, "memory.memsw.limit_in_bytes=-1 memory.limit_in_bytes=-1"},
		{"no swap accounting", map[string]string{"memory.limit_in_bytes": "100"}, 40, 0, "memory.limit_in_bytes=40"},
		{"swap only", limited, 0, 300, "memory.memsw.limit_in_bytes=300"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var now current
			if c.now != nil {
				now = fakeFiles(c.now)
			}
			res := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &c.limit, Swap: &c.swap}}
			if got := planned(v1{}, now, res); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 0, 1: 1, 2: 1, 102: 17, 512: 59, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("cpuWeight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestUnifiedLimitsAreChecked(t *testing.T) {
	have := []string{"memory", "cpu"}
	for file, want := range map[string]string{
		"memory.high": "", "cpu.max": "", "memory/../x.y": "no control file", "cgroup.procs": "no control file", "..": "no control file",
		"memory": "no control file", "io.max": "controller io is not",
	} {
		_, err := unifiedSettings(map[string]string{file: "1"}, have)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
	s, err := unifiedSettings(map[string]string{"memory.high": "1", "cpu.max": "1 2\n3 4\n"}, have)
	if err != nil || len(s) != 3 || s[0].value != "1 2" || s[1].value != "3 4" || s[2].file != "memory.high" {
		t.Errorf("settings %+v, %v", s, err)
	}
}
