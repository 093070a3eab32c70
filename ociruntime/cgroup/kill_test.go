package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/kernel"
)

func TestKillTakesForkingProcesses(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(200))}})
		cmd := start(t, g, `trap "" TERM; for i in 1 2 3 4 5; do (while :; do /bin/true; done) & done; wait`)
		if empty, err := g.Empty(); empty || err != nil {
			t.Fatalf("Empty before = %v, %v", empty, err)
		}
		if err := g.Kill(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if empty, err := g.Empty(); !empty || err != nil {
			t.Fatalf("Empty after = %v, %v", empty, err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("first process ended with %v", err)
		}
	})
}

func TestWaitEmptyWaits(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, nil)
		cmd := start(t, g, "exec sleep 60")
		short, cancel := context.WithTimeout(ctx(t), 60*time.Millisecond)
		defer cancel()
		if err := g.WaitEmpty(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("WaitEmpty of a living group = %v", err)
		}
		woken := make(chan error, 1)
		go func() { woken <- g.WaitEmpty(ctx(t)) }()
		select {
		case err := <-woken:
			t.Fatalf("WaitEmpty returned %v", err)
		case <-time.After(30 * time.Millisecond): // longer than the polling phase: events are waited for
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := <-woken; err != nil {
			t.Fatal(err)
		}
		t.Logf("woken %v after the kill", time.Since(began))
	})
}

func TestSubIsKilledAlone(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		g := create(t, hs, nil)
		first := start(t, g, "exec sleep 60")
		sub, err := g.Sub("exec-1")
		if err != nil {
			t.Fatal(err)
		}
		second := start(t, sub, "sleep 60 & sleep 60 & wait")
		if err := sub.Kill(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := second.Wait(); err == nil {
			t.Error("the exec ended well")
		}
		if err := first.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("first process: %v", err)
		}
		if empty, err := g.Empty(); empty || err != nil {
			t.Errorf("container is empty: %v, %v", empty, err)
		}
		if err := sub.Delete(ctx(t)); err != nil {
			t.Error(err)
		}
		third, err := g.Sub("exec-2") // left to the container's Kill and Delete
		if err != nil {
			t.Fatal(err)
		}
		start(t, third, "exec sleep 60")
	})
}

// Somebody may have frozen a container: by hand, or a container that may write its groups.
func TestKillFrozen(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		for _, h := range hs.all {
			if !h.Unified && h != hs.byController["freezer"] {
				continue
			}
			for _, below := range []string{"", "/below"} {
				g := create(t, hs, nil)
				dir := g.path + below
				if err := os.MkdirAll(h.abs(dir), 0o755); err != nil {
					t.Fatal(err)
				}
				start(t, &Group{hs: hs, path: g.path}, "exec sleep 60")
				cmd := start(t, g, "exec sleep 60")
				if err := os.WriteFile(h.abs(dir, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0); err != nil {
					t.Fatal(err)
				}
				if err := h.dialect.freeze(h, dir, true); err != nil {
					t.Fatal(err)
				}
				if err := poll(ctx(t), func() (bool, error) { return h.dialect.frozen(h, dir) }); err != nil {
					t.Fatal(err)
				}
				if err := g.Kill(ctx(t)); err != nil {
					t.Errorf("frozen in %s: %v", h.abs(dir), err)
					_ = h.dialect.freeze(h, dir, false)
				}
			}
		}
	})
}

// TestKillWithoutCgroupKill is the way of hybrid and v2 hosts before Linux 5.14.
func TestKillWithoutCgroupKill(t *testing.T) {
	hs := host(t)
	if hs.unified == nil {
		t.Skip("no cgroup2")
	}
	g := create(t, hs, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(200))}})
	start(t, g, `for i in 1 2 3; do (while :; do /bin/true; done) & done; wait`)
	defer kernel.Refuse()()
	m, err := g.MonitorFiles()
	if err != nil {
		t.Fatal(err)
	}
	if m.Kill != nil || m.Events == nil || (m.Freezer != nil) != hs.Has("freezer") || m.Procs == nil {
		t.Errorf("files %+v", m)
	}
	p, err := g.Placement()
	if err != nil {
		t.Fatal(err)
	}
	if p.Dir != nil || len(p.Tasks) != len(hs.all) {
		t.Errorf("placement %+v", p)
	}
	if err := errors.Join(m.Close(), p.Close(), g.Kill(ctx(t))); err != nil {
		t.Fatal(err)
	}
	if empty, err := g.Empty(); !empty || err != nil {
		t.Errorf("Empty after = %v, %v", empty, err)
	}
	if got := value(t, g, "", "cgroup.freeze"); got != "0" {
		t.Errorf("left frozen: %s", got)
	}
}

// A group that is out of processor time dies at once all the same; what it still has to do is not for itself.
func TestKillThrottled(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		h := hs.byController["cpu"]
		if h == nil {
			t.Skip("no controller for processor time")
		}
		g := create(t, hs, nil)
		start(t, g, "for i in {1..8}; do (while :; do :; done) & done; wait")
		if err := poll(ctx(t), func() (bool, error) {
			pids, err := g.Processes()
			return len(pids) > 8, err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(1000)), Period: ptr(uint64(1000000))}}); err != nil {
			t.Fatal(err)
		}
		if err := poll(ctx(t), func() (bool, error) {
			text, err := h.read(g.path, "cpu.stat")
			if err != nil {
				return false, err
			}
			n, err := parseKeyed(text, "nr_throttled")
			return n > 0, err
		}); err != nil {
			t.Fatal(err)
		}
		if err := g.Kill(ctx(t)); err != nil {
			t.Error(err)
		}
	})
}
