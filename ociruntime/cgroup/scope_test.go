package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestExpandSlice(t *testing.T) {
	for _, c := range []struct{ parent, unit, path string }{
		{"", "system.slice", "/system.slice"},
		{"-.slice", "-.slice", "/"},
		{"test.slice", "test.slice", "/test.slice"},
		{"/test.slice", "test.slice", "/test.slice"},
		{"kubepods-burstable-pod1_2.slice", "kubepods-burstable-pod1_2.slice",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"},
		{"/a.slice/a-b.slice", "a-b.slice", "/a.slice/a-b.slice"},
		{"/a-b.slice", "a-b.slice", "/a.slice/a-b.slice"},
	} {
		unit, path, err := expandSlice(c.parent)
		if unit != c.unit || path != c.path || err != nil {
			t.Errorf("expandSlice(%q) = %q, %q, %v", c.parent, unit, path, err)
		}
	}
	for _, bad := range []string{"/kubepods/pod1", "a", ".slice", "-a.slice", "a-.slice", "a--b.slice", "a b.slice", "x/a.slice",
		"/b.slice/a-b.slice", "../a.slice", "a\x00.slice", "--.slice", "/"} {
		if unit, path, err := expandSlice(bad); err == nil {
			t.Errorf("expandSlice(%q) = %q, %q", bad, unit, path)
		}
	}
}

// fakeBus is systemd: it keeps units and says how jobs end.
type fakeBus struct {
	units   map[string][]systemd.Property
	result  string // of start jobs; "": never
	refuses error
	calls   []string
}

func (b *fakeBus) StartTransientUnitContext(_ context.Context, name, mode string, properties []systemd.Property, ch chan<- string) (int, error) {
	b.calls = append(b.calls, "start "+name+" "+mode)
	if b.refuses != nil {
		return 0, b.refuses
	}
	if _, ok := b.units[name]; ok {
		return 0, dbus.Error{Name: "org.freedesktop.systemd1.UnitExists"}
	}
	b.units[name] = properties
	if b.result != "" {
		ch <- b.result
	}
	return 1, nil
}

func (b *fakeBus) StartUnitContext(_ context.Context, name, _ string, ch chan<- string) (int, error) {
	b.calls = append(b.calls, "await "+name)
	if _, ok := b.units[name]; !ok {
		return 0, dbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit"}
	}
	ch <- "done"
	return 1, nil
}

func (b *fakeBus) KillUnitWithTarget(_ context.Context, name string, _ systemd.Who, signal int32) error {
	b.calls = append(b.calls, fmt.Sprint("kill ", name, " ", signal))
	return nil
}

func (b *fakeBus) StopUnitContext(_ context.Context, name, _ string, ch chan<- string) (int, error) {
	b.calls = append(b.calls, "stop "+name)
	if _, ok := b.units[name]; !ok {
		return 0, dbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit"}
	}
	delete(b.units, name)
	ch <- "done"
	return 1, nil
}

func TestScopeStartsAndStops(t *testing.T) {
	bus := &fakeBus{units: map[string][]systemd.Property{"cri-abc.scope": nil}, result: "done"} // one is left from before
	s, err := StartScope(ctx(t), bus, "abc", "kubepods-pod1.slice", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if s.Path() != "/kubepods.slice/kubepods-pod1.slice/cri-abc.scope" || s.unit != "cri-abc.scope" {
		t.Errorf("scope %s at %s", s.unit, s.Path())
	}
	var got []string
	for _, p := range bus.units["cri-abc.scope"] {
		got = append(got, fmt.Sprintf("%s=%v", p.Name, p.Value.Value()))
	}
	want := []string{"Description=pod sandbox abc", "Slice=kubepods-pod1.slice", fmt.Sprintf("PIDs=[%d]", os.Getpid()), "Delegate=true", "DefaultDependencies=false",
		"CollectMode=inactive-or-failed", "CPUAccounting=true", "MemoryAccounting=true", "TasksAccounting=true", "IOAccounting=true",
		"TasksMax=18446744073709551615"}
	if !slices.Equal(got, want) {
		t.Errorf("properties\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	again, err := OpenScope("abc", "/kubepods-pod1.slice")
	if err != nil || *again != *s {
		t.Errorf("OpenScope = %v, %v", again, err)
	}
	for range 2 {
		if err := s.Stop(ctx(t), bus); err != nil {
			t.Error(err)
		}
	}
	calls := "start cri-abc.scope replace,await cri-abc.scope,kill cri-abc.scope 9,stop cri-abc.scope,start cri-abc.scope replace," +
		"stop cri-abc.scope,stop cri-abc.scope"
	if got := strings.Join(bus.calls, ","); got != calls {
		t.Errorf("calls %s", got)
	}
}

func TestScopeFailuresLeaveNothing(t *testing.T) {
	refusal := errors.New("no bus")
	gone, cancel := context.WithCancel(ctx(t))
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		bus    fakeBus
		id     string
		parent string
		pid    int
		want   string
	}{
		{"job fails", ctx(t), fakeBus{result: "failed"}, "abc", "a.slice", 1, `start scope cri-abc.scope: systemd's job ended as "failed"`},
		{"refused", ctx(t), fakeBus{refuses: refusal}, "abc", "a.slice", 1, "start scope cri-abc.scope: no bus"},
		{"caller gone", gone, fakeBus{}, "abc", "a.slice", 1, "start scope cri-abc.scope: wait for systemd's job: context canceled"},
		{"no slice", ctx(t), fakeBus{}, "abc", "/kubepods", 1, `cgroup parent "/kubepods" is no systemd slice`},
		{"no id", ctx(t), fakeBus{}, "a/b", "a.slice", 1, `"a/b" cannot be part of a unit's name`},
		{"no process", ctx(t), fakeBus{}, "abc", "a.slice", 0, "start scope cri-abc.scope: 0 is no process"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.bus.units = map[string][]systemd.Property{}
			s, err := StartScope(c.ctx, &c.bus, c.id, c.parent, c.pid)
			if s != nil || err == nil || err.Error() != c.want {
				t.Errorf("StartScope = %v, %v; want %s", s, err, c.want)
			}
			if len(c.bus.units) != 0 {
				t.Errorf("units are left: %v", c.bus.units)
			}
		})
	}
}

// TestLeafBesideProcesses is what happens in a new scope: its own processes forbid distributing controllers until they
// have moved to a leaf.
func TestLeafBesideProcesses(t *testing.T) {
	hs := host(t)
	if hs.unified == nil || len(hs.unified.Controllers) == 0 {
		t.Skip("no cgroup2 with controllers")
	}
	all, err := New([]Hierarchy{hs.unified.Hierarchy})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = all.Close() })
	parent := testParent(t, all)
	scope, err := all.Create(parent, "scope", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(t, scope, "exec sleep 60")
	leaf, err := all.Create(scope.Path(), "pause", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = all.Create(scope.Path(), "container", &specs.LinuxResources{}, nil)
	if err == nil || !strings.Contains(err.Error(), "enable controllers ") {
		t.Errorf("Create with limits = %v", err)
	}
	p, err := leaf.PlacementByWrite()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := fmt.Fprint(p.Tasks[0], cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	container, err := all.Create(scope.Path(), "container", &specs.LinuxResources{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(container.Delete(ctx(t)), leaf.Kill(ctx(t)), scope.Delete(ctx(t), scope.created...))
	if err != nil {
		t.Error(err)
	}
}
