package critest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/leak"
)

// execsEnv is how many commands TestExecMany runs; the million takes a while.
const execsEnv = "CRITEST_EXECS"

// footprint is what a process holds.
type footprint struct {
	descriptors []string
	memory      int // bytes of its own, not shared with files
}

func footprintOf(t *testing.T, pid int) (f footprint) {
	t.Helper()
	var err error
	if f.descriptors, err = leak.DescriptorsOf(pid); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "RssAnon:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	f.memory = kib << 10
	return f
}

// goroutines is how many the daemon has.
func (d *daemon) goroutines(t *testing.T) int {
	t.Helper()
	s, err := d.runtime.Status(bounded(t), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(s.GetInfo()["goroutines"])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// pausePid is the process of a pod that has one container, whose parent it is.
func (c *container) pausePid(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid(t)))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	pid, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// runMany runs commands of all sorts, each of which must end as it should.
func runMany(t *testing.T, c *container, many int) {
	t.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 4 {
		all.Go(func() {
			for n := next.Add(1); n <= int64(many) && ctx.Err() == nil; n = next.Add(1) {
				request, code, out := &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}, Timeout: execBound}, int32(0), ""
				switch {
				case n%5000 == 1:
					request.Cmd, request.Timeout = sh("sleep 7784 & sleep 7784"), 1
				case n%100 == 2:
					request.Cmd, code, out = sh("echo out; exit 3"), 3, "out\n"
				}
				r, err := c.p.d.runtime.ExecSync(ctx, request)
				if (err != nil) != (request.Timeout == 1) || r.GetExitCode() != code || string(r.GetStdout()) != out {
					t.Errorf("command %d: %v, %v", n, r, err)
					cancel()
				}
			}
		})
	}
	all.Wait()
}

// Many commands leave goroutines, descriptors and memory as they were, in criserver and in pause, and no cgroup.
func TestExecMany(t *testing.T) {
	d := use(t)
	many, err := strconv.Atoi(cmp.Or(os.Getenv(execsEnv), "20000"))
	if err != nil || many < 2000 {
		t.Fatalf("%s is not a number of at least 2000", execsEnv)
	}
	c := runPod(t, d).start(t, idle)
	runMany(t, c, 2000) // pools and heaps have their size then
	leaves := func() int {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + suite.cgroups + "/*/exec-*")
		return len(dirs)
	}
	pause := c.pausePid(t)
	routines, ours, its, groups := d.goroutines(t), footprintOf(t, d.cmd.Process.Pid), footprintOf(t, pause), leaves()
	began := time.Now()
	runMany(t, c, many)
	took := time.Since(began)
	if !within(settleBound, func() bool { return d.goroutines(t) <= routines+2 }) { // of the connection, and what collects garbage
		t.Errorf("%d goroutines before, %d after", routines, d.goroutines(t))
	}
	for _, p := range []struct {
		name   string
		pid    int
		before footprint
		room   int // what collections of garbage and pages that were touched once may come to
	}{{"criserver", d.cmd.Process.Pid, ours, 12 << 20}, {"pause", pause, its, 16 << 10}} {
		var after footprint
		if !within(settleBound, func() bool {
			after = footprintOf(t, p.pid)
			return len(leak.Surplus(after.descriptors, p.before.descriptors)) == 0
		}) {
			t.Errorf("%s has more descriptors: %v", p.name, leak.Surplus(after.descriptors, p.before.descriptors))
		}
		if after.memory > p.before.memory+p.room {
			t.Errorf("%s had %d bytes of memory, has %d", p.name, p.before.memory, after.memory)
		}
		t.Logf("%s: %d descriptors and %d KiB before, %d and %d KiB after", p.name, len(p.before.descriptors), p.before.memory>>10, len(after.descriptors), after.memory>>10)
	}
	if n := leaves(); n > groups {
		t.Errorf("%d cgroups of commands before, %d after", groups, n)
	}
	t.Logf("%d commands in %v, %.2f ms each with 4 at a time", many, took, took.Seconds()*1000/float64(many))
}
