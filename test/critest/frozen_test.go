package critest

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// freeze freezes a cgroup as somebody beside criserver does, and thaws it at the end if it is there yet.
func (f cgroupFile) freeze(t *testing.T, dir string) {
	t.Helper()
	path := f.find(t, dir)
	on, off := "FROZEN", "THAWED"
	if f.v2 != "" {
		on, off = "1", "0"
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, []byte(off), 0); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			t.Error(err)
		}
	})
	if err := os.WriteFile(path, []byte(on), 0); err != nil {
		t.Fatal(err)
	}
	if f.v1 != "" {
		eventually(t, settleBound, "all processes are frozen", func() bool { return f.read(t, dir) == on })
	}
}

// freezers are those that there are.
func freezers(t *testing.T) map[string]cgroupFile {
	t.Helper()
	all := map[string]cgroupFile{"v1": freezerV1, "v2": freezerV2}
	maps.DeleteFunc(all, func(_ string, f cgroupFile) bool { return f.find(t, suite.cgroups) == "" })
	return all
}

// eachFreezer runs a test for each freezer there is, on containers and on whole pods.
func eachFreezer(t *testing.T, test func(t *testing.T, d *daemon, freezer cgroupFile, level string)) {
	d := use(t)
	for name, freezer := range freezers(t) {
		for _, level := range []string{"container", "pod"} {
			t.Run(name+", "+level, func(t *testing.T) { test(t, d, freezer, level) })
		}
	}
}

// toFreeze starts a container, in a pod cgroup of its own, and returns the cgroup of that level.
func toFreeze(t *testing.T, d *daemon, level, script string) (c *container, dir string) {
	t.Helper()
	check(t, d)
	g := makePodCgroup(t)
	c = runPod(t, d, g.use).start(t, script)
	c.waitOutput(t, "ready")
	return c, map[string]string{"container": c.leaf(g), "pod": g.dir}[level]
}

// What somebody has frozen can be stopped.
func TestFrozenStops(t *testing.T) {
	eachFreezer(t, func(t *testing.T, d *daemon, freezer cgroupFile, level string) {
		for _, end := range stops {
			t.Run(end.name, func(t *testing.T) {
				c, dir := toFreeze(t, d, level, "sleep 7703 & "+idle)
				freezer.freeze(t, dir)
				_, err := c.tryExec(t, 1, "sleep", "7704")
				refused(t, err, codes.DeadlineExceeded, "1s")
				end.do(t, c)
				if n := running(t, "sleep 7703") + running(t, "sleep 7704"); n != 0 {
					t.Errorf("%d processes are left", n)
				}
			})
		}
	})
}

// An exec that its caller has given up does not run once the container is thawed.
func TestFrozenExecThawed(t *testing.T) {
	eachFreezer(t, func(t *testing.T, d *daemon, freezer cgroupFile, level string) {
		c, dir := toFreeze(t, d, level, idle)
		t.Run("frozen", func(t *testing.T) {
			freezer.freeze(t, dir)
			_, err := c.tryExec(t, 1, "sh", "-c", "sleep 5; touch /tmp/was-run")
			refused(t, err, codes.DeadlineExceeded, "1s")
		})
		if got := c.exec(t, "ls /tmp"); got != "" {
			t.Errorf("/tmp has %q", got)
		}
		eventually(t, settleBound, "the process that nobody waits for is gone", func() bool { return running(t, "sleep 5") == 0 })
	})
}

// An exec that runs when somebody freezes it ends with its timeout.
func TestFrozenDuringExec(t *testing.T) {
	eachFreezer(t, func(t *testing.T, d *daemon, freezer cgroupFile, level string) {
		c, dir := toFreeze(t, d, level, idle)
		ended := make(chan error, 1)
		go func() {
			_, err := d.runtime.ExecSync(bounded(t), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "7706"}, Timeout: int64(patience) + 1})
			ended <- err
		}()
		eventually(t, rpcBound, "the command runs", func() bool { return running(t, "sleep 7706") == 1 })
		c.exec(t, "true") // once pause has told of this one, it has told of that one
		freezer.freeze(t, dir)
		refused(t, <-ended, codes.DeadlineExceeded)
		if n := running(t, "sleep 7706"); n != 0 {
			t.Errorf("%d processes are left", n)
		}
		c.stop(t, 0)
	})
}

// A pod that is begun in a frozen cgroup is there once that is thawed, or is taken back.
func TestFrozenParent(t *testing.T) {
	d := use(t)
	for name, freezer := range freezers(t) {
		t.Run(name, func(t *testing.T) {
			check(t, d)
			g := makePodCgroup(t)
			config := podConfig(t, g.use)
			t.Run("frozen", func(t *testing.T) {
				freezer.freeze(t, g.dir)
				ctx, cancel := context.WithTimeout(bounded(t), 2*time.Second)
				defer cancel()
				_, err := d.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
				refused(t, err, codes.DeadlineExceeded)
			})
			r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
			if err != nil {
				t.Fatal(err)
			}
			(&pod{d: d, id: r.GetPodSandboxId(), config: config}).remove(t)
		})
	}
}

// Work on a pod that is frozen waits until the caller gives up; then the pod can be stopped nevertheless.
func TestFrozenPodWork(t *testing.T) {
	d := use(t)
	for name, freezer := range freezers(t) {
		for _, row := range []struct {
			name string
			do   func(ctx context.Context, created, running *container) error
		}{
			{"CreateContainer", func(ctx context.Context, created, _ *container) error {
				_, err := d.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: created.p.id, Config: containerConfig(idle), SandboxConfig: created.p.config})
				return err
			}},
			{"StartContainer", func(ctx context.Context, created, _ *container) error {
				_, err := d.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.id})
				return err
			}},
			{"RemoveContainer", func(ctx context.Context, created, _ *container) error {
				_, err := d.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: created.id})
				return err
			}},
			{"ReopenContainerLog", func(ctx context.Context, _, running *container) error {
				_, err := d.runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: running.id})
				return err
			}},
		} {
			t.Run(name+", "+row.name, func(t *testing.T) {
				check(t, d)
				g := makePodCgroup(t)
				p := runPod(t, d, g.use)
				created, running := p.create(t, idle), p.start(t, idle)
				running.waitOutput(t, "ready")
				freezer.freeze(t, g.dir)
				ctx, cancel := context.WithTimeout(bounded(t), 2*time.Second)
				defer cancel()
				refused(t, row.do(ctx, created, running), codes.DeadlineExceeded)
				p.remove(t)
			})
		}
	}
}

// A criserver that finds a frozen pod starts, and can stop that.
func TestFrozenRestart(t *testing.T) {
	eachFreezer(t, func(t *testing.T, d *daemon, freezer cgroupFile, level string) {
		c, dir := toFreeze(t, d, level, "sleep 7705 & "+idle)
		q := runPod(t, d)
		other := q.start(t, idle)
		other.waitOutput(t, "ready")
		freezer.freeze(t, dir)
		alive(t, d)
		d.crash(t)
		d.resume(t)
		if got := other.exec(t, "echo x"); got != "x\n" {
			t.Errorf("exec in another pod: %q", got)
		}
		q.prints(t, "x\n", "echo x") // and the new criserver has the layer mounted, as the old one had
		c.p.remove(t)
		if n := running(t, "sleep 7705"); n != 0 {
			t.Errorf("%d processes are left", n)
		}
	})
}
