package ociruntime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/leak"
)

// What a start can have made when its container is created is there, the container sees what it would see without, and nothing of it
// is left: neither of a start nor of a container that never is started.
func TestStartAhead(t *testing.T) {
	f := newFixture(t)
	maps := []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
	const look = "stat -c '%n %F %a %u:%g %t' /dev /dev/* /tmp | grep -v core; touch /tmp/x /dev/shm/x && grep -c . /proc/self/cgroup; " +
		"ls -d /sys/fs/cgroup/*/tasks /sys/fs/cgroup/cgroup.procs 2>/dev/null"
	for _, tt := range []struct {
		name     string
		userns   *IDMap
		terminal bool
	}{
		{name: "plain"},
		{name: "user namespace", userns: &IDMap{UIDs: maps, GIDs: maps}},
		{name: "terminal", terminal: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := f.pod(t, func(c *PodConfig) { c.UserNS, c.HostNetwork = tt.userns, tt.userns == nil })
			leak.Check(t, leak.Only(leak.Descriptor, leak.Mount, leak.Goroutine))
			spec := func() *specs.Spec {
				s := DefaultSpec("sh", "-c", look)
				s.Process.Terminal = tt.terminal
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1750"}})
				return s
			}
			see := func(t *testing.T, ready bool) string {
				c, log := f.create(t, p, spec(), nil)
				<-c.ahead.made
				if s := c.ahead.start; s.place == nil || !s.watched || len(s.ahead) == 0 {
					t.Errorf("made ahead: placement %v, monitors %t, mounts %v", s.place, s.watched, s.ahead)
				}
				if !ready {
					c.dropAhead()
				}
				if err := c.Start(testContext(t)); err != nil {
					t.Fatal(err)
				}
				waitExit(t, c)
				return logText(t, log)
			}
			var seen [2]string
			for i, name := range []string{"without", "with"} {
				t.Run(name, func(t *testing.T) { seen[i] = see(t, i == 1) })
			}
			if seen[0] != seen[1] || !strings.Contains(seen[0], "/dev/null") {
				t.Errorf("with what was made ahead a container sees\n%s\nwithout\n%s", seen[1], seen[0])
			}
			t.Run("never started", func(t *testing.T) {
				c, _ := f.create(t, p, spec(), nil)
				if c.ahead == nil {
					t.Error("nothing is made ahead")
				}
			})
		})
	}
	if n := f.runtime.aheads.Load(); n != 0 {
		t.Errorf("%d starts are still said to wait", n)
	}
}

// Of many containers that are created and not started only some hold descriptors.
func TestStartAheadIsBounded(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	f.runtime.aheads.Add(maxAhead)
	c, log := f.create(t, p, DefaultSpec("echo", "x"), nil)
	if c.ahead != nil {
		t.Errorf("made for container %d, at most %d are to have something", f.runtime.aheads.Load(), maxAhead)
	}
	f.runtime.aheads.Add(-maxAhead)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c)
	if out := logText(t, log); out != "x\n" {
		t.Errorf("printed %q", out)
	}
}

// Limits that change between the creation and the start hold for the process.
func TestUpdateBeforeStartAhead(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	c, log := f.create(t, p, DefaultSpec("cat", "/proc/self/oom_score_adj"), nil)
	<-c.ahead.made
	score := 321
	if _, err := c.Update(Limits{OOMScoreAdj: &score}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c)
	if out := logText(t, log); out != "321\n" {
		t.Errorf("oom_score_adj is %q", out)
	}
}

// A volume is opened by the start, whatever type a plugin has given it: what was mounted in it since the creation is there.
func TestVolumeIsNotOpenedAhead(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	dir := t.TempDir()
	for _, kind := range []string{"bind", "tmpfs", "cgroup"} {
		spec := bindSpec(dir)
		spec.Mounts[len(spec.Mounts)-1].Type, spec.Mounts[len(spec.Mounts)-1].Options = kind, []string{"rbind"}
		c, log := f.create(t, p, spec, nil)
		<-c.ahead.made
		t.Run(kind, func(t *testing.T) {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}()
			if err := os.WriteFile(filepath.Join(dir, "file"), []byte("data "), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := c.Start(testContext(t)); err != nil {
				t.Fatal(err)
			}
			waitExit(t, c)
			if out := logText(t, log); out != "data end\n" {
				t.Errorf("printed %q", out)
			}
		})
	}
}
