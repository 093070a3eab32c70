package ociruntime

import (
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/kernel"
	"github.com/criserver/criserver/ociruntime/mount"
)

// What a container on a host with cgroup2 only sees of its leaf and may do with devices, which is decided by eBPF there.
func TestCgroup2(t *testing.T) {
	f := newFixtureV2(t)
	p := f.pod(t, nil)
	for _, tt := range []struct {
		name, script, want string
		change             func(*specs.Spec)
	}{
		{name: "leaf is the root", script: "grep ^0: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs | head -n 1", want: "0::/\n1\n"},
		{name: "read-only", script: "echo 1 > /sys/fs/cgroup/cgroup.freeze", want: "sh: can't create /sys/fs/cgroup/cgroup.freeze: Read-only file system\n",
			change: func(s *specs.Spec) {
				for i := range s.Mounts {
					if s.Mounts[i].Destination == "/sys/fs/cgroup" {
						s.Mounts[i].Options = append(s.Mounts[i].Options, "ro")
					}
				}
			}},
		{name: "the host's without a namespace", script: "ls -d /sys/fs/cgroup" + f.parent, want: "/sys/fs/cgroup" + f.parent + "\n", change: withoutCgroupNS},
		{name: "device that no rule allows", script: "cat /dev/kmsg", want: "cat: can't open '/dev/kmsg': Operation not permitted\n",
			change: func(s *specs.Spec) {
				s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11})
			}},
		{name: "device that one allows", script: "head -c 1 /dev/zero | wc -c", want: "1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := DefaultSpec("sh", "-c", tt.script)
			if tt.change != nil {
				tt.change(spec)
			}
			if out, _ := f.run(t, p, spec); out != tt.want {
				t.Errorf("printed %q, want %q", out, tt.want)
			}
		})
	}
}

// A container that may write its groups must not be able to shut execs out, on purpose or not.
func TestExecInDelegatedGroup(t *testing.T) {
	f := newFixtureV2(t)
	p := f.pod(t, nil)
	for _, tt := range []struct {
		name   string
		change func(leaf string) error
	}{
		{"no more groups", func(leaf string) error { return os.WriteFile(leaf+"/cgroup.max.descendants", []byte("0"), 0) }},
		{"threaded groups", func(leaf string) error {
			if err := os.Mkdir(leaf+"/threads", 0o755); err != nil {
				return err
			}
			return os.WriteFile(leaf+"/threads/cgroup.type", []byte("threaded"), 0)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := f.started(t, p, "sleep 1000", nil)
			leaf := c.group.Paths()[""]
			if err := tt.change(leaf); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if out, code := execText(t, c, "echo", "in"); out != "in\n" || code != 0 {
					t.Errorf("printed %q, exit code %d", out, code)
				}
			}
		})
	}
}

func TestKillOfExecThatLeftItsLeaf(t *testing.T) {
	f := newFixtureV2(t)
	c, _ := f.started(t, f.pod(t, nil), "sleep 1000", nil)
	e, err := c.Exec(testContext(t), ExecConfig{Args: []string{"sleep", "2000"}, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	procs, err := os.ReadFile(c.group.Paths()[""] + "/" + execLeaf(t, c) + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.group.Paths()[""]+"/cgroup.procs", procs, 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Kill(testContext(t)); err != nil || e.Code() != 137 {
		t.Errorf("kill: %v, code %d", err, e.Code())
	}
}

// execLeaf is the name of the only group below the container's.
func execLeaf(t *testing.T, c *Container) string {
	t.Helper()
	entries, err := os.ReadDir(c.group.Paths()[""])
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			return e.Name()
		}
	}
	t.Fatal("the exec has no leaf")
	return ""
}

func withoutCgroupNS(s *specs.Spec) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
}

// A container without a cgroup namespace must not make its mount's options those of the host.
func TestCgroup2KeepsOptionsOfHost(t *testing.T) {
	const option = "memory_recursiveprot"
	f := newFixtureV2(t)
	if !cgroup2Has(t, option) {
		mountCgroup2(t, option)
		t.Cleanup(func() { mountCgroup2(t) })
	}
	spec := DefaultSpec("true")
	withoutCgroupNS(spec)
	f.run(t, f.pod(t, nil), spec)
	if !cgroup2Has(t, option) {
		t.Errorf("the host's cgroup2 lost %s", option)
	}
}

func mountCgroup2(t *testing.T, options ...string) {
	t.Helper()
	m, err := mount.New("cgroup2", "cgroup", mount.Options{Data: options})
	if err != nil {
		t.Fatal(err)
	}
	_ = m.Close()
}

func cgroup2Has(t *testing.T, option string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	_, super, _ := strings.Cut(string(mounts), " - cgroup2 ")
	super, _, _ = strings.Cut(super, "\n")
	return strings.Contains(super, option)
}

// needs skips unless the controllers are in the fixture's hierarchies.
func (f *fixture) needs(t testing.TB, controllers ...string) {
	t.Helper()
	for _, c := range controllers {
		if !f.runtime.config.Cgroups.Has(c) {
			t.Skipf("no %s controller in the cgroup2", c)
		}
	}
}

// delegates is the beginning of a script that does what systemd does in a container: it leaves the root of its groups to
// distribute all controllers to groups of its own.
const delegates = `cd /sys/fs/cgroup; busybox mkdir own; echo 0 > own/cgroup.procs
	for c in $(cat cgroup.controllers); do echo +$c > cgroup.subtree_control; done
	echo delegated: $(cat cgroup.subtree_control), $(grep ^0: /proc/self/cgroup); `

func writableGroups(s *specs.Spec) {
	for i := range s.Mounts {
		if s.Mounts[i].Destination == "/sys/fs/cgroup" {
			s.Mounts[i].Options = slices.DeleteFunc(s.Mounts[i].Options, func(o string) bool { return o == "ro" })
		}
	}
}

// delegated is a container that runs script when it has delegated its groups.
func (f *fixture) delegated(t *testing.T, p *Pod, script string) (*Container, string) {
	t.Helper()
	spec := DefaultSpec("sh", "-c", delegates+script)
	writableGroups(spec)
	c, log := f.create(t, p, spec, nil)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	controllers, err := os.ReadFile(c.group.Paths()[""] + "/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	waitLog(t, log, "delegated: "+strings.TrimSpace(string(controllers))+", 0::/own")
	return c, log
}

func TestDelegatedGroup(t *testing.T) {
	f := newFixtureV2(t)
	p := f.pod(t, nil)
	t.Run("exec", func(t *testing.T) {
		c, _ := f.delegated(t, p, "sleep 1000")
		for range 2 {
			out, code := execText(t, c, "grep", "^0:", "/proc/self/cgroup")
			if !strings.HasPrefix(out, "0::/exec-") || code != 0 {
				t.Errorf("exec is in %q, exit code %d", out, code)
			}
		}
		e, err := c.Exec(testContext(t), ExecConfig{Args: []string{"sh", "-c", "sleep 2000 & sleep 2000"}, Stdout: os.Stdout, Stderr: os.Stderr})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if err := e.Kill(testContext(t)); err != nil || e.Code() != 137 {
			t.Errorf("kill of exec: %v, code %d", err, e.Code())
		}
		if out, _ := execText(t, c, "ps"); strings.Contains(out, "sleep 2000") || !strings.Contains(out, "sleep 1000") {
			t.Errorf("after that:\n%s", out)
		}
	})
	t.Run("stop", func(t *testing.T) {
		c, log := f.delegated(t, p, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
		waitLog(t, log, "ready")
		if err := c.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if exit := waitExit(t, c); exit.Code != 3 {
			t.Errorf("%+v", exit)
		}
	})
	t.Run("kill", func(t *testing.T) {
		c, _ := f.delegated(t, p, "busybox mkdir own/more; (echo 0 > own/more/cgroup.procs; sleep 1000) & sleep 1000")
		if err := c.Kill(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if exit := waitExit(t, c); exit.Code != 137 {
			t.Errorf("%+v", exit)
		}
	})
	t.Run("OOM", func(t *testing.T) {
		f.needs(t, "memory")
		c, _ := f.delegated(t, p, "echo 16M > own/memory.max; exec dd if=/dev/zero of=/dev/null bs=64M")
		if exit := waitExit(t, c); exit.Code != 137 || !exit.OOMKilled {
			t.Errorf("%+v", exit)
		}
	})
}

// The kubelet asks for this of each container: with one of its processes, all are killed.
func TestOOMOfOneIsThatOfAll(t *testing.T) {
	f := newFixtureV2(t)
	f.needs(t, "memory")
	p := f.pod(t, nil)
	for _, grouped := range []string{"0", "1"} {
		t.Run("memory.oom.group="+grouped, func(t *testing.T) {
			spec := DefaultSpec("sleep", "1000")
			limit := int64(24 << 20)
			spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
			spec.Linux.Resources.Unified = map[string]string{"memory.oom.group": grouped}
			c, _ := f.create(t, p, spec, nil)
			if err := c.Start(testContext(t)); err != nil {
				t.Fatal(err)
			}
			beside, err := c.Exec(testContext(t), ExecConfig{Args: []string{"sleep", "2000"}, Stdout: os.Stdout, Stderr: os.Stderr})
			if err != nil {
				t.Fatal(err)
			}
			defer beside.Close()
			if _, code := execText(t, c, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M"); code != 137 {
				t.Errorf("the one that wants too much: code %d", code)
			}
			if grouped == "0" {
				if err := c.Signal(0); err != nil {
					t.Errorf("the container is gone: %v", err)
				}
				if err := beside.Kill(testContext(t)); err != nil {
					t.Error(err)
				}
				return
			}
			<-beside.Done()
			if exit := waitExit(t, c); exit.Code != 137 || !exit.OOMKilled || beside.Code() != 137 {
				t.Errorf("%+v, code of the exec %d", exit, beside.Code())
			}
		})
	}
}

// A process that is born in its group counts there before it runs, so a full group refuses its birth. One that only writes
// itself into the group is let in: that is the way without CLONE_INTO_CGROUP.
func TestBornInFullGroup(t *testing.T) {
	f := newFixtureV2(t)
	f.needs(t, "pids")
	p := f.pod(t, nil)
	const full = "the limit of processes of cgroup "
	t.Run("exec", func(t *testing.T) {
		one := int64(1)
		spec := DefaultSpec("sleep", "1000")
		spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &one}
		c, _ := f.create(t, p, spec, nil)
		if err := c.Start(testContext(t)); err != nil {
			t.Fatal(err)
		}
		config := ExecConfig{Args: []string{"true"}, Stdout: os.Stdout, Stderr: os.Stderr}
		if _, err := c.Exec(testContext(t), config); err == nil || !strings.Contains(err.Error(), full+c.group.Path()+" is reached (1 of 1)") {
			t.Errorf("exec in a full group: %v", err)
		}
		defer kernel.Refuse("clone-into-cgroup")()
		if _, code := execText(t, c, "true"); code != 0 {
			t.Errorf("exec by write: code %d", code)
		}
	})
	t.Run("start", func(t *testing.T) {
		dir := f.runtime.config.Cgroups.List()[0].MountPoint + f.parent
		c, _ := f.create(t, p, DefaultSpec("true"), nil)
		current, err := os.ReadFile(dir + "/pids.current")
		if err == nil {
			err = os.WriteFile(dir+"/pids.max", current, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(testContext(t)); err == nil || !strings.Contains(err.Error(), full+f.parent+" is reached") {
			t.Errorf("start in a full pod: %v", err)
		}
		if err := os.WriteFile(dir+"/pids.max", []byte("max"), 0); err != nil {
			t.Fatal(err)
		}
	}) // the fixture fails if anything of the container is left
}
