package stats

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

func TestIdle(t *testing.T) {
	type reading struct {
		at          time.Duration
		trace       trace
		known, keep bool // what look says; what it lets keep is remembered
	}
	same, ran, joined := trace{100, 2}, trace{101, 2}, trace{100, 3}
	for _, test := range []struct {
		name     string
		readings []reading
	}{
		{"idle", []reading{{0, same, false, false}, {settling / 2, same, false, false}, {settling, same, false, true}, {settling * 2, same, true, true}, {time.Hour, same, true, true}}},
		{"it runs", []reading{{0, same, false, false}, {settling, same, false, true}, {settling * 2, ran, false, false}, {settling * 3, ran, false, true}, {settling * 4, ran, true, true}}},
		{"a task joins", []reading{{0, same, false, false}, {settling, same, false, true}, {settling * 2, joined, false, false}, {settling * 3, same, false, false}}},
		{"a clock that was set back", []reading{{time.Hour, same, false, false}, {0, same, false, false}, {time.Hour + settling, same, false, true}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var idle Idle
			start := time.Unix(1e9, 0)
			for i, r := range test.readings {
				l := idle.look(start.Add(r.at), &r.trace)
				if (l.last != nil) != r.known || l.keep != r.keep {
					t.Errorf("reading %d: known %v, keep %v, instead of %v and %v", i, l.last != nil, l.keep, r.known, r.keep)
				}
				idle.remember(l, whole{})
			}
		})
	}
	t.Run("it runs while it is read", func(t *testing.T) {
		var idle Idle
		start := time.Unix(1e9, 0)
		idle.look(start, &same)
		l := idle.look(start.Add(settling), &same)
		idle.look(start.Add(settling), &ran) // as another request sees it
		idle.remember(l, whole{})
		if idle.look(start.Add(settling*2), &same).last != nil || idle.last != nil {
			t.Error("what was read before is remembered")
		}
	})
}

// What is remembered of an idle group is what is so, and is forgotten as soon as a task has run.
func TestReadMetricsOfIdle(t *testing.T) {
	g := createGroup(t)
	wake, said, pid := startIn(t, g, `while read -r _; do exec {fd}</dev/null; echo opened; done`)
	c := NewCollector(0)
	var m Meter
	var idle Idle
	remembered := func() bool {
		idle.mu.Lock()
		defer idle.mu.Unlock()
		return idle.last != nil
	}
	read := func() (*Usage, Processes) {
		t.Helper()
		u, p, err := c.ReadMetrics(g, pid, &m, &idle)
		if err != nil {
			t.Fatal(err)
		}
		if p.MaxFiles == 0 || u.Counters.Known&(cgroup.CPU|cgroup.Memory|cgroup.Details) != cgroup.CPU|cgroup.Memory|cgroup.Details {
			t.Fatalf("known are %b, processes %+v", u.Counters.Known, *p)
		}
		return u, *p
	}
	first, _ := read()
	if !first.HasTasks() {
		t.Skip("tasks are not counted here")
	}
	for round := range 2 {
		whole, before := read()
		for deadline := time.Now().Add(20 * time.Second); !remembered(); whole, before = read() {
			if time.Now().After(deadline) {
				t.Fatal("the group does not get idle")
			}
		}
		again, same := read()
		a, b := &whole.Counters, &again.Counters
		if same != before || a.CPU != b.CPU || a.Known != b.Known || a.Memory.OOMKill != b.Memory.OOMKill || !slices.Equal(a.Huge, b.Huge) {
			t.Errorf("%+v %+v, and then %+v %+v", a, before, b, same)
		}
		if before.Count != 1 || a.Tasks.Current != 1 {
			t.Errorf("%d processes, %d tasks", before.Count, a.Tasks.Current)
		}
		fmt.Fprintln(wake)
		if !said.Scan() || said.Text() != "opened" {
			t.Fatalf("it says %q", said.Text())
		}
		if _, after := read(); after.Descriptors != before.Descriptors+1 {
			t.Errorf("round %d: %d descriptors and one more are %d", round, before.Descriptors, after.Descriptors)
		}
	}
}

// Of an idle pod and what is in it, only what others do not change is not read again.
func TestReadPodOfIdle(t *testing.T) {
	g := createGroup(t)
	wake, said, _ := startIn(t, g, `while read -r _; do for ((i = 0; i < 10000; i++)); do :; done; echo worked; done`)
	hs, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	defer hs.Close()
	around, err := hs.Open("", path.Dir(g.Path())[1:])
	if err != nil {
		t.Fatal(err)
	}
	c := NewCollector(0)
	var podMeter, meter Meter
	var podIdle, idle Idle
	read := func() (pod, inside *Usage) {
		t.Helper()
		pod, err := c.ReadPod(around, Pod, &podMeter, &podIdle)
		if err != nil {
			t.Fatal(err)
		}
		if inside, err = c.ReadInside(pod, g, Container, &meter, &idle); err != nil {
			t.Fatal(err)
		}
		return pod, inside
	}
	known := func(i *Idle) bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.last != nil && i.last.Calm()
	}
	pod, inside := read()
	switch {
	case !pod.HasTasks():
		t.Skip("tasks are not counted here")
	case pod.Counters.Known&cgroup.Pressure == 0:
		t.Skip("pressure is not counted here")
	}
	for round := range 2 {
		for deadline := time.Now().Add(20 * time.Second); !known(&podIdle) || !known(&idle); _, inside = read() {
			if time.Now().After(deadline) {
				t.Skip("somebody waits for memory or I/O") // averages of 5 minutes go back that slowly
			}
			time.Sleep(10 * time.Millisecond)
		}
		const remembered = 12345
		for _, i := range []*Idle{&podIdle, &idle} {
			i.last.Pressure.IO.Some.Total = remembered
		}
		limit := int64(round+1) << 30
		if _, err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
			t.Fatal(err)
		}
		podAgain, again := read()
		if io := podAgain.Stalls().IO; io == nil || io.Some.Total != remembered {
			t.Errorf("I/O pressure of the pod is read again: %+v", io)
		}
		if io := again.Stalls().IO; io == nil || io.Some.Total != remembered {
			t.Errorf("I/O pressure is read again: %+v", io)
		}
		if a, b := &inside.Counters, &again.Counters; a.Known != b.Known || a.CPU != b.CPU || again.Stalls().CPU == nil || again.At != podAgain.At {
			t.Errorf("%+v, and then %+v", a, b)
		}
		if again.MemoryLimit() != uint64(limit) {
			t.Errorf("limit %d, set to %d", again.MemoryLimit(), limit)
		}
		fmt.Fprintln(wake)
		if !said.Scan() || said.Text() != "worked" {
			t.Fatalf("it says %q", said.Text())
		}
		podAfter, after := read()
		for _, u := range []*Usage{podAfter, after} {
			if u.Counters.CPU.Usage <= again.Counters.CPU.Usage || u.Counters.Pressure.IO.Some.Total == remembered {
				t.Errorf("round %d: after it has run there is %+v", round, u.Counters)
			}
		}
	}
}

// createGroup makes a group, which goes with the test.
func createGroup(t *testing.T) *cgroup.Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	hs, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	var made []string
	g, err := hs.Create(fmt.Sprint("/critest-stats-", os.Getpid()), "leaf", nil, func(dirs []string) error {
		made = dirs
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Delete(ctx, made...), hs.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// startIn runs a script in g, which has its input and output.
func startIn(t *testing.T, g *cgroup.Group, script string) (in *os.File, out *bufio.Scanner, pid int) {
	t.Helper()
	p, err := g.Placement()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var enter strings.Builder
	for i := range p.Tasks {
		fmt.Fprintf(&enter, "echo 0 >&%d || exit 9; exec %d>&-; ", i+3, i+3)
	}
	theirs, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	cmd := exec.Command("/bin/bash", "-c", enter.String()+script)
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = theirs, os.Stderr, p.Tasks
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if p.Dir != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(p.Dir.Fd())
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return in, bufio.NewScanner(said), cmd.Process.Pid
}
