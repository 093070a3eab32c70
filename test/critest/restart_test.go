package critest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
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
			if got := created.output(t); got != "late start\n" {
				t.Errorf("it wrote %q", got)
			}
			if code, out := p.run(t, "echo new"); code != 0 || out != "new\n" {
				t.Errorf("a new container in an old pod: exit code %d, %q", code, out)
			}
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
	wait := "while [ ! -e /dev/shm/go ]; do sleep 0.02; done; "
	code := p.start(t, wait+"exit 7")
	signalled := p.start(t, "", command("sleep", "6543"))
	oom := p.start(t, wait+"exec dd if=/dev/zero of=/dev/null bs=60M count=1", func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 20 << 20 })
	stays := p.start(t, idle)
	stays.exec(t, "(sleep 0.3; touch /dev/shm/go) >/dev/null 2>&1 &")
	began := time.Now()
	d.crash(t)
	killAll(t, "sleep 6543")
	eventually(t, rpcBound, "the others have ended", func() bool {
		return running(t, "sleep 6543") == 0 && running(t, "sh -c "+wait+"exit 7") == 0 && running(t, "dd if=/dev/zero of=/dev/null bs=60M count=1") == 0 && time.Since(began) > time.Second
	})
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

func killAll(t *testing.T, command string) {
	t.Helper()
	for _, pid := range pids(t, command) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
}

// No line is lost, doubled or split while criserver is killed again and again, and logs are rotated between.
func TestRestartLogs(t *testing.T) {
	d := use(t)
	alive(t, d)
	p := runPod(t, d)
	const lines = 300000
	c := p.start(t, fmt.Sprintf("seq 1 100000; sleep 0.5; seq 100001 200000; sleep 0.5; seq 200001 %d", lines))
	var logs []string
	for i := range 4 {
		d.crash(t)
		d.resume(t)
		if c.status(t).GetState() != cri.ContainerState_CONTAINER_RUNNING {
			break
		}
		old := fmt.Sprintf("%s.%d", c.log(), i)
		if err := os.Rename(c.log(), old); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, old)
		if _, err := d.runtime.ReopenContainerLog(bounded(t), &cri.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
			t.Fatal(err)
		}
	}
	c.wait(t)
	expectSequence(t, lines, append(logs, c.log())...)
}

// A pause that dies while criserver is away takes its containers along, and criserver tells.
func TestRestartDeadPause(t *testing.T) {
	d := use(t)
	alive(t, d)
	p := runPod(t, d, podNetwork)
	c := p.start(t, "", command("sleep", "6544"))
	other := runPod(t, d)
	d.crash(t)
	killAll(t, "pause-"+p.id)
	eventually(t, rpcBound, "the container ends with its pause", func() bool { return running(t, "sleep 6544") == 0 })
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
	out, err := d.command("serve").CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("in use by the criserver with pid %d", d.cmd.Process.Pid)) {
		t.Errorf("a second instance: %v\n%s", err, out)
	}
	if code, _ := runPod(t, d).run(t, "true"); code != 0 {
		t.Errorf("afterwards the first gives exit code %d", code)
	}
}
