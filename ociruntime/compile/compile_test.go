package compile

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/ociruntime/program"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (-want +got), rewrite with -update if it is right:\n%s", path, d)
	}
}

// plain is the process of an unprivileged container on a v1 host with two hierarchies.
func plain() Process {
	caps := []string{"CAP_CHOWN", "CAP_KILL"}
	return Process{
		Spec: &specs.Process{
			Args:         []string{"sh", "-c", "true"},
			Env:          []string{"PATH=/usr/bin:/bin", "HOME=/root"},
			Cwd:          "/work",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}},
		},
		Keyring: "c1",
		Tasks:   []program.FD{0, 1},
		Stdio:   [3]program.FD{2, 3, 4},
		CapLast: 7, CapPermitted: 0xff,
	}
}

func container(p Process) Container {
	return Container{
		Process: p,
		Root:    5,
		Mounts: []Mount{
			{What: "mount proc", Destination: "/proc", Make: &Filesystem{Type: "proc", Source: "proc", Options: mount.ParseOptions([]string{"nosuid", "nodev", "noexec"})}},
			{What: "mount /srv/data", Destination: "/data/set", FD: 6},
			{What: "mount /etc/hosts", Destination: "/etc/hosts", FD: 7, File: true},
		},
		Masked:   []string{"/proc/kcore"},
		Readonly: []string{"/proc/sys"},
		CgroupNS: true,
	}
}

func TestGolden(t *testing.T) {
	adj, umask := 100, uint32(0o27)
	for _, tt := range []struct {
		name   string
		change func(*Container)
	}{
		{"plain", func(*Container) {}},
		{"user-seccomp", func(c *Container) {
			c.Spec.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5, 6}, Umask: &umask}
			c.Seccomp = &Filter{Code: make([]byte, 24), Flags: 4}
		}},
		{"no-new-privs-ambient", func(c *Container) {
			c.Spec.NoNewPrivileges = true
			c.Spec.Capabilities.Inheritable = []string{"CAP_KILL"}
			c.Spec.Capabilities.Ambient = []string{"CAP_KILL"}
			c.Seccomp = &Filter{Code: make([]byte, 8)}
		}},
		{"terminal-readonly-shared", func(c *Container) {
			c.Spec.Terminal, c.Console, c.RootReadonly, c.RootShared = true, true, true, unix.MS_SHARED
			c.Stdio = [3]program.FD{2, 2, 2}
		}},
		{"userns-oom-labels", func(c *Container) {
			c.UserNS = true
			c.Spec.OOMScoreAdj = &adj
			c.Spec.ApparmorProfile, c.Spec.SelinuxLabel = "confined", "u:r:t:s0"
		}},
		{"cgroup2", func(c *Container) {
			c.Tasks = nil
			c.Mounts = []Mount{{What: "mount cgroup2", Destination: "/sys/fs/cgroup", Make: &Filesystem{Type: "cgroup2", Source: "cgroup", Options: mount.ParseOptions([]string{"ro"})}}}
		}},
		{"shared-cgroup-dir", func(c *Container) {
			c.Mounts = []Mount{{What: "mount tmpfs", Destination: "/sys/fs/cgroup", Clone: &Clone{Of: CgroupDir, Attr: mount.ParseOptions([]string{"ro"}).Attr}}}
		}},
		{"own-covers", func(c *Container) {
			c.Mounts, c.Covers = nil, new(program.FD(9))
		}},
		{"mqueue-label", func(c *Container) {
			c.Mounts = []Mount{{What: "mount mqueue", Destination: "/dev/mqueue", Make: &Filesystem{Type: "mqueue", Source: "mqueue", Label: "u:r:t:s0"}}}
		}},
		{"hooks", func(c *Container) {
			c.Root, c.Hooks = 9, &Hooks{Host: 5, Sync: 8, Confine: true}
			c.RootReadonly = true
			c.Mounts = c.Mounts[:1]
		}},
		{"scheduling", func(c *Container) {
			c.Mounts = nil
			c.Spec.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: -3, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}
			c.Spec.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
			c.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0-1,65", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
			c.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
			c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.1/forwarding": "0"}
		}},
		{"absolute-executable", func(c *Container) { c.Spec.Args = []string{"/bin/true"} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := container(plain())
			tt.change(&c)
			p, err := Start(c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "start-"+tt.name, p.Text())
		})
	}
}

// Hundreds of mounts, as a pod has that mounts files one by one, fit into a Program.
func TestManyMounts(t *testing.T) {
	c := container(plain())
	for i := range 400 {
		c.Mounts = append(c.Mounts, Mount{What: "mount /srv/file", Destination: fmt.Sprintf("/opt/a/b/c/d/e/f/%d", i), FD: program.FD(10 + i), File: true})
	}
	if _, err := Start(c); err != nil {
		t.Error(err)
	}
}

func TestGoldenExecAndBoot(t *testing.T) {
	p, err := Exec(plain(), 5)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "exec", p.Text())
	cgroup := program.FD(6)
	h := Hook{Path: "/usr/bin/hook", Args: []string{"hook", "link"}, Env: []string{"A=b"}, Mount: 5, Cgroup: &cgroup}
	if p, err = CreateHook(plain(), h); err != nil {
		t.Fatal(err)
	}
	golden(t, "hook-create", p.Text())
	h.Cgroup = nil
	if p, err = StartHook(plain(), h); err != nil {
		t.Fatal(err)
	}
	golden(t, "hook-start", p.Text())
	sync := program.FD(2)
	p, err = Boot{
		Tasks: []program.FD{0, 1}, UserNS: &sync, Unshare: unix.CLONE_NEWNET | unix.CLONE_NEWUTS, Hostname: "pod", Loopback: true,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net/ipv4/conf/eth0.1/forwarding": "1"},
	}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "boot", p.Text())
}

// The same input gives the same bytes: an operator compares two starts by their text, a cache by their digest.
func TestDeterministic(t *testing.T) {
	var first string
	for range 20 {
		c := container(plain())
		p, err := Start(c)
		if err != nil {
			t.Fatal(err)
		}
		if b := string(p.Encode()); first == "" {
			first = b
		} else if b != first {
			t.Fatal("two compilations of the same container differ")
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Process)
		want   string
	}{
		{"no arguments", func(p *Process) { p.Spec.Args = nil }, "process.args: no executable"},
		{"unknown limit", func(p *Process) { p.Spec.Rlimits[0].Type = "RLIMIT_X" }, `process.rlimits: unknown type "RLIMIT_X"`},
		{"unknown capability", func(p *Process) { p.Spec.Capabilities.Bounding = []string{"CAP_X"} }, `process.capabilities: unknown capability "CAP_X"`},
		{"NUL in an argument", func(p *Process) { p.Spec.Args = []string{"/bin/a\x00b"} }, "contains a NUL byte"},
		{"huge environment", func(p *Process) { p.Spec.Env = []string{"A=" + strings.Repeat("x", program.MaxSize)} }, "at most 4194304 are possible"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := plain()
			tt.change(&p)
			_, err := Start(container(p))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestCandidates(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  []string
		want []string
	}{
		{"/bin/sh", nil, []string{"/bin/sh"}},
		{"./sh", nil, []string{"./sh"}},
		{"sh", []string{"PATH=/a:/b/"}, []string{"/a/sh", "/b/sh"}},
		{"sh", []string{"PATH=/a", "PATH=:/c"}, []string{"./sh", "/c/sh"}},
	} {
		if d := cmp.Diff(tt.want, candidates(tt.name, tt.env)); d != "" {
			t.Errorf("candidates(%q, %q):\n%s", tt.name, tt.env, d)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		change func(*specs.Spec)
		want   string // "": in order
	}{
		{func(*specs.Spec) {}, ""},
		{func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "SCHED_FAIR"} }, "process.scheduler.policy: unknown"},
		{func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedRR, Flags: []specs.LinuxSchedulerFlag{"X"}}
		}, "process.scheduler.flags"},
		{func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT, Priority: 8}
		}, "process.ioPriority"},
		{func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "x"} }, "process.ioPriority"},
		{func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "x"} }, "linux.memoryPolicy.mode"},
		{func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolLocal} }, ""},
		{func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "3-1"}
		}, "linux.memoryPolicy.nodes"},
		{func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "1024"}
		}, "linux.memoryPolicy.nodes"},
		{func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"x"}}
		}, "linux.memoryPolicy.flags"},
		{func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} }, "linux.personality"},
	} {
		spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
		test.change(spec)
		err := Check(spec)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want one with %q", err, test.want)
		}
	}
}
