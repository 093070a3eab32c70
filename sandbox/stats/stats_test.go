package stats

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

func TestMeter(t *testing.T) {
	type step struct {
		at    time.Duration
		count uint64
		want  uint64 // per second; 0: none yet
	}
	for _, test := range []struct {
		name  string
		keep  time.Duration
		steps []step
	}{
		{"two samples", 10 * time.Second, []step{{0, 100, 0}, {2 * time.Second, 300, 100}}},
		{"a time too short for a rate", 10 * time.Second, []step{{0, 100, 0}, {time.Second / 2, 300, 0}, {time.Second, 400, 300}}},
		{"frequent callers do not shorten it", 10 * time.Second,
			[]step{{0, 0, 0}, {4 * time.Second, 40, 10}, {8 * time.Second, 80, 10}, {10 * time.Second, 300, 30}, {10500 * time.Millisecond, 310, 29}, {12 * time.Second, 400, 50}}},
		{"only when somebody asks", 0, []step{{0, 0, 0}, {2 * time.Second, 20, 10}, {4 * time.Second, 60, 20}}},
		{"a counter that begins anew", 0, []step{{0, 100, 0}, {2 * time.Second, 50, 0}, {4 * time.Second, 70, 10}}},
		{"a clock that was set back", 0, []step{{time.Hour, 100, 0}, {0, 150, 0}, {2 * time.Second, 170, 10}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var m Meter
			start := time.Unix(1e9, 0)
			for _, s := range test.steps {
				got, ok := m.Observe(start.Add(s.at), s.count, test.keep)
				if ok != (s.want > 0) || got != s.want {
					t.Errorf("after %s the rate is %d, %v instead of %d", s.at, got, ok, s.want)
				}
			}
		})
	}
}

func TestUsage(t *testing.T) {
	usage := func(m cgroup.MemoryStats) *Usage { return &Usage{Counters: cgroup.Stats{Memory: m}} }
	for _, test := range []struct {
		name             string
		u                *Usage
		workingSet, left uint64
		swapLeft         uint64
		swapLimited      bool
	}{
		{"limits", usage(cgroup.MemoryStats{Usage: 100, InactiveFile: 30, Limit: 200, Swap: 5, SwapLimit: 20}), 70, 130, 15, true},
		{"none", usage(cgroup.MemoryStats{Usage: 100, Limit: cgroup.NoLimit, SwapLimit: cgroup.NoLimit, Swap: 5}), 100, 0, cgroup.NoLimit - 5, false},
		{"more files than usage, as counters are not of one moment", usage(cgroup.MemoryStats{Usage: 10, InactiveFile: 30, Limit: 200}), 0, 200, 0, true},
		{"above the limit", usage(cgroup.MemoryStats{Usage: 300, Limit: 200, Swap: 30, SwapLimit: 20}), 300, 0, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			swap, limited := test.u.SwapAvailable()
			if test.u.WorkingSet() != test.workingSet || test.u.Available() != test.left || swap != test.swapLeft || limited != test.swapLimited {
				t.Errorf("%d, %d, %d, %v", test.u.WorkingSet(), test.u.Available(), swap, limited)
			}
		})
	}
}

func TestSum(t *testing.T) {
	one := Usage{At: time.Unix(1, 0), Counters: cgroup.Stats{Known: cgroup.CPU | cgroup.Memory | cgroup.Tasks | cgroup.Pressure, CPU: cgroup.CPUStats{Usage: 5},
		Memory: cgroup.MemoryStats{Usage: 10, Limit: 100, Anon: 3, HasSwap: true, SwapLimit: cgroup.NoLimit}, Tasks: cgroup.TaskStats{Current: 2}}}
	two := one
	two.Counters.Known &^= cgroup.Tasks
	two.Counters.Memory.Limit = 7
	sum := Sum([]Usage{one, two})
	m := sum.Counters.Memory
	if sum.At != one.At || sum.Counters.Known != cgroup.CPU|cgroup.Memory || sum.Counters.CPU.Usage != 10 || m.Usage != 20 || m.Anon != 6 || m.Limit != 107 ||
		m.SwapLimit != cgroup.NoLimit || !m.HasSwap {
		t.Errorf("sum: %+v", sum)
	}
	two.Counters.Memory.Limit = cgroup.NoLimit
	if sum := Sum([]Usage{one, two}); sum.MemoryLimit() != 0 {
		t.Errorf("the sum of a limit and none is %d", sum.MemoryLimit())
	}
	if sum := Sum(nil); sum.HasCPU() || sum.HasMemory() {
		t.Errorf("of nothing: %+v", sum)
	}
}

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0
second: 7 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0
  eth0:434820256   12283    1    2    0     0          0         0   770776    7877    3    4    0     0       0          0
`

func TestParseNetDev(t *testing.T) {
	got, err := parseNetDev([]byte(netDev))
	want := []Interface{{Name: "second", Receive: Traffic{Bytes: 7, Packets: 1}, Transmit: Traffic{Bytes: 9, Packets: 1}},
		{Name: "eth0", Receive: Traffic{434820256, 12283, 1, 2}, Transmit: Traffic{770776, 7877, 3, 4}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if strange, err := parseNetDev([]byte("e\xff\xfe: 7 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0")); err != nil || len(strange) != 1 || strange[0].Name != "e\uFFFD" { // a name can be any bytes
		t.Errorf("%+v, %v", strange, err)
	}
	for i, n := range []Network{{Interfaces: want}, {Interfaces: want[:1]}, {}} {
		if main := []int{1, 0, -1}[i]; n.Main() != main {
			t.Errorf("the main one of %d is %d", len(n.Interfaces), n.Main())
		}
	}
	for _, bad := range []string{"eth0: 1 2 3", "eth0: x 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "eth0: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"} {
		if _, err := parseNetDev([]byte(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func FuzzNetDev(f *testing.F) {
	f.Add([]byte(netDev))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = parseNetDev(text) })
}

func TestReadNetwork(t *testing.T) {
	n, err := ReadNetwork(os.Getpid())
	if err != nil || n.At.IsZero() {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := ReadNetwork(1 << 30); err == nil {
		t.Error("a process that is none has a network")
	}
}

func TestCountProcesses(t *testing.T) {
	before := countProcesses([]int{os.Getpid()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	after := countProcesses([]int{os.Getpid(), 1 << 30}).withLimit(os.Getpid())
	if after.Count != 2 || after.Sockets != before.Sockets+1 || after.Descriptors < before.Descriptors+2 || after.MaxFiles == 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// du makes a tree and says what it holds, as du counts it.
func du(t *testing.T, script string) (dir string, bytes, inodes uint64) {
	t.Helper()
	dir = t.TempDir()
	cmd := exec.Command("sh", "-ec", script+"\ndu -s --block-size=1 . | cut -f1; du -s --inodes . | cut -f1")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(out), &bytes, &inodes); err != nil {
		t.Fatal(err)
	}
	return dir, bytes, inodes
}

func TestLayerVisit(t *testing.T) {
	for _, test := range []struct{ name, script string }{
		{"empty", ":"},
		{"files", "head -c 100000 /dev/zero >a; mkdir -p b/c; head -c 5000 /dev/zero >b/c/d; : >e"},
		{"hard links", "head -c 9000 /dev/zero >a; ln a b; mkdir c; ln a c/d"},
		{"sparse", "truncate -s 1G a"},
		{"links to elsewhere", "ln -s / a; ln -s .. b; mkfifo c"},
		{"many in one directory", "i=0; while [ $i -lt 600 ]; do : >f$i; i=$((i+1)); done"},
		{"deep", `i=0; while [ $i -lt 300 ]; do mkdir d; cd d; i=$((i+1)); done; : >f`},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, bytes, inodes := du(t, "(\n"+test.script+"\n)")
			var l Layer
			if _, ok := l.Usage(); ok {
				t.Error("a layer that was not visited has a usage")
			}
			l.Visit(t.Context(), dir)
			u, ok := l.Usage()
			if !ok || u.Bytes != bytes || u.Inodes != inodes || u.At.IsZero() {
				t.Errorf("%+v, %v instead of %d bytes, %d inodes", u, ok, bytes, inodes)
			}
		})
	}
}

// A layer that is being removed is not visited, and its usage stays.
func TestLayerRemove(t *testing.T) {
	dir, _, _ := du(t, "mkdir a b; : >a/c")
	var l Layer
	l.Visit(t.Context(), dir)
	before, _ := l.Usage()
	l.Remove()
	if err := os.WriteFile(filepath.Join(dir, "more"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Visit(t.Context(), dir)
	if after, ok := l.Usage(); !ok || after != before {
		t.Errorf("%+v became %+v", before, after)
	}
}

// Work is followed by rest; time in which nothing was done, as that without a processor, is not.
func TestRest(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	short, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	idle := visit{layer: &Layer{}, piece: beginPiece()}
	idle.piece.began = idle.piece.began.Add(-time.Hour)
	if !idle.rest(short) || idle.worked != 0 {
		t.Errorf("an hour of nothing: worked %s", idle.worked)
	}
	busy := visit{layer: &Layer{}, piece: beginPiece()}
	for busy.piece.work() < pieceOfWork {
	}
	began := time.Now()
	if !busy.rest(short) || busy.worked < pieceOfWork || time.Since(began) < idleShare*pieceOfWork {
		t.Errorf("worked %s, rested %s", busy.worked, time.Since(began))
	}
}

func TestWalk(t *testing.T) {
	dir, bytes, _ := du(t, "head -c 100000 /dev/zero >a")
	var first, second Layer
	targets := make(chan []Target, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Walk(ctx, 10*time.Millisecond, func() []Target {
			all := <-targets
			targets <- all
			return all
		})
	}()
	wait := func(l *Layer) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if u, ok := l.Usage(); ok {
				if u.Bytes != bytes {
					t.Errorf("%+v instead of %d bytes", u, bytes)
				}
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("the layer is not visited")
			}
		}
	}
	targets <- []Target{{&first, dir}}
	wait(&first)
	<-targets
	targets <- []Target{{&first, dir}, {&second, dir}}
	wait(&second)
	cancel()
	<-ended
}

func BenchmarkReadNetwork(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadNetwork(os.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCountProcesses(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		countProcesses([]int{os.Getpid()})
	}
}
