package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/pause"
	"github.com/criserver/criserver/test/leak"
)

// adoptable starts a pod that is to be adopted; stopping it is left to the one who adopts it.
func (f *fixture) adoptable(t *testing.T) (*Pod, PodConfig) {
	t.Helper()
	config := PodConfig{ID: randomID(), Dir: t.TempDir(), Hostname: "pod", HostNetwork: true, CgroupParent: f.parent}
	p, err := f.runtime.StartPod(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	return p, config
}

func (f *fixture) adopt(t *testing.T, config PodConfig) *Pod {
	t.Helper()
	p, err := f.runtime.AdoptPod(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *Pod) stopAfter(t *testing.T) {
	t.Cleanup(func() {
		if err := p.Stop(testContext(t)); err != nil {
			t.Error(err)
		}
	})
}

// A criserver that is killed between the two requests of a start leaves a container that can be started.
func TestAdoptionWithinStart(t *testing.T) {
	f := newFixture(t)
	p, config := f.adoptable(t)
	c, log := f.create(t, p, DefaultSpec("echo", "late"), nil)
	if err := p.conn.Add(testContext(t), pause.Container{Task: f.runtime.newTask(), Name: c.ID(), ExitSlot: c.record.Slot}); err != nil {
		t.Fatal(err)
	}
	adopted := f.adopt(t, config)
	adopted.stopAfter(t)
	again := adopted.Containers()[0]
	if err := again.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if exit := waitExit(t, again); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
	if out := logText(t, log); out != "late\n" {
		t.Errorf("it printed %q", out)
	}
}

// A criserver that is killed after a start, before pause has dropped the root, leaves nothing kept.
func TestAdoptionDropsRoots(t *testing.T) {
	f := newFixture(t)
	p, config := f.adoptable(t)
	c, _ := f.started(t, p, "sleep 1000", nil)
	if err := p.conn.Keep(testContext(t), keptRoot+c.ID(), nil); err != nil {
		t.Fatal(err)
	}
	adopted := f.adopt(t, config)
	adopted.stopAfter(t)
	if len(adopted.kept) != 0 {
		t.Errorf("criserver holds %v", adopted.kept)
	}
	listing, err := adopted.conn.List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer listing.Close()
	for name := range listing.Kept {
		if strings.HasPrefix(name, keptRoot) {
			t.Errorf("pause keeps %s", name)
		}
	}
}

// Exits are seen whenever they come: before, while or after the pod is adopted.
func TestAdoptionSeesExits(t *testing.T) {
	f := newFixture(t)
	p, config := f.adoptable(t)
	for i := range 30 {
		c, _ := f.started(t, p, "read -t 0.0"+string(rune('0'+i%4))+"; exit 5", nil)
		id := c.ID()
		p = f.adopt(t, config)
		for _, c := range p.Containers() {
			if exit := waitExit(t, c); c.ID() == id && exit.Code != 5 {
				t.Errorf("exit %+v", exit)
			}
			if err := c.Delete(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.stopAfter(t)
}

// An adoption that fails, here for a record that cannot be read, leaves no descriptor and no goroutine that waits for
// the end of pause. It can be tried again.
func TestAdoptionFails(t *testing.T) {
	f := newFixture(t)
	p, config := f.adoptable(t)
	c, _ := f.started(t, p, "sleep 1000", nil)
	record, err := os.ReadFile(p.recordPath(c.ID()))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.recordPath(c.ID()), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("leaves nothing", func(t *testing.T) {
		leak.Check(t, leak.Only(leak.Descriptor, leak.Goroutine))
		for range 3 {
			if p, err := f.runtime.AdoptPod(testContext(t), config); err == nil {
				t.Fatalf("adopted %v", p)
			}
		}
	})
	if err := os.WriteFile(p.recordPath(c.ID()), record, 0o600); err != nil {
		t.Fatal(err)
	}
	f.adopt(t, config).stopAfter(t)
}

// In a v1 cgroup that is the pod's alone pause has no directory, also after a restart; but it has one where an earlier pause was killed
// for want of memory, which the cgroup remembers.
func TestPauseIsGuest(t *testing.T) {
	f := newFixture(t)
	i := slices.IndexFunc(f.runtime.config.Cgroups.List(), func(h cgroup.Hierarchy) bool { return slices.Contains(h.Controllers, "memory") && !h.Unified })
	if i < 0 {
		t.Skip("memory is not of v1")
	}
	const uid = "0c8d"
	parent := f.parent + "/pod" + uid
	pod := f.runtime.config.Cgroups.List()[i].MountPoint + parent
	start := func() (*Pod, PodConfig) {
		config := PodConfig{ID: randomID(), UID: uid, Dir: t.TempDir(), HostNetwork: true, CgroupParent: parent}
		p, err := f.runtime.StartPod(testContext(t), config)
		if err != nil {
			t.Fatal(err)
		}
		return p, config
	}
	check := func(p *Pod, want string) {
		t.Helper()
		if in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid())); err != nil || !strings.Contains(string(in), ":memory:"+want+"\n") {
			t.Errorf("%v, pause is not in %s:\n%s", err, want, in)
		}
	}
	end := func(p *Pod) {
		t.Helper()
		if err := errors.Join(p.Stop(testContext(t)), f.runtime.CleanPod(testContext(t), p.config, nil)); err != nil {
			t.Fatal(err)
		}
	}
	p, config := start()
	check(p, parent)
	end(f.adopt(t, config))

	if err := os.MkdirAll(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(pod); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(pod+"/memory.limit_in_bytes", []byte("8M"), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", "echo 0 > "+pod+"/tasks; exec dd if=/dev/zero of=/dev/null bs=40M count=1").CombinedOutput(); err == nil {
		t.Fatalf("it has memory enough: %s", out)
	}
	p, config = start()
	check(p, parent+"/"+config.ID)
	end(p)
	if err := p.Starved(); err != nil {
		t.Error(err)
	}
}
