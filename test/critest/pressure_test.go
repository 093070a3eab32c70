package critest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podCgroup is a parent of one pod's cgroups, with limits on it, as the kubelet makes them.
type podCgroup struct {
	uid    string // of the pod, which names it
	parent string // as the CRI has it
	dir    string // below each hierarchy
}

// makePodCgroup makes a cgroup for one pod, which must be empty when the pod is gone.
func makePodCgroup(t *testing.T) podCgroup {
	t.Helper()
	g := podCgroup{uid: fmt.Sprint(serial.Add(1))}
	if suite.driver == driverSystemd {
		name := strings.TrimSuffix(filepath.Base(suite.cgroups), ".slice") + "-pod" + g.uid + ".slice"
		g.parent, g.dir = name, suite.cgroups+"/"+name
	} else {
		g.dir = suite.cgroups + "/pod" + g.uid
		g.parent = g.dir
	}
	g.make(t)
	return g
}

func (g podCgroup) make(t *testing.T) {
	t.Helper()
	if suite.driver == driverSystemd {
		g.systemctl(t, "start", g.parent)
		// with a limit of each sort systemd gives the slice the controllers
		g.systemctl(t, "set-property", "--runtime", g.parent, "CPUQuota=1000%", "MemoryMax=1T", "TasksMax=100000")
		t.Cleanup(func() {
			if left, err := filepath.Glob(filepath.Dir(pidsMax.find(t, g.dir)) + "/*/"); err != nil || len(left) > 0 {
				t.Errorf("the pod left something in its cgroup: %v, %v", left, err)
			}
			g.systemctl(t, "stop", g.parent)
		})
		return
	}
	points, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range points {
		if err := os.Mkdir(point+g.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(point + g.dir); err != nil {
				t.Errorf("the pod left something in its cgroup: %v", err)
			}
		})
	}
}

func (podCgroup) systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl %q: %v: %s", args, err, out)
	}
}

// limit writes a limit of the pod, with systemd as a property: it writes its own once more when a scope begins.
func (g podCgroup) limit(t *testing.T, f cgroupFile, value, property string) {
	t.Helper()
	if suite.driver == driverSystemd {
		g.systemctl(t, "set-property", "--runtime", g.parent, property)
		return
	}
	f.write(t, g.dir, value)
}

func (g podCgroup) use(c *cri.PodSandboxConfig) {
	c.Linux.CgroupParent, c.Metadata.Uid = g.parent, g.uid
}

// cgroupFile is a file of a cgroup by its name in both versions.
type cgroupFile struct{ v1, v2 string }

var (
	pidsMax     = cgroupFile{"pids.max", "pids.max"}
	pidsCurrent = cgroupFile{"pids.current", "pids.current"}
	memoryMax   = cgroupFile{"memory.limit_in_bytes", "memory.max"}
	cpuQuota    = cgroupFile{"cpu.cfs_quota_us", "cpu.max"} // the period is 100 ms unless somebody says otherwise
	freezerV1   = cgroupFile{v1: "freezer.state"}
	freezerV2   = cgroupFile{v2: "cgroup.freeze"}
)

// find is the path of f in a cgroup directory, in whatever hierarchy; "" if none has it.
func (f cgroupFile) find(t *testing.T, dir string) string {
	t.Helper()
	points, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range points {
		for _, name := range []string{f.v1, f.v2} {
			path := filepath.Join(point, dir, name)
			if _, err := os.Stat(path); name != "" && err == nil {
				return path
			}
		}
	}
	return ""
}

func (f cgroupFile) read(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(f.find(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (f cgroupFile) write(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(f.find(t, dir), []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// leaf is the container's own cgroup.
func (c *container) leaf(g podCgroup) string { return filepath.Join(c.p.cgroup("/", g.dir), c.id) }

// stops ends a container, or the pod it is in, in all ways.
var stops = []struct {
	name string
	do   func(t *testing.T, c *container)
}{
	{"StopContainer without grace", func(t *testing.T, c *container) { c.stop(t, 0) }},
	{"StopContainer with grace", func(t *testing.T, c *container) { c.stop(t, 1) }},
	{"RemoveContainer", func(t *testing.T, c *container) { c.remove(t) }},
	{"StopPodSandbox", func(t *testing.T, c *container) { c.p.stop(t) }},
	{"RemovePodSandbox", func(t *testing.T, c *container) {
		if _, err := c.p.d.runtime.RemovePodSandbox(bounded(t), &cri.RemovePodSandboxRequest{PodSandboxId: c.p.id}); err != nil {
			t.Errorf("RemovePodSandbox: %v", err)
		}
	}},
}

// A pod that may use 2 ms of CPU each 100 ms, and uses them, is slow and nothing else.
func TestThrottled(t *testing.T) {
	d := use(t)
	const burn = "trap 'exit 0' TERM; echo ready; while :; do :; done"
	for _, level := range []string{"container", "pod"} {
		for _, end := range stops {
			t.Run(level+", "+end.name, func(t *testing.T) {
				check(t, d)
				g := makePodCgroup(t)
				var change []func(*cri.ContainerConfig)
				if level == "container" {
					change = append(change, func(c *cri.ContainerConfig) {
						c.Linux.Resources.CpuPeriod, c.Linux.Resources.CpuQuota, c.Linux.Resources.CpuShares = 100_000, 2_000, 20
					})
				} else {
					g.limit(t, cpuQuota, "2000", "CPUQuota=2%")
				}
				p := runPod(t, d, g.use)
				c := p.start(t, burn, change...)
				c.waitOutput(t, "ready")
				if got := c.exec(t, "echo x"); got != "x\n" {
					t.Errorf("exec: %q", got)
				}
				_, err := c.tryExec(t, 1, "sleep", "7701")
				refused(t, err, codes.DeadlineExceeded)
				end.do(t, c)
				if n := running(t, "sleep 7701"); n != 0 {
					t.Errorf("%d processes are left", n)
				}
			})
		}
	}
}

// A pod that has as many processes as it may have can be stopped, and says what it lacks.
func TestFullOfProcesses(t *testing.T) {
	d := use(t)
	const many = "trap 'exit 0' TERM; for i in 1 2 3 4 5; do sleep 7702 & done; echo ready; while :; do wait; done"
	for _, level := range []string{"container", "pod"} {
		for _, end := range stops {
			t.Run(level+", "+end.name, func(t *testing.T) {
				check(t, d)
				g := makePodCgroup(t)
				p := runPod(t, d, g.use)
				c := p.start(t, many)
				c.waitOutput(t, "ready")
				full := map[string]string{"container": c.leaf(g), "pod": g.dir}[level]
				limit := func(n string) {
					if level == "pod" {
						g.limit(t, pidsMax, n, "TasksMax="+strings.Replace(n, "max", "infinity", 1))
					} else {
						pidsMax.write(t, full, n)
					}
				}
				limit(pidsCurrent.read(t, full))
				_, err := c.tryExec(t, execBound, "true")
				if err != nil || level == "pod" { // v1 counts who comes by a move, but does not refuse him
					refused(t, err, codes.Unknown, "limit of processes", "resource temporarily unavailable")
				}
				if level == "pod" {
					next, err := p.tryCreate(t, containerConfig(idle))
					if err != nil {
						t.Fatal(err)
					}
					refused(t, next.tryStart(t), codes.Unknown, "limit of processes", "resource temporarily unavailable")
					if s := next.status(t); s.GetReason() != "StartError" {
						t.Errorf("reason %q", s.GetReason())
					}
				}
				limit("max")
				if got := c.exec(t, "echo x"); got != "x\n" {
					t.Errorf("exec once there is room again: %q", got)
				}
				limit(pidsCurrent.read(t, full))
				end.do(t, c)
				if n := running(t, "sleep 7702"); n != 0 {
					t.Errorf("%d processes are left", n)
				}
			})
		}
	}
	t.Run("RunPodSandbox", func(t *testing.T) {
		check(t, d)
		g := makePodCgroup(t)
		g.limit(t, pidsMax, "0", "TasksMax=1")
		config := podConfig(t, g.use)
		r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
		if err == nil { // pause came by a move
			(&pod{d: d, id: r.GetPodSandboxId(), config: config}).remove(t)
		} else {
			refused(t, err, codes.Unknown, "limit of processes", "resource temporarily unavailable")
		}
	})
}

// A pod or a container with very little memory runs, or fails to start and says why.
func TestLittleMemory(t *testing.T) {
	d := use(t)
	for _, level := range []string{"container", "pod"} {
		for _, limit := range []int64{16 << 20, 4 << 20, 1 << 20, 256 << 10, 32 << 10, 4 << 10} {
			t.Run(fmt.Sprintf("%s, %d KiB", level, limit>>10), func(t *testing.T) {
				check(t, d)
				g := makePodCgroup(t)
				if level == "pod" {
					g.limit(t, memoryMax, fmt.Sprint(limit), fmt.Sprintf("MemoryMax=%d", limit))
				}
				little(t, d, g, func(c *cri.ContainerConfig) {
					if level == "container" {
						c.Linux.Resources.MemoryLimitInBytes = limit
					}
				}, limit >= 4<<20)
			})
		}
	}
}

// little goes as far as there is memory for, and to the end if there is enough.
func little(t *testing.T, d *daemon, g podCgroup, change func(*cri.ContainerConfig), enough bool) {
	t.Helper()
	lacks := func(what string, err error) bool {
		t.Helper()
		if err != nil {
			t.Logf("%s: %v", what, err)
			if !enough && status.Code(err) == codes.FailedPrecondition { // pause was killed for memory between two requests: the pod is over
				refused(t, err, codes.FailedPrecondition, "is not ready", "memory limit of cgroup", "is too small")
				return true
			}
			refused(t, err, codes.Unknown, "memory limit of cgroup", "is too small")
			if enough {
				t.Errorf("%s failed", what)
			}
		}
		return err != nil
	}
	config := podConfig(t, g.use)
	r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
	if lacks("RunPodSandbox", err) {
		return
	}
	p := &pod{d: d, id: r.GetPodSandboxId(), config: config, logs: config.GetLogDirectory()}
	defer p.remove(t)
	c, err := p.tryCreate(t, containerConfig(idle, change))
	if lacks("CreateContainer", err) {
		return
	}
	if err := c.tryStart(t); lacks("StartContainer", err) {
		if s := c.status(t); s.GetReason() != "StartError" && status.Code(err) != codes.FailedPrecondition {
			t.Errorf("reason %q", s.GetReason())
		}
		return
	}
	if enough {
		c.waitOutput(t, "ready")
		if got := c.exec(t, "echo x"); got != "x\n" {
			t.Errorf("exec: %q", got)
		}
	} else {
		r, err := c.tryExec(t, execBound, "echo", "x")
		t.Logf("exec: %v, %v", r, err)
	}
	c.stop(t, 1)
	if s := c.status(t); s.GetExitCode() != 0 && s.GetReason() != "OOMKilled" {
		t.Errorf("exit code %d, reason %s, message %s", s.GetExitCode(), s.GetReason(), s.GetMessage())
	}
}

func TestOOM(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	const eat = "dd if=/dev/zero of=/dev/null bs=60M count=2"
	for _, row := range []struct {
		name, script string
		exec         bool // it eats in an exec
		code         int32
		reason       string
	}{
		{"PID 1", "exec " + eat, false, 137, "OOMKilled"},
		{"child, survived", eat + "; echo $?; exit 0", false, 0, "Completed"},
		{"child, whose end PID 1 passes on", eat + "; exit $?", false, 137, "OOMKilled"},
		{"child, after which PID 1 gives up", eat + "; exit 3", false, 3, "OOMKilled"},
		{"exec, survived", "trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait $!; done", true, 0, "Completed"},
		{"no memory, but a signal", "kill -KILL -1; sleep 1000 & kill -SEGV $!; wait; exit 137", false, 137, "Error"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, row.script, func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 20 << 20 })
			if row.exec {
				c.waitOutput(t, "ready")
				r, err := c.tryExec(t, execBound, "sh", "-c", "exec "+eat)
				if err != nil || r.GetExitCode() != 137 {
					t.Errorf("exec: exit code %d, stderr %q: %v", r.GetExitCode(), r.GetStderr(), err)
				}
				c.stop(t, execBound)
			}
			s := c.wait(t)
			if s.GetExitCode() != row.code || s.GetReason() != row.reason {
				t.Errorf("exit code %d, reason %q, message %q, output %q; want %d, %q", s.GetExitCode(), s.GetReason(), s.GetMessage(), c.output(t), row.code, row.reason)
			}
		})
	}
	if group := (cgroupFile{v2: "memory.oom.group"}); group.find(t, suite.cgroups) != "" {
		t.Run("child, and all with it", func(t *testing.T) { // as the kubelet asks for on v2
			c := p.start(t, eat+"; exit 0", func(c *cri.ContainerConfig) {
				c.Linux.Resources.MemoryLimitInBytes = 20 << 20
				c.Linux.Resources.Unified = map[string]string{group.v2: "1"}
			})
			if s := c.wait(t); s.GetExitCode() != 137 || s.GetReason() != "OOMKilled" {
				t.Errorf("exit code %d, reason %q", s.GetExitCode(), s.GetReason())
			}
		})
	}
	t.Run("another container of the pod", func(t *testing.T) {
		g := makePodCgroup(t)
		p := runPod(t, d, g.use)
		other := p.start(t, idle)
		other.waitOutput(t, "ready")
		g.limit(t, memoryMax, fmt.Sprint(20<<20), "MemoryMax=20M")
		c := p.start(t, "exec "+eat)
		if s := c.wait(t); s.GetExitCode() != 137 || s.GetReason() != "OOMKilled" {
			t.Errorf("exit code %d, reason %q", s.GetExitCode(), s.GetReason())
		}
		other.stop(t, 0)
		if s := other.status(t); s.GetExitCode() != 137 || s.GetReason() != "Error" {
			t.Errorf("the other one: exit code %d, reason %q", s.GetExitCode(), s.GetReason())
		}
	})
}

// A container that dies with its pause, which memory took, says so, also if criserver was away.
func TestOOMOfPause(t *testing.T) {
	d := use(t)
	alive(t, d)
	const limit = 20 << 20
	for _, away := range []bool{false, true} {
		if away && suite.driver == driverSystemd {
			continue // systemd has removed the cgroup that counted the kill
		}
		t.Run(fmt.Sprintf("criserver is away: %t", away), func(t *testing.T) {
			g := makePodCgroup(t)
			p := runPod(t, d, g.use)
			// Each of them has less than the kernel takes pause for.
			const eat = "for i in 1 2 3 4; do dd if=/dev/zero of=/dev/null bs=15M & done"
			c := p.start(t, "trap '"+eat+"' USR1; echo ready; while :; do sleep 1000 & wait $!; done")
			c.waitOutput(t, "ready")
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pause(t)), []byte("1000"), 0); err != nil { // the kernel takes it first
				t.Fatal(err)
			}
			g.limit(t, memoryMax, fmt.Sprint(limit), fmt.Sprintf("MemoryMax=%d", limit))
			first := c.firstProcess(t)
			if away {
				d.crash(t)
			}
			if err := unix.Kill(first, unix.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			if away {
				eventually(t, rpcBound, "the container ends with its pause", func() bool { return unix.Kill(first, 0) == unix.ESRCH })
				d.resume(t)
			}
			s := c.wait(t)
			want := fmt.Sprintf("the memory limit of cgroup %s, %d KiB, is too small", g.dir, limit>>10)
			if s.GetExitCode() != 137 || s.GetReason() != "OOMKilled" || !strings.Contains(s.GetMessage(), want) {
				t.Errorf("exit code %d, reason %q, message %q", s.GetExitCode(), s.GetReason(), s.GetMessage())
			}
			eventually(t, rpcBound, "the pod is NOTREADY", func() bool { return p.status(t).GetState() == cri.PodSandboxState_SANDBOX_NOTREADY })
		})
	}
}
