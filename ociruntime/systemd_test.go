package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// newFixtureSystemd is newFixture with a slice of systemd's, nested as the kubelet's are, for the pods.
func newFixtureSystemd(t testing.TB) *fixture {
	t.Helper()
	if cgroup.HostDriver() != cgroup.Systemd {
		t.Skip("systemd is not the init system")
	}
	f := newFixture(t)
	bus, err := cgroup.ConnectSystemd(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	f.runtime.config.Systemd = bus
	top := "critest" + randomID()[:8]
	f.parent = top + "-burstable-pod4f5e_1.slice"
	t.Cleanup(func() {
		systemctl(t, "stop", top+".slice")
		if left, _ := filepath.Glob("/run/systemd/transient/cri-*"); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		if f.runtime.config.Cgroups.Exists("/" + top + ".slice") { // in v1 systemd does not know all hierarchies
			t.Errorf("left: cgroup /%s.slice", top)
		}
	})
	return f
}

func systemctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Errorf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// checkNoScope looks for what a pod may leave.
func checkNoScope(t *testing.T, f *fixture, id string) {
	t.Helper()
	if units := systemctl(t, "list-units", "--all", "--plain", "--no-legend", "cri-"+id+".scope"); units != "" {
		t.Errorf("left: %s", units)
	}
	scope, err := cgroup.OpenScope(id, f.parent)
	if err != nil {
		t.Fatal(err)
	}
	if f.runtime.config.Cgroups.Exists(scope.Path()) {
		t.Errorf("left: cgroup %s", scope.Path())
	}
	if out, _ := exec.Command("pgrep", "-f", "^pause-"+id).Output(); len(out) != 0 {
		t.Errorf("left: pause %s", out)
	}
}

func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, dir, v1 := strings.Cut(string(text), ":name=systemd:")
	if !v1 {
		_, dir, _ = strings.Cut(string(text), "0::")
	}
	dir, _, _ = strings.Cut(dir, "\n")
	return dir
}

// systemdTree is where systemd has the hierarchy of its units.
func systemdTree() string {
	const v1 = "/sys/fs/cgroup/systemd"
	if _, err := os.Stat(v1); err == nil {
		return v1
	}
	return "/sys/fs/cgroup"
}

func TestSystemdScope(t *testing.T) {
	f := newFixtureSystemd(t)
	p := f.pod(t, nil)
	c, _ := f.started(t, p, "sleep 1000", nil)
	unit, top := "cri-"+p.config.ID+".scope", strings.TrimSuffix(f.parent, "-burstable-pod4f5e_1.slice")
	place := fmt.Sprintf("/%s.slice/%s-burstable.slice/%s/%s", top, top, f.parent, unit)
	for property, want := range map[string]string{
		"ActiveState": "active", "Slice": f.parent, "ControlGroup": place, "Delegate": "yes", "DefaultDependencies": "no", "TasksMax": "infinity",
		"CollectMode": "inactive-or-failed", "Description": "pod sandbox " + p.config.ID, "CPUAccounting": "yes", "MemoryAccounting": "yes", "IOAccounting": "yes",
	} {
		if got := strings.TrimSpace(systemctl(t, "show", unit, "--value", "-p", property)); got != want {
			t.Errorf("%s of %s is %q, want %q", property, unit, got, want)
		}
	}
	if policy := strings.TrimSpace(systemctl(t, "show", unit, "--value", "-p", "OOMPolicy")); policy != "" && policy != "continue" { // of systemd 253
		t.Errorf("OOMPolicy is %s", policy)
	}
	for pid, want := range map[int]string{p.Pid(): place + "/" + p.config.ID, c.Pid(): place + "/" + c.ID()} {
		if got := cgroupOf(t, pid); got != want {
			t.Errorf("process %d is in %s, want %s", pid, got, want)
		}
	}
}

// However a pod ends, its scope ends with it.
func TestSystemdLeavesNoScope(t *testing.T) {
	f := newFixtureSystemd(t)
	adopt := func(t *testing.T, c PodConfig) error {
		p, err := f.runtime.AdoptPod(testContext(t), c)
		if err != nil {
			return err
		}
		return p.Stop(testContext(t))
	}
	clean := func(t *testing.T, c PodConfig) error {
		if p, err := f.runtime.AdoptPod(testContext(t), c); !errors.Is(err, ErrPodGone) {
			return fmt.Errorf("AdoptPod = %v, %w", p, err)
		}
		return f.runtime.CleanPod(testContext(t), c, nil)
	}
	type life struct {
		config PodConfig
		p      *Pod
	}
	start := func(t *testing.T, l *life) (err error) {
		l.p, err = f.runtime.StartPod(testContext(t), l.config)
		return err
	}
	spawn := func(t *testing.T, l *life) error {
		l.p = f.runtime.newPod(l.config)
		n, err := l.p.spawn(nil)
		if err != nil {
			return err
		}
		return l.p.greet(testContext(t), n)
	}
	enter := func(t *testing.T, l *life) error { return l.p.enterScope(testContext(t)) }
	kill := func(_ *testing.T, l *life) error {
		err := unix.PidfdSendSignal(int(l.p.conn.PidFD().Fd()), unix.SIGKILL, nil, 0)
		<-l.p.exited
		return err
	}
	stranger := func(t *testing.T, l *life) error { return stubborn(t, l.p.scope.Path()+"/stranger") }
	beside := func(t *testing.T, l *life) error { // another pod, or the slice would go, and what is in it
		p, err := f.runtime.StartPod(testContext(t), PodConfig{ID: randomID(), Dir: t.TempDir(), HostNetwork: true, CgroupParent: l.config.CgroupParent})
		if err == nil {
			p.stopAfter(t)
		}
		return err
	}
	leave := func(t *testing.T, l *life) error {
		bus := f.runtime.config.Systemd
		t.Cleanup(func() { f.runtime.config.Systemd = bus })
		left := leavingBus{Bus: bus}
		for _, h := range f.runtime.config.Cgroups.List() {
			left.dirs = append(left.dirs, h.MountPoint+l.p.scope.Path())
		}
		f.runtime.config.Systemd = left
		return nil
	}
	stop := func(t *testing.T, l *life) error { return l.p.Stop(testContext(t)) }
	type steps []func(*testing.T, *life) error
	for _, tt := range []struct {
		name   string
		life   steps
		after  func(*testing.T, PodConfig) error
		config PodConfig
		want   string // error of life
	}{
		{name: "stopped", life: steps{start, stop, stop}},
		{name: "adopted", life: steps{start}, after: adopt},
		{name: "pause killed", life: steps{start, kill}, after: clean},
		{name: "start fails", life: steps{start}, config: PodConfig{Sysctls: map[string]string{"kernel.nonesuch": "1"}}, want: "nonesuch"},
		{name: "no slice", life: steps{start}, config: PodConfig{CgroupParent: "/kubepods/pod1"}, want: "is no systemd slice"},
		{name: "killed before the scope is made", life: steps{spawn}, after: adopt},
		{name: "killed before the scope is made, pause too", life: steps{spawn, kill}, after: clean},
		{name: "killed when the scope is made", life: steps{spawn, enter}, after: adopt},
		{name: "killed when the scope is made, pause too", life: steps{spawn, enter, kill}, after: clean},
		{name: "systemd cannot remove it", life: steps{beside, start, leave, stop}},
		{name: "stranger in the scope", life: steps{start, stranger, stop}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.HasPrefix(tt.name, "stranger") && f.runtime.config.Cgroups.Mode() != cgroup.V2 {
				t.Skip("with v1 a process can be in systemd's hierarchy alone, which is systemd's to kill")
			}
			config := tt.config
			config.ID, config.Dir, config.HostNetwork = randomID(), t.TempDir(), true
			if config.CgroupParent == "" {
				config.CgroupParent = f.parent
			}
			var err error
			l := &life{config: config}
			for _, step := range tt.life {
				if err = step(t, l); err != nil {
					break
				}
			}
			if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("it lives: %v, want %q", err, tt.want)
			}
			if tt.after != nil {
				if err := tt.after(t, config); err != nil {
					t.Errorf("after it: %v", err)
				}
			}
			checkNoScope(t, f, config.ID)
		})
	}
}

// leavingBus is a systemd whose scopes leave directories.
type leavingBus struct {
	cgroup.Bus
	dirs []string
}

func (b leavingBus) StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error) {
	result := make(chan string, 1)
	id, err := b.Bus.StopUnitContext(ctx, name, mode, result)
	told := "" // nothing of a scope that has ended by itself
	if err == nil {
		told = <-result
	}
	for _, dir := range b.dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return 0, err
		}
	}
	if err == nil {
		ch <- told
	}
	return id, err
}

// stubborn starts a process that ignores SIGTERM in a new group.
func stubborn(t *testing.T, group string) error {
	dir := systemdTree() + group
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("sh", "-c", "trap '' TERM; echo 0 > "+dir+"/cgroup.procs && exec sleep 1000")
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	for cgroupOf(t, cmd.Process.Pid) != group {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// A scope of the same name, which an earlier attempt left with its pause, is replaced.
func TestSystemdReplacesScope(t *testing.T) {
	f := newFixtureSystemd(t)
	first, config := f.adoptable(t)
	config.Dir = t.TempDir()
	t.Cleanup(func() { // in v1 the first one made what is above the scope in hierarchies that systemd does not know
		if err := first.group.Delete(testContext(t), first.parents...); err != nil {
			t.Error(err)
		}
	})
	second, err := f.runtime.StartPod(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	second.stopAfter(t)
	select {
	case <-first.Exited():
	default:
		t.Error("the first pause lives")
	}
	if got, want := cgroupOf(t, second.Pid()), second.scope.Path()+"/"+config.ID; got != want {
		t.Errorf("the second pause is in %s, want %s", got, want)
	}
}

// What an administrator does to systemd and its bus is not seen by pods that start, run or stop meanwhile.
func TestSystemdIsDisturbed(t *testing.T) {
	for _, command := range [][]string{{"restart", "dbus"}, {"daemon-reload"}, {"daemon-reexec"}} {
		t.Run(strings.Join(command, " "), func(t *testing.T) {
			f := newFixtureSystemd(t)
			running := f.pod(t, nil)
			spec := DefaultSpec("sleep", "1000")
			limit, quota := int64(32<<20), int64(50000)
			spec.Linux.Resources.Memory, spec.Linux.Resources.CPU = &specs.LinuxMemory{Limit: &limit}, &specs.LinuxCPU{Quota: &quota}
			c, _ := f.create(t, running, spec, nil)
			if err := c.Start(testContext(t)); err != nil {
				t.Fatal(err)
			}
			before := controllers(t, running, c)
			stop := make(chan struct{})
			var lives sync.WaitGroup
			var ids [8][]string
			for i := range ids {
				lives.Go(func() {
					for !closed(stop) {
						ids[i] = append(ids[i], f.live(t))
					}
				})
			}
			for range 3 {
				systemctl(t, "reset-failed", "dbus") // it may be started so often
				systemctl(t, command...)
			}
			close(stop)
			lives.Wait()
			for _, id := range slices.Concat(ids[:]...) {
				checkNoScope(t, f, id)
			}
			if after := controllers(t, running, c); !slices.Equal(before, after) {
				t.Errorf("controllers were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			file := "memory.max"
			if f.runtime.config.Cgroups.Mode() != cgroup.V2 {
				file = "memory.limit_in_bytes"
			}
			if text, err := os.ReadFile(filepath.Join(c.group.Paths()["memory"], file)); err != nil || string(text) != "33554432\n" {
				t.Errorf("%s is %s, %v", file, text, err)
			}
			if _, exited := c.Exit(); exited {
				t.Error("the container has ended")
			}
		})
	}
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// live is the whole life of a pod, whose id it returns.
func (f *fixture) live(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	config := PodConfig{ID: randomID(), Dir: t.TempDir(), HostNetwork: true, CgroupParent: f.parent}
	p, err := f.runtime.StartPod(ctx, config)
	if err == nil {
		err = p.Stop(ctx)
	}
	if err != nil {
		t.Errorf("pod %s: %v", config.ID, err)
	}
	return config.ID
}

// controllers are what a pod's scope and those above it distribute, which is nothing in v1, and where a container's process is.
func controllers(t *testing.T, p *Pod, c *Container) []string {
	t.Helper()
	place, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{string(place)}
	if p.runtime.config.Cgroups.Mode() != cgroup.V2 {
		return lines
	}
	for dir := p.scope.Path(); dir != "/"; dir = path.Dir(dir) {
		text, err := os.ReadFile("/sys/fs/cgroup" + dir + "/cgroup.subtree_control")
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, dir+": "+strings.TrimSpace(string(text)))
	}
	return lines
}

// A pod stays with the driver that it was started with.
func TestSystemdIsNotTheDriverOfBefore(t *testing.T) {
	f := newFixtureSystemd(t)
	bus := f.runtime.config.Systemd
	for _, tt := range []struct {
		name, parent  string
		before, after cgroup.Bus
	}{
		{"now cgroupfs", f.parent, bus, nil},
		{"now cgroupfs, no parent", "", bus, nil},
		{"now systemd", "/critest" + randomID()[:8], nil, bus},
		{"now systemd, no parent", "", nil, bus},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := PodConfig{ID: randomID(), Dir: t.TempDir(), HostNetwork: true, CgroupParent: tt.parent}
			f.runtime.config.Systemd = tt.before
			first, err := f.runtime.StartPod(testContext(t), config)
			if err != nil {
				t.Fatal(err)
			}
			old, _ := f.started(t, first, "sleep 1000", nil)
			place := path.Dir(cgroupOf(t, old.Pid()))
			f.runtime.config.Systemd = tt.after
			p := f.adopt(t, config)
			if out, code := execText(t, p.Containers()[0], "echo", "in"); out != "in\n" || code != 0 {
				t.Errorf("exec printed %q, code %d", out, code)
			}
			fresh, _ := f.started(t, p, "sleep 1000", nil)
			if got := path.Dir(cgroupOf(t, fresh.Pid())); got != place {
				t.Errorf("a container is in %s, the one before in %s", got, place)
			}
			for _, c := range p.Containers() {
				if err := c.Kill(testContext(t)); err != nil {
					t.Error(err)
				}
				waitExit(t, c)
				if err := c.Delete(testContext(t)); err != nil {
					t.Error(err)
				}
			}
			if err := p.Stop(testContext(t)); err != nil {
				t.Error(err)
			}
			if err := f.runtime.CleanPod(testContext(t), config, []string{old.ID()}); err != nil {
				t.Errorf("CleanPod of nothing: %v", err)
			}
			if tt.before != nil {
				_ = exec.Command("systemctl", "stop", "cri-"+config.ID+".scope").Run() // waits if it is not gone
			}
			if dir := systemdTree() + place; place != "/" && tt.parent != "" {
				if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("left: %s, %v", dir, err)
				}
			}
		})
	}
	f.runtime.config.Systemd = bus
}

// The OOM kill of one container is no end of the others.
func TestSystemdOOM(t *testing.T) {
	f := newFixtureSystemd(t)
	p := f.pod(t, nil)
	other, _ := f.started(t, p, "sleep 1000", nil)
	spec := DefaultSpec("dd", "if=/dev/zero", "of=/dev/null", "bs=64M")
	limit := int64(16 << 20)
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	if _, exit := f.run(t, p, spec); exit.Code != 137 || !exit.OOMKilled {
		t.Errorf("exit %+v, want 137 and OOMKilled", exit)
	}
	if state := strings.TrimSpace(systemctl(t, "show", "cri-"+p.config.ID+".scope", "--value", "-p", "ActiveState")); state != "active" {
		t.Errorf("the scope is %s", state)
	}
	if out, code := execText(t, other, "echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec in another container printed %q, code %d", out, code)
	}
}
