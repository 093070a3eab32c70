package critest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crash kills criserver; resume starts it again.
func (d *daemon) crash(t *testing.T) {
	t.Helper()
	if err := d.kill(); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) resume(t *testing.T) {
	t.Helper()
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
}

// alive has the daemon run again when a test failed while it did not.
func alive(t *testing.T, d *daemon) {
	t.Helper()
	t.Cleanup(func() {
		if d.cmd == nil {
			d.resume(t)
		}
	})
}

func TestRestart(t *testing.T) {
	for name, end := range map[string]func(*daemon) error{"killed": (*daemon).kill, "stopped": (*daemon).stop} {
		t.Run(name, func(t *testing.T) {
			d := use(t)
			alive(t, d)
			p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) { c.Hostname = "server" })
			q := runPod(t, d)
			stopped := runPod(t, d)
			stopped.stop(t)
			serving, created, exited := p.start(t, serveText), q.create(t, "echo late start"), q.start(t, "exit 9")
			exited.wait(t)
			look := func() (all []proto.Message) {
				for _, p := range []*pod{p, q, stopped} {
					all = append(all, p.status(t))
				}
				for _, c := range []*container{serving, created, exited} {
					all = append(all, c.status(t))
				}
				return all
			}
			before := look()
			images := listImages(t, d)
			v4, _ := p.addresses(t)
			if err := end(d); err != nil {
				t.Fatal(err)
			}
			if got := fetch(t, v4); got != "server" {
				t.Errorf("without criserver the pod answers %q", got)
			}
			d.resume(t)
			after := look()
			for i := range before {
				if !proto.Equal(before[i], after[i]) {
					t.Errorf("before %v\nafter %v", before[i], after[i])
				}
			}
			if now := listImages(t, d); strings.Join(now, " ") != strings.Join(images, " ") {
				t.Errorf("images were %q and are %q", images, now)
			}
			if got := serving.exec(t, "hostname"); got != "server\n" {
				t.Errorf("exec says %q", got)
			}
			if err := created.tryStart(t); err != nil {
				t.Fatalf("start a container that was created before: %v", err)
			}
			created.wait(t)
			created.wrote(t, "late start\n")
			p.prints(t, "new\n", "echo new")
			serving.stop(t, 0)
			if s := serving.status(t); s.GetExitCode() != 137 {
				t.Errorf("exit code %d", s.GetExitCode())
			}
		})
	}
}

// What happens while criserver is away is known afterwards.
func TestRestartExits(t *testing.T) {
	d := use(t)
	alive(t, d)
	p := runPod(t, d)
	control := t.TempDir()
	controlled := mounts(&cri.Mount{HostPath: control, ContainerPath: "/control"})
	const wait = "while [ ! -e /control/go ]; do sleep 0.02; done; "
	code := p.start(t, wait+"exit 7", controlled)
	signalled := p.start(t, "", command("sleep", "6543"))
	oom := p.start(t, wait+"exec dd if=/dev/zero of=/dev/null bs=60M count=1", controlled, func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 20 << 20 })
	stays := p.start(t, idle)
	var firsts []int
	for _, c := range []*container{code, signalled, oom} {
		firsts = append(firsts, c.firstProcess(t))
	}
	d.crash(t)
	began := time.Now()
	kill(t, firsts[1])
	write(t, filepath.Join(control, "go"), "")
	for _, pid := range firsts {
		eventually(t, rpcBound, "the others have ended", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	}
	ended := time.Now()
	d.resume(t)
	for _, row := range []struct {
		name   string
		c      *container
		code   int32
		reason string
	}{{"exit code", code, 7, "Error"}, {"signal", signalled, 137, "Error"}, {"out of memory", oom, 137, "OOMKilled"}} {
		s := row.c.wait(t)
		if s.GetExitCode() != row.code || s.GetReason() != row.reason {
			t.Errorf("%s: exit code %d, reason %s", row.name, s.GetExitCode(), s.GetReason())
		}
		if at := time.Unix(0, s.GetFinishedAt()); at.Before(began) || at.After(ended) {
			t.Errorf("%s: finished at %v, not between %v and %v", row.name, at, began, ended)
		}
	}
	if s := stays.status(t).GetState(); s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container that did not end is %s", s)
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

// firstProcess is the pid of a running container, as its verbose status has it.
func (c *container) firstProcess(t *testing.T) int {
	t.Helper()
	r, err := c.p.d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return infoPid(t, r.GetInfo())
}

// infoPid reads the pid in a verbose status.
func infoPid(t *testing.T, info map[string]string) int {
	t.Helper()
	var known struct{ Pid int }
	if err := json.Unmarshal([]byte(info["info"]), &known); err != nil || known.Pid <= 1 {
		t.Fatalf("pid %d in %q: %v", known.Pid, info["info"], err)
	}
	return known.Pid
}

// No line is lost, doubled or split while criserver is killed again and again, and logs are rotated between.
func TestRestartLogs(t *testing.T) {
	d := use(t)
	alive(t, d)
	p := runPod(t, d)
	c := p.count(t)
	var logs []string
	for i := range 4 {
		d.crash(t)
		d.resume(t)
		logs = append(logs, c.rotate(t, i))
	}
	expectSequence(t, c.finish(t), append(logs, c.log())...)
}

// A pause that dies while criserver is away takes its containers along, and criserver tells.
func TestRestartDeadPause(t *testing.T) {
	d := use(t)
	alive(t, d)
	p := runPod(t, d, podNetwork)
	c := p.start(t, "", command("sleep", "6544"))
	other := runPod(t, d)
	pause, first := p.pause(t), c.firstProcess(t)
	d.crash(t)
	kill(t, pause)
	eventually(t, rpcBound, "the container ends with its pause", func() bool { return unix.Kill(first, 0) == unix.ESRCH })
	d.resume(t)
	if s := c.wait(t); s.GetExitCode() != 137 {
		t.Errorf("exit code %d", s.GetExitCode())
	}
	eventually(t, rpcBound, "the pod is NOTREADY", func() bool { return p.status(t).GetState() == cri.PodSandboxState_SANDBOX_NOTREADY })
	if s := other.status(t).GetState(); s != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("another pod is %s", s)
	}
}

// Killed at any moment of many lives at once, criserver leaves nothing that cannot be removed.
func TestRestartInTheMiddle(t *testing.T) {
	d := use(t)
	alive(t, d)
	for round := range 8 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		var lives sync.WaitGroup
		for i := range 4 {
			lives.Go(func() { live(ctx, t, d, i%2 == 0) })
		}
		time.AfterFunc(time.Duration(rand.IntN(120))*time.Millisecond, cancel) // the moment of the kill
		<-ctx.Done()
		d.crash(t)
		lives.Wait()
		d.resume(t)
		list, err := d.runtime.ListPodSandbox(bounded(t), &cri.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range list.GetItems() {
			(&pod{d: d, id: item.GetId()}).remove(t)
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// live runs pods and containers one after the other until something fails, as it does when criserver is killed.
func live(ctx context.Context, t *testing.T, d *daemon, network bool) {
	runtime := d.runtime
	for {
		config := podConfig(t)
		if network {
			podNetwork(config)
		}
		p, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		if err != nil {
			return
		}
		c, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.GetPodSandboxId(), Config: containerConfig(idle), SandboxConfig: config})
		if err != nil {
			return
		}
		if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
			return
		}
		if _, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.GetContainerId(), Cmd: []string{"true"}}); err != nil {
			return
		}
		if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.GetPodSandboxId()}); err != nil {
			return
		}
		if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.GetPodSandboxId()}); err != nil {
			return
		}
	}
}

func TestSecondInstance(t *testing.T) {
	d := use(t)
	second := d.command("serve")
	tooLong := time.AfterFunc(rpcBound, func() { _ = second.Process.Kill() }) // it serves
	defer tooLong.Stop()
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("in use by the criserver with pid %d", d.cmd.Process.Pid)) {
		t.Errorf("a second instance: %v\n%s", err, out)
	}
	runPod(t, d).prints(t, "first\n", "echo first")
}
