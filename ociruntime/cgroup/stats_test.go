package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// parsed reads texts as the files of these names, which but for was are all, and says which it has read.
func parsed(t *testing.T, files []counterFile, texts map[string]string, was *Stats) (s *Stats, read []string) {
	t.Helper()
	s = &Stats{}
	if was != nil {
		*s = *was
	}
	for _, f := range files {
		text, ok := texts[f.name]
		if !ok || f.known != nil && f.known(s, was) {
			continue
		}
		if !f.parse(s, []byte(text)) {
			t.Errorf("%s: %q is refused", f.name, text)
		}
		read = append(read, f.name)
	}
	s.settle()
	return s, read
}

func TestStatsParse(t *testing.T) {
	for _, test := range []struct {
		name  string
		files []counterFile
		texts map[string]string
		want  Stats
	}{
		{"v1", v1CounterFiles, map[string]string{
			"cpuacct.usage": "1047993056570\n", "cpuacct.stat": "user 12\nsystem 3\n",
			"cpu.stat":              "nr_periods 7\nnr_throttled 2\nthrottled_time 1500\nnr_bursts 0\n",
			"memory.usage_in_bytes": "5000\n", "memory.limit_in_bytes": "8192\n", "memory.memsw.limit_in_bytes": "10000\n",
			"memory.stat": "cache 1\npgfault 5\npgmajfault 1\nhierarchical_memory_limit 8192\nhierarchical_memsw_limit 10000\ntotal_cache 3000\ntotal_rss 2000\n" +
				"total_mapped_file 30\ntotal_swap 40\ntotal_pgfault 9\ntotal_pgmajfault 2\ntotal_inactive_file 1000\n",
			"memory.max_usage_in_bytes": "6000\n", "memory.kmem.usage_in_bytes": "70\n", "memory.soft_limit_in_bytes": "9223372036854771712\n",
			"memory.failcnt": "4\n", "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
			"pids.current": "6\n", "pids.max": "max\n",
			"blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 1\n8:0 Total 4608\n253:16 Read 1\nTotal 4609\n",
			"blkio.throttle.io_serviced_recursive":      "8:0 Read 2\n8:0 Write 1\nTotal 3\n",
		}, Stats{
			CPU: CPUStats{Usage: 1047993056570, User: 120e6, System: 30e6, Periods: 7, Throttled: 2, ThrottledTime: 1500},
			Memory: MemoryStats{Usage: 5000, Limit: 8192, InactiveFile: 1000, Anon: 2000, File: 3000, MappedFile: 30, Faults: 9, Major: 2, OwnFaults: 5,
				OwnMajor: 1, HasSwap: true, Swap: 40, SwapLimit: 1808, Peak: 6000, Kernel: 70, Reservation: NoLimit, AtLimit: 4, OOMKill: 1},
			Tasks: TaskStats{Current: 6, Limit: NoLimit},
			IO:    []DeviceIO{{Major: 8, ReadBytes: 4096, WriteBytes: 512, Reads: 2, Writes: 1}, {Major: 253, Minor: 16, ReadBytes: 1}},
		}},
		{"v1 without limits and swap", v1CounterFiles, map[string]string{
			"memory.limit_in_bytes": "9223372036854771712\n", "memory.memsw.limit_in_bytes": "9223372036854771712\n", "memory.stat": "total_rss 1\n",
		}, Stats{Memory: MemoryStats{Limit: NoLimit, SwapLimit: NoLimit, Anon: 1}}},
		{"v1, files that have nothing new", v1CounterFiles, map[string]string{
			"memory.stat":           "hierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712\ntotal_rss 1\n",
			"memory.limit_in_bytes": "not read\n", "memory.memsw.limit_in_bytes": "not read\n",
			"blkio.throttle.io_serviced_recursive": "Total 0\n", "blkio.throttle.io_service_bytes_recursive": "not read\n",
		}, Stats{Memory: MemoryStats{Limit: NoLimit, SwapLimit: NoLimit, Anon: 1}}},
		{"v1, no limit but of the group above", v1CounterFiles, map[string]string{
			"memory.stat":           "hierarchical_memory_limit 4096\nhierarchical_memsw_limit 9223372036854771712\n",
			"memory.limit_in_bytes": "9223372036854771712\n", "memory.memsw.limit_in_bytes": "not read\n",
		}, Stats{Memory: MemoryStats{Limit: NoLimit, SwapLimit: NoLimit}}},
		{"v2", v2CounterFiles, map[string]string{
			"cpu.stat":        "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 7\nnr_throttled 2\nthrottled_usec 3\n",
			"cpu.pressure":    "some avg10=1.25 avg60=0.50 avg300=100.00 total=17\n",
			"memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\nfull avg10=0.05 avg60=0.00 avg300=0.00 total=2\n",
			"memory.current":  "5000\n", "memory.max": "max\n", "memory.stat": "anon 2000\nfile 3000\nkernel 70\nfile_mapped 30\ninactive_file 1000\npgfault 9\npgmajfault 2\n",
			"memory.swap.current": "40\n", "memory.swap.max": "100\n", "memory.peak": "6000\n", "memory.low": "0\n", "memory.events": "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\n",
			"pids.current": "6\n", "pids.max": "100\n", "io.stat": "8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n253:16 \n",
		}, Stats{
			CPU: CPUStats{Usage: 1500e3, User: 1000e3, System: 500e3, Periods: 7, Throttled: 2, ThrottledTime: 3000},
			Memory: MemoryStats{Usage: 5000, Limit: NoLimit, InactiveFile: 1000, Anon: 2000, File: 3000, MappedFile: 30, Faults: 9, Major: 2, OwnFaults: 9,
				OwnMajor: 2, HasSwap: true, Swap: 40, SwapLimit: 100, Peak: 6000, Kernel: 70, AtLimit: 4, OOMKill: 1},
			Tasks: TaskStats{Current: 6, Limit: 100},
			Pressure: PressureStats{CPU: Stall{Some: StallTime{Total: 17000, Avg10: 1.25, Avg60: 0.5, Avg300: 100}},
				Memory: Stall{Some: StallTime{Total: 3000}, Full: StallTime{Total: 2000, Avg10: 0.05}},
				Known:  struct{ CPU, Memory, IO bool }{CPU: true, Memory: true}},
			IO: []DeviceIO{{Major: 8, ReadBytes: 4096, WriteBytes: 512, Reads: 2, Writes: 1}, {Major: 253, Minor: 16}},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _ := parsed(t, test.files, test.texts, nil)
			if diff := cmp.Diff(test.want, *got, cmpopts.IgnoreUnexported(Stats{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever a file says, it is read or refused.
func FuzzStats(f *testing.F) {
	f.Add([]byte("8:0 rbytes=4096 wbytes=512\n"))
	f.Add([]byte("some avg10=1.25 avg60=0.50 avg300=100.00 total=17\n"))
	f.Add([]byte("18446744073709551615\nmax"))
	f.Fuzz(func(_ *testing.T, text []byte) {
		for _, files := range [][]counterFile{v1CounterFiles, v2CounterFiles} {
			s := &Stats{}
			for _, file := range files {
				file.parse(s, text)
			}
			s.settle()
		}
	})
}

func TestStatsRefuse(t *testing.T) {
	for _, test := range []struct{ file, text string }{
		{"memory.current", "x\n"}, {"memory.current", ""}, {"memory.max", "-1\n"}, {"memory.max", "99999999999999999999\n"}, {"io.stat", "sda rbytes=1\n"},
		{"io.stat", "8:4294967296 rbytes=1\n"}, {"cpu.pressure", ""}, {"cpu.pressure", "some avg10=x\n"}, {"cpu.pressure", "some total=1.5\n"},
	} {
		for _, f := range v2CounterFiles {
			if f.name == test.file && f.parse(&Stats{}, []byte(test.text)) {
				t.Errorf("%s: %q is accepted", test.file, test.text)
			}
		}
	}
}

func TestStats(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		const limit = 64 << 20
		g := create(t, hs, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(limit))}})
		start(t, g, `x=$(printf '%*s' 8000000 ''); sleep 1000 & wait`)
		var s Stats
		var buf StatsBuffer
		kinds := CPU | Memory | Details
		if hs.Has("pids") {
			kinds |= Tasks
		}
		for deadline := ctx(t); ; { // the kernel brings memory.stat up to date now and then
			if err := g.Stats(kinds|Pressure, &s, &buf); err != nil {
				t.Fatal(err)
			}
			m := &s.Memory
			if m.Anon > 8_000_000 && m.Usage > 8_000_000 && m.Faults > 0 && m.OwnFaults > 0 && (!hs.Has("pids") || s.Tasks.Current == 2) {
				break
			}
			if deadline.Err() != nil {
				t.Fatalf("nothing is used: %+v %+v", s.Memory, s.Tasks)
			}
		}
		if s.Known&kinds != kinds || s.CPU.Usage == 0 {
			t.Errorf("known are %b of %b, %+v", s.Known, kinds, s.CPU)
		}
		if s.Memory.Limit != limit || s.Memory.Peak < s.Memory.Anon || s.Memory.Peak > limit {
			t.Errorf("memory: %+v", s.Memory)
		}
		if hs.unified != nil && pressureIsCounted(hs, g) != (s.Known&Pressure != 0) {
			t.Errorf("pressure: %+v", s.Pressure)
		}
		var little Stats
		if err := g.Stats(CPU, &little, &buf); err != nil || little.Known != CPU || little.Memory.Usage != 0 || little.CPU.Usage < s.CPU.Usage {
			t.Errorf("only the CPU: %+v, %v", little.CPU, err)
		}
		parent, err := hs.Open(path.Split(path.Dir(g.Path())))
		if err != nil {
			t.Fatal(err)
		}
		if err := parent.Stats(CPU|Memory, &little, &buf); err != nil || little.CPU.Usage < s.CPU.Usage || little.Memory.Usage < s.Memory.Usage/2 {
			t.Errorf("the parent does not count its leaf: %+v, %+v, %v", little.CPU, little.Memory, err)
		}
		if m := &little.Memory; m.Limit != NoLimit || m.HasSwap && m.SwapLimit != NoLimit {
			t.Errorf("the parent has limits: %+v", m)
		}
	})
}

func pressureIsCounted(hs *Hierarchies, g *Group) bool {
	_, err := hs.unified.read(g.path, "cpu.pressure")
	return err == nil
}

func TestStatsOfGoneGroup(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, nil)
		if err := g.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
		var s Stats
		var buf StatsBuffer
		if err := g.Stats(CPU|Memory, &s, &buf); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error is %v", err)
		}
	})
}

// After a reading since which no task has run, only what others can have changed is read again.
func TestStatsKnown(t *testing.T) {
	calm, waited := "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n", "some avg10=0.00 avg60=0.00 avg300=0.01 total=3\n"
	v1Texts := map[string]string{
		"cpuacct.usage": "1\n", "cpuacct.stat": "user 1\n", "cpu.stat": "nr_periods 7\n", "memory.usage_in_bytes": "5000\n",
		"memory.stat":           "hierarchical_memory_limit 8192\nhierarchical_memsw_limit 10000\n",
		"memory.limit_in_bytes": "8192\n", "memory.memsw.limit_in_bytes": "10000\n", "memory.max_usage_in_bytes": "6000\n", "memory.kmem.usage_in_bytes": "70\n",
		"memory.soft_limit_in_bytes": "9000\n", "memory.failcnt": "4\n", "memory.oom_control": "oom_kill 1\n", "pids.current": "6\n", "pids.max": "max\n",
		"blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n", "blkio.throttle.io_serviced_recursive": "8:0 Read 2\n",
	}
	v2Texts := map[string]string{
		"cpu.stat": "usage_usec 1\n", "cpu.pressure": waited, "memory.pressure": calm, "io.pressure": calm, "memory.current": "5000\n", "memory.max": "max\n",
		"memory.stat": "anon 1\n", "memory.swap.current": "40\n", "memory.swap.max": "100\n", "memory.peak": "6000\n", "memory.low": "0\n", "memory.events": "max 4\n",
		"pids.current": "6\n", "pids.max": "100\n", "io.stat": "8:0 rbytes=4096\n",
	}
	always1 := []string{"memory.usage_in_bytes", "memory.stat"}
	always2 := []string{"cpu.pressure", "memory.current", "memory.max", "memory.stat", "memory.swap.current", "memory.swap.max", "memory.events", "io.stat"}
	for _, row := range []struct {
		name    string
		files   []counterFile
		texts   map[string]string
		changed map[string]string
		read    []string // besides what always is, and the number of tasks
	}{
		{"v1", v1CounterFiles, v1Texts, nil, nil},
		{"v1, memory was given back", v1CounterFiles, v1Texts, map[string]string{"memory.usage_in_bytes": "4000\n"},
			[]string{"memory.max_usage_in_bytes", "memory.kmem.usage_in_bytes", "memory.failcnt"}},
		{"v1, another limit", v1CounterFiles, v1Texts, map[string]string{"memory.stat": "hierarchical_memory_limit 8000\nhierarchical_memsw_limit 10000\n", "memory.limit_in_bytes": "8000\n"},
			[]string{"memory.limit_in_bytes"}},
		{"v1, another limit with swap", v1CounterFiles, v1Texts, map[string]string{"memory.stat": "hierarchical_memory_limit 8192\nhierarchical_memsw_limit 9000\n", "memory.memsw.limit_in_bytes": "9000\n"},
			[]string{"memory.memsw.limit_in_bytes"}},
		{"v1, no limit any more", v1CounterFiles, v1Texts, map[string]string{"memory.stat": "hierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712\n",
			"memory.limit_in_bytes": "9223372036854771712\n", "memory.memsw.limit_in_bytes": "9223372036854771712\n"}, nil},
		{"v2", v2CounterFiles, v2Texts, nil, nil},
		{"v2, memory was given back", v2CounterFiles, v2Texts, map[string]string{"memory.current": "4000\n"}, []string{"memory.peak"}},
		{"v2, written back", v2CounterFiles, v2Texts, map[string]string{"io.stat": "8:16 wbytes=1\n"}, nil},
		{"v2, a task has waited", v2CounterFiles, with(v2Texts, "io.pressure", waited), nil, []string{"memory.pressure", "io.pressure"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			was, all := parsed(t, row.files, row.texts, nil)
			if len(all) != len(row.files) {
				t.Errorf("of a group that is not known, only %q are read", all)
			}
			texts := maps.Clone(row.texts)
			maps.Copy(texts, row.changed)
			s, read := parsed(t, row.files, texts, was)
			want := append(slices.Clone(always1), row.read...)
			if &row.files[0] == &v2CounterFiles[0] {
				want = append(slices.Clone(always2), row.read...)
			}
			sort := cmpopts.SortSlices(strings.Compare)
			if diff := cmp.Diff(append(want, "pids.current"), read, sort); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
			whole, _ := parsed(t, row.files, texts, nil)
			if diff := cmp.Diff(whole, s, cmp.AllowUnexported(Stats{})); diff != "" {
				t.Errorf("(-read as a whole +known):\n%s", diff)
			}
		})
	}
}

func with(texts map[string]string, name, text string) map[string]string {
	texts = maps.Clone(texts)
	texts[name] = text
	return texts
}

// What is known of a group is not read again, and what was not read is not said to be known.
func TestMoreStats(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}})
		const want = CPU | Memory | Pressure | Details
		var was, s Stats
		var buf StatsBuffer
		if err := g.Stats(want, &was, &buf); err != nil {
			t.Fatal(err)
		}
		was.CPU.Usage, was.Memory.Reservation = 12345, 54321 // as nobody would read them
		if err := g.MoreStats(want, &s, &was, &buf); err != nil {
			t.Fatal(err)
		}
		if s.CPU.Usage != 12345 || s.Memory.Reservation != 54321 || s.Memory.Limit != 64<<20 || s.Known != was.Known {
			t.Errorf("%+v, known are %b of %b", s, s.Known, was.Known)
		}
		undo, err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(32 << 20))}})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.MoreStats(want, &s, &was, &buf); err != nil || s.Memory.Reservation != 32<<20 {
			t.Errorf("after it was set, the reservation is %d, %v", s.Memory.Reservation, err)
		}
		was = s
		if err := errors.Join(undo.Undo(), g.MoreStats(want, &s, &was, &buf)); err != nil || s.Memory.Reservation == 32<<20 {
			t.Errorf("after that was taken back, it is %d, %v", s.Memory.Reservation, err)
		}
		if hs.Has("hugetlb") {
			for _, used := range []uint64{0, 1} {
				was.Huge = []HugePages{{Size: "3MB", Usage: used}}
				err := g.MoreStats(want, &s, &was, &buf)
				if again := len(s.Huge) != 1 || s.Huge[0] != was.Huge[0]; err != nil || again != (used > 0) {
					t.Errorf("of %+v comes %+v, %v", was.Huge, s.Huge, err)
				}
			}
		}
		was.Known &^= CPU
		s = Stats{}
		if err := g.MoreStats(want, &s, &was, &buf); err != nil || s.Known != was.Known {
			t.Errorf("known are %b instead of %b, %v", s.Known, was.Known, err)
		}
		for _, h := range hs.all { // somebody else
			if !slices.Contains(h.Controllers, "memory") {
				continue
			}
			name := "memory.limit_in_bytes"
			if h.Unified {
				name = "memory.max"
			}
			if err := os.WriteFile(h.abs(g.path, name), []byte("33554432"), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.MoreStats(want, &s, &was, &buf); err != nil || s.Memory.Limit != 32<<20 {
			t.Errorf("limit %d, %v", s.Memory.Limit, err)
		}
		if hs.unified == nil || !pressureIsCounted(hs, g) {
			return
		}
		if err := os.WriteFile(hs.unified.abs(g.path, "cgroup.pressure"), []byte("0"), 0); err != nil {
			return // of an older kernel, which cannot switch it off
		}
		if err := g.MoreStats(want, &s, &was, &buf); err != nil || s.Pressure.Known.CPU || s.Pressure.Known.Memory || s.Pressure.Known.IO {
			t.Errorf("pressure that was switched off: %+v, %v", s.Pressure, err)
		}
	})
}

// Reading allocates only what a system call's path needs.
func BenchmarkStats(b *testing.B) {
	hs := host(b)
	g := create(b, hs, nil)
	for _, row := range []struct {
		name string
		want Counters
	}{{"cpu", CPU}, {"container", CPU | Memory | Pressure}, {"metrics", CPU | Memory | Tasks | Pressure | Details}} {
		b.Run(row.name, func(b *testing.B) {
			var s Stats
			var buf StatsBuffer
			b.ReportAllocs()
			for b.Loop() {
				if err := g.Stats(row.want, &s, &buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// How many files are read is said in the comments of Counters, and in package sandbox/stats.
func TestStatsFiles(t *testing.T) {
	for _, row := range []struct {
		name   string
		want   Counters
		v1, v2 int
	}{
		{"rate", CPU, 1, 1}, {"container", CPU | Memory | Pressure, 5, 9}, {"pod", CPU | Memory | Pressure | Tasks, 6, 10},
		{"metrics", CPU | Memory | Pressure | Tasks | Details, 16, 15},
	} {
		for files, want := range map[*[]counterFile]int{&v1CounterFiles: row.v1, &v2CounterFiles: row.v2} {
			n := 0
			for _, f := range *files {
				if f.kinds&^row.want == 0 {
					n++
				}
			}
			if n != want {
				t.Errorf("%s: %d files instead of %d", row.name, n, want)
			}
		}
	}
}
