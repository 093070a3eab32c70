package cgroup

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// freezeAt freezes a directory and waits until everything in it is frozen.
func freezeAt(t *testing.T, h *hierarchy, dir string) {
	t.Helper()
	if err := h.dialect.freeze(h, dir, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.dialect.freeze(h, dir, false) }) // it is gone if all is well
	if err := poll(ctx(t), func() (bool, error) { return h.dialect.frozen(h, dir) }); err != nil {
		t.Fatal(err)
	}
}

// With its pod a container is frozen too; what belongs to other pods stays as it is.
func TestKillInFrozenPod(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		for _, h := range hs.freezers() {
			parent := testParent(t, hs)
			g, err := hs.Create(parent+"/pod", "leaf", nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = g.Delete(context.Background(), g.created...) })
			start(t, g, "exec sleep 60")
			if frozen, err := g.Frozen(); frozen || err != nil {
				t.Errorf("Frozen before = %v, %v", frozen, err)
			}
			freezeAt(t, h, above(g.path))
			if frozen, err := g.Frozen(); !frozen || err != nil {
				t.Errorf("Frozen = %v, %v", frozen, err)
			}
			if err := g.Kill(ctx(t)); err != nil {
				t.Error(err)
			}
			if self, err := h.dialect.frozenItself(h, above(g.path)); self || err != nil {
				t.Errorf("the pod is still frozen: %v, %v", self, err)
			}
		}
	})
}

// What is frozen above the pod is not this pod's business: v1 cannot kill then, and says why. A container that takes long to die loses
// its quota, but not for the sake of an exec.
func TestKillFrozenAbovePod(t *testing.T) {
	hs := pureV1(t)
	only(t, hs, "freezer", "cpu")
	h := hs.byController["freezer"]
	parent := testParent(t, hs)
	g, err := hs.Create(parent+"/pod", "leaf", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(50000))}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Delete(context.Background(), g.created...) })
	sub, err := g.Sub("exec")
	if err != nil {
		t.Fatal(err)
	}
	start(t, sub, "exec sleep 60")
	freezeAt(t, h, strings.TrimPrefix(parent, "/"))
	for _, row := range []struct {
		g     *Group
		quota string // after it was in vain
	}{{sub, "50000"}, {g, "-1"}} {
		short, cancel := context.WithTimeout(ctx(t), time.Second)
		defer cancel()
		if err := row.g.Kill(short); err == nil || !strings.Contains(err.Error(), "it is frozen with a cgroup above its pod") {
			t.Errorf("Kill = %v", err)
		}
		if got := value(t, g, "cpu", "cpu.cfs_quota_us"); got != row.quota {
			t.Errorf("quota %s instead of %s", got, row.quota)
		}
	}
	if err := h.dialect.freeze(h, strings.TrimPrefix(parent, "/"), false); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(ctx(t)); err != nil {
		t.Error(err)
	}
}

func TestAroundScope(t *testing.T) {
	hs := host(t)
	for parent, want := range map[string]string{
		"/kubepods/pod1":                         "[kubepods/pod1]",
		"/kubepods.slice/pod1.slice/cri-1.scope": "[kubepods.slice/pod1.slice kubepods.slice/pod1.slice/cri-1.scope]",
		"":                                       "[]",
	} {
		g, err := hs.Open(parent, "leaf")
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(g.around()); got != want {
			t.Errorf("around a leaf in %s: %s instead of %s", parent, got, want)
		}
	}
}

func TestShortages(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		if !hs.Has("pids") || !hs.Has("memory") {
			t.Skip("no controllers for processes and memory")
		}
		g := create(t, hs, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(3))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}})
		if got := g.CrowdedBy(); got != "" {
			t.Errorf("an empty group is crowded: %s", got)
		}
		start(t, g, "sleep 60 & exec sleep 60")
		if err := poll(ctx(t), func() (bool, error) { return g.CrowdedBy() != "", nil }); err != nil {
			t.Fatal(err)
		}
		if got, want := g.CrowdedBy(), fmt.Sprintf("the limit of processes of cgroup %s is reached (2 of 3)", g.Path()); !strings.HasPrefix(got, want) {
			t.Errorf("%q instead of %q", got, want)
		}
		if got, want := g.StarvedBy(), fmt.Sprintf("the memory limit of cgroup %s, 65536 KiB, is too small", g.Path()); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	})
}
