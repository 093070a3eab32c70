package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/test/leak"
)

// A pause that dies before it has made its user namespace fails the start of the pod instead of stalling it.
func TestBootOfDeadPause(t *testing.T) {
	f := newFixture(t)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	p := f.runtime.newPod(PodConfig{ID: randomID(), Dir: t.TempDir(), HostNetwork: true, CgroupParent: f.parent, UserNS: &IDMap{UIDs: ids, GIDs: ids}})
	dir, err := p.beginGroup(f.parent)
	if err != nil {
		t.Fatal(err)
	}
	_ = dir.Close() // nil: there is none
	t.Cleanup(func() {
		if err := p.undo(context.Background()); err != nil {
			t.Error(err)
		}
	})
	n, err := p.spawn(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.greet(testContext(t), n); err != nil {
		t.Fatal(err)
	}
	if err := unix.PidfdSendSignal(int(p.conn.PidFD().Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.boot(testContext(t), n, nil):
		if err == nil {
			t.Error("a dead pause was started")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the start of a dead pause stalls")
	}
}

// Whichever of the two halves of a start fails, the other one ends too, and nothing is left.
func TestStartPodFails(t *testing.T) {
	f := newFixture(t)
	config := f.runtime.config
	config.PauseBinary = "/bin/busybox" // which knows no applet of pause's name
	other, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	type row struct {
		name    string
		runtime *Runtime
		ctx     context.Context
		change  func(t *testing.T, c *PodConfig)
		want    string
	}
	rows := []row{
		{"pause that ends at once", other, t.Context(), nil, "greet pause: "},
		{"caller that is gone", f.runtime, gone, nil, "context canceled"},
		{"cgroup that cannot be", f.runtime, t.Context(), func(_ *testing.T, c *PodConfig) { c.CgroupParent = f.parent + "/.." }, "create the sandbox's cgroup: "},
		{"mapping of nothing", f.runtime, t.Context(), func(_ *testing.T, c *PodConfig) {
			c.UserNS = &IDMap{UIDs: []specs.LinuxIDMapping{{HostID: 100000}}, GIDs: []specs.LinuxIDMapping{{HostID: 100000}}}
		}, "write the id mapping of the pod: "},
		{"sysctl that is none", f.runtime, t.Context(), func(_ *testing.T, c *PodConfig) { c.Sysctls = map[string]string{"kernel.nonesuch": "1"} }, "set sysctl kernel.nonesuch"},
	}
	all := slices.DeleteFunc(f.runtime.config.Cgroups.List(), func(h cgroup.Hierarchy) bool { return h.Unified })
	if len(all) > 0 { // what is made when pause is born already
		rows = append(rows, row{"v1 leaf that is there", f.runtime, t.Context(), func(t *testing.T, c *PodConfig) {
			if err := os.MkdirAll(all[len(all)-1].MountPoint+c.CgroupParent+"/"+c.ID, 0o755); err != nil {
				t.Fatal(err)
			}
		}, "create the sandbox's cgroup: "})
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := PodConfig{ID: randomID(), Dir: t.TempDir(), HostNetwork: true, CgroupParent: f.parent}
			leak.Check(t, leak.Only(leak.Process, leak.Cgroup, leak.Descriptor, leak.Goroutine), leak.Match(c.ID))
			if row.change != nil {
				row.change(t, &c)
			}
			if p, err := row.runtime.StartPod(row.ctx, c); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, %v instead of %q", p, err, row.want)
			}
			if left, err := os.ReadDir(c.Dir); err != nil || len(left) > 0 {
				t.Errorf("left in the pod's directory: %v, %v", left, err)
			}
		})
	}
}

// A pause that does not die holds up nobody, and is reaped in the end.
func TestNewbornThatDoesNotDie(t *testing.T) {
	f := newFixture(t)
	i := slices.IndexFunc(f.runtime.config.Cgroups.List(), func(h cgroup.Hierarchy) bool { return slices.Contains(h.Controllers, "freezer") })
	if i < 0 {
		t.Skip("what cgroup2 freezes dies")
	}
	leak.Check(t, leak.Only(leak.Process, leak.Descriptor, leak.Goroutine))
	freezer := f.runtime.config.Cgroups.List()[i].MountPoint + f.parent
	if err := os.Mkdir(freezer, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(freezer+"/"+file, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	p := f.runtime.newPod(PodConfig{ID: randomID(), Dir: t.TempDir(), HostNetwork: true, CgroupParent: f.parent})
	n, err := p.spawn(nil)
	if err != nil {
		t.Fatal(err)
	}
	write("cgroup.procs", strconv.Itoa(n.pid))
	write("freezer.state", "FROZEN")
	impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := n.kill(impatient); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("kill: %v", err)
	}
	write("freezer.state", "THAWED")
}

func TestScopesNeedTheirPauses(t *testing.T) {
	r, err := New(Config{Systemd: &cgroup.HostBus{}, PauseParent: "/pauses"})
	if err == nil || !strings.Contains(err.Error(), "a scope that no process is in ends") {
		t.Errorf("New = %v, %v", r, err)
	}
}

// Under contention pause must not come last: the logs, execs and stops of its pod go through it.
func TestPauseHasNormalWeight(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	dir := p.group.Paths()["cpu"]
	for file, normal := range map[string]string{"cpu.shares": "1024", "cpu.weight": "100"} {
		if text, err := os.ReadFile(filepath.Join(dir, file)); err == nil && strings.TrimSpace(string(text)) != normal {
			t.Errorf("%s of pause is %s, want %s", file, text, normal)
		}
	}
}

// What was made for a pod is on record however many make something at once, and what an earlier criserver recorded stays.
func TestParentsAreRecorded(t *testing.T) {
	p := (&Runtime{}).newPod(PodConfig{ID: randomID(), Dir: t.TempDir()})
	const earlier = "/sys/fs/cgroup/with a blank"
	if err := os.WriteFile(p.path(parentsName), []byte(earlier), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{earlier}
	var makers sync.WaitGroup
	for i := range 20 {
		dirs := []string{fmt.Sprintf("/sys/fs/cgroup/%02d", i), fmt.Sprintf("/sys/fs/cgroup/%02d/pod", i)}
		want = append(want, dirs...)
		makers.Go(func() {
			for range 2 { // the second time there is nothing new
				if err := p.addParents(dirs); err != nil {
					t.Error(err)
				}
			}
		})
	}
	makers.Wait()
	got, err := readParents(p.config.Dir)
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v instead of %q", got, err, want)
	}
}
