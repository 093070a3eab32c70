package ociruntime

import (
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

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
