package critest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds say that something hangs. None of them is part of what is tested: what ends sooner is not waited for.
var (
	rpcBound    = patience * 60 * time.Second // of one RPC, and of what its effect takes
	settleBound = patience * 30 * time.Second // until what ends by itself must be gone, and the log has everything
	execBound   = int64(rpcBound / time.Second)
)

func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), rpcBound)
	t.Cleanup(cancel)
	return ctx
}

var serial atomic.Int64

// pod is a pod sandbox that ends with its test.
type pod struct {
	d      *daemon
	id     string
	config *cri.PodSandboxConfig
	logs   string
}

// podConfig is a pod on the host network, where nothing is asked for.
func podConfig(t testing.TB, change ...func(*cri.PodSandboxConfig)) *cri.PodSandboxConfig {
	t.Helper()
	n := serial.Add(1)
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: fmt.Sprintf("pod-%d", n), Namespace: "critest", Uid: fmt.Sprintf("uid-%d", n), Attempt: 1},
		LogDirectory: t.TempDir(),
		Labels:       map[string]string{"test": t.Name()},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    suite.cgroups,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
	for _, f := range change {
		f(config)
	}
	return config
}

// podNetwork asks for a network namespace of the pod's own.
func podNetwork(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_POD
}

func runPod(t testing.TB, d *daemon, change ...func(*cri.PodSandboxConfig)) *pod {
	t.Helper()
	config := podConfig(t, change...)
	r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	p := &pod{d: d, id: r.GetPodSandboxId(), config: config, logs: config.GetLogDirectory()}
	t.Cleanup(func() { p.remove(t) })
	return p
}

func (p *pod) stop(t testing.TB) {
	t.Helper()
	if _, err := p.d.runtime.StopPodSandbox(bounded(t), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
}

// cgroup is the directory of the pod's leaves in a hierarchy.
func (p *pod) cgroup(point, parent string) string {
	if suite.driver == driverSystemd {
		return filepath.Join(point, parent, "cri-"+p.id+".scope")
	}
	return filepath.Join(point, parent)
}

// remove stops and removes the pod with all that is in it; doing it again does no harm.
func (p *pod) remove(t testing.TB) {
	t.Helper()
	p.stop(t)
	if _, err := p.d.runtime.RemovePodSandbox(bounded(t), &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("RemovePodSandbox: %v", err)
	}
}

func (p *pod) status(t testing.TB) *cri.PodSandboxStatus {
	t.Helper()
	r, err := p.d.runtime.PodSandboxStatus(bounded(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("PodSandboxStatus: %v", err)
	}
	return r.GetStatus()
}

// container is a container that ends with its pod.
type container struct {
	p      *pod
	id     string
	config *cri.ContainerConfig
}

// containerConfig runs a script of busybox's shell.
func containerConfig(script string, change ...func(*cri.ContainerConfig)) *cri.ContainerConfig {
	name := fmt.Sprintf("c%d", serial.Add(1))
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name, Attempt: 2},
		Image:    &cri.ImageSpec{Image: suite.busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux:    &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{}, SecurityContext: &cri.LinuxContainerSecurityContext{}},
	}
	for _, f := range change {
		f(config)
	}
	return config
}

// tryCreate asks for a container, which may be refused.
func (p *pod) tryCreate(t testing.TB, config *cri.ContainerConfig) (*container, error) {
	t.Helper()
	if c := config.GetLinux().GetSecurityContext(); c != nil && c.NamespaceOptions == nil {
		c.NamespaceOptions = p.config.Linux.SecurityContext.NamespaceOptions // as the kubelet does
	}
	r, err := p.d.runtime.CreateContainer(bounded(t), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	return &container{p: p, id: r.GetContainerId(), config: config}, err
}

func (p *pod) create(t testing.TB, script string, change ...func(*cri.ContainerConfig)) *container {
	t.Helper()
	c, err := p.tryCreate(t, containerConfig(script, change...))
	if err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	return c
}

func (c *container) tryStart(t testing.TB) error {
	t.Helper()
	_, err := c.p.d.runtime.StartContainer(bounded(t), &cri.StartContainerRequest{ContainerId: c.id})
	return err
}

// start creates and starts a container.
func (p *pod) start(t testing.TB, script string, change ...func(*cri.ContainerConfig)) *container {
	t.Helper()
	c := p.create(t, script, change...)
	if err := c.tryStart(t); err != nil {
		t.Fatalf("StartContainer: %v", err)
	}
	return c
}

// command runs a program without a shell.
func command(argv ...string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Command = argv }
}

// idle is a script that runs until it is stopped, at once by SIGTERM as soon as it has said that it is ready.
const idle = "trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait $!; done"

// prints runs a container to its end, which must be a success, and wants its output.
func (p *pod) prints(t testing.TB, want, script string, change ...func(*cri.ContainerConfig)) {
	t.Helper()
	c := p.start(t, script, change...)
	if s := c.wait(t); s.GetExitCode() != 0 {
		t.Errorf("exit code %d, output %q", s.GetExitCode(), c.output(t))
	}
	c.wrote(t, want)
}

func (c *container) status(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	r, err := c.p.d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("ContainerStatus: %v", err)
	}
	return r.GetStatus()
}

// wait waits until the container has ended.
func (c *container) wait(t testing.TB) (s *cri.ContainerStatus) {
	t.Helper()
	eventually(t, rpcBound, "container has ended", func() bool {
		s = c.status(t)
		return s.GetState() == cri.ContainerState_CONTAINER_EXITED
	})
	return s
}

func (c *container) stop(t testing.TB, grace int64) {
	t.Helper()
	if _, err := c.p.d.runtime.StopContainer(bounded(t), &cri.StopContainerRequest{ContainerId: c.id, Timeout: grace}); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
}

func (c *container) remove(t testing.TB) {
	t.Helper()
	if _, err := c.p.d.runtime.RemoveContainer(bounded(t), &cri.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Errorf("RemoveContainer: %v", err)
	}
}

// tryExec runs a command in the container. timeout is in seconds, 0 is none.
func (c *container) tryExec(t testing.TB, timeout int64, cmd ...string) (*cri.ExecSyncResponse, error) {
	t.Helper()
	return c.p.d.runtime.ExecSync(bounded(t), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: cmd, Timeout: timeout})
}

// exec runs a script in the container, which must succeed, and returns its stdout.
func (c *container) exec(t testing.TB, script string) string {
	t.Helper()
	r, err := c.tryExec(t, execBound, "sh", "-c", script)
	if err != nil {
		t.Fatalf("ExecSync %q: %v", script, err)
	}
	if r.GetExitCode() != 0 {
		t.Fatalf("ExecSync %q: exit code %d, stdout %q, stderr %q", script, r.GetExitCode(), r.GetStdout(), r.GetStderr())
	}
	return string(r.GetStdout())
}

func (c *container) log() string { return filepath.Join(c.p.logs, c.config.GetLogPath()) }

// output is what the log has of both streams.
func (c *container) output(t testing.TB) string {
	t.Helper()
	var all strings.Builder
	for _, line := range readLog(t, c.log()) {
		all.WriteString(line.text)
		if line.tag == "F" {
			all.WriteString("\n")
		}
	}
	return all.String()
}

// waitOutput waits until the container has written text.
func (c *container) waitOutput(t testing.TB, text string) {
	t.Helper()
	eventually(t, rpcBound, fmt.Sprintf("container has written %q", text), func() bool { return strings.Contains(c.output(t), text) })
}

// wrote wants the output of a container that has ended. The log may come after the exit, which waits for a stalled one only
// a moment.
func (c *container) wrote(t testing.TB, want string) {
	t.Helper()
	if !within(settleBound, func() bool { return c.output(t) == want }) {
		t.Errorf("output %q instead of %q", c.output(t), want)
	}
}

// logLine is a line in CRI's format.
type logLine struct {
	at          time.Time
	stream, tag string
	text        string
}

// readLog reads a log; a last line without its end is left out, since it may be in the middle of being written.
func readLog(t testing.TB, path string) []logLine {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []logLine
	for line := range strings.Lines(string(text)) {
		line, whole := strings.CutSuffix(line, "\n")
		if !whole {
			break
		}
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			t.Fatalf("%s: %q is no line of CRI's format", path, line)
		}
		at, err := time.Parse(time.RFC3339Nano, parts[0])
		if err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		lines = append(lines, logLine{at: at, stream: parts[1], tag: parts[2], text: parts[3]})
	}
	return lines
}

// refused fails unless err has the code and its text all of parts.
func refused(t testing.TB, err error, code codes.Code, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if got := status.Code(err); got != code {
		t.Errorf("code %s instead of %s: %v", got, code, err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}

// write makes a file of the test.
func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// running counts the processes with this command line, in any container. In the middle of its execve a process has none:
// that one runs is waited for, that none does is known once it cannot begin.
func running(t testing.TB, command string) int { return len(pids(t, command)) }

// pids are the processes with this command line, in any container.
func pids(t testing.TB, command string) (all []int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, _ := os.ReadFile(path) // it may have ended
		if strings.TrimRight(strings.ReplaceAll(string(text), "\x00", " "), " ") != command {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, pid)
	}
	return all
}
