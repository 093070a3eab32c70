package critest

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExec(t *testing.T) {
	d := use(t)
	p := runPod(t, d, func(c *cri.PodSandboxConfig) { podNetwork(c); c.Hostname = "exechost" })
	c := p.start(t, idle, func(c *cri.ContainerConfig) {
		c.WorkingDir = "/tmp"
		c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("config")}}
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		c.Linux.SecurityContext.SupplementalGroups = []int64{4000}
		c.Linux.SecurityContext.NoNewPrivs = true
		c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
	})
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	for _, row := range []struct {
		name           string
		cmd            []string
		code           int32
		stdout, stderr string
	}{
		{"nothing", []string{"true"}, 0, "", ""},
		{"stdout", []string{"echo", "out"}, 0, "out\n", ""},
		{"both streams", sh("echo out; echo err >&2"), 0, "out\n", "err\n"},
		{"exit code", sh("exit 41"), 41, "", ""},
		{"ended by a signal", sh("kill -KILL $$"), 137, "", ""},
		{"no end of line", []string{"printf", `a\0b`}, 0, "a\x00b", ""},
		{"environment, directory", sh("echo $A $HOME; pwd"), 0, "config /home/bob\n/tmp\n", ""},
		{"user and groups", sh("id -u; id -g; id -G"), 0, "1000\n1001\n1001 29 50 4000\n", ""},
		{"host name", []string{"hostname"}, 0, "exechost\n", ""},
		{"capabilities, seccomp", []string{"grep", "-E", "^(CapEff|CapBnd|NoNewPrivs)", "/proc/self/status"}, 0, "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n", ""},
		{"stdin is empty", []string{"cat"}, 0, "", ""},
		{"/dev/stdout opened again by the user", sh("echo a >/dev/stdout; echo b >/dev/stderr"), 0, "a\n", "b\n"},
		{"in the container's namespaces", sh("for n in mnt pid net ipc uts; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done"), 0, "", ""},
		{"no foreign descriptors", []string{"ls", "/proc/self/fd"}, 0, "0\n1\n2\n3\n", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := c.tryExec(t, execBound, row.cmd...)
			if err != nil {
				t.Fatal(err)
			}
			if r.GetExitCode() != row.code || string(r.GetStdout()) != row.stdout || string(r.GetStderr()) != row.stderr {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q", r.GetExitCode(), r.GetStdout(), r.GetStderr(), row.code, row.stdout, row.stderr)
			}
		})
	}
}

func TestExecRefused(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	created, exited, running := p.create(t, idle), p.start(t, "true"), p.start(t, idle)
	exited.wait(t)
	for _, row := range []struct {
		name string
		id   string
		cmd  []string
		code codes.Code
		text string
	}{
		{"unknown container", strings.Repeat("1", 64), []string{"true"}, codes.NotFound, strings.Repeat("1", 64)},
		{"created container", created.id, []string{"true"}, codes.FailedPrecondition, "is not running"},
		{"exited container", exited.id, []string{"true"}, codes.FailedPrecondition, "is not running"},
		{"no command", running.id, nil, codes.InvalidArgument, "cmd"},
		{"no container", "", []string{"true"}, codes.InvalidArgument, "container_id"},
		{"missing program", running.id, []string{"/no/such/program"}, codes.Unknown, "no such file or directory"},
		{"missing program in PATH", running.id, []string{"no-such-program"}, codes.Unknown, "no-such-program"},
		{"not executable", running.id, []string{"/etc/passwd"}, codes.Unknown, "permission denied"},
		{"directory", running.id, []string{"/etc"}, codes.Unknown, "permission denied"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := d.runtime.ExecSync(bounded(t), &cri.ExecSyncRequest{ContainerId: row.id, Cmd: row.cmd, Timeout: execBound})
			refused(t, err, row.code, row.text)
		})
	}
}

// A timeout kills the command and its children, and nothing else.
func TestExecTimeout(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	began := time.Now()
	_, err := c.tryExec(t, 1, "sh", "-c", "trap '' TERM; sleep 7777 & sleep 7777")
	refused(t, err, codes.DeadlineExceeded, "1s")
	if took := time.Since(began); took < time.Second {
		t.Errorf("took %v", took)
	}
	if n := running(t, "sleep 7777"); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if s := c.status(t).GetState(); s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", s)
	}
}

// A client that goes away takes its command with it.
func TestExecCancelled(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	ctx, cancel := context.WithCancel(bounded(t))
	ended := make(chan error, 1)
	go func() {
		_, err := d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "7778"}})
		ended <- err
	}()
	eventually(t, rpcBound, "the command runs", func() bool { return running(t, "sleep 7778") == 1 })
	cancel()
	refused(t, <-ended, codes.Canceled)
	eventually(t, settleBound, "the command is gone", func() bool { return running(t, "sleep 7778") == 0 })
}

// A child that keeps the output open does not keep the call.
func TestExecBackgroundChild(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	for _, timeout := range []int64{0, execBound} {
		r, err := c.tryExec(t, timeout, "sh", "-c", "sleep 7779 & echo begun")
		if err != nil || string(r.GetStdout()) != "begun\n" || r.GetExitCode() != 0 {
			t.Errorf("timeout %d: %v, %v", timeout, r, err)
		}
	}
}

// Of each stream 16 MiB are kept; the command is not stopped by what is dropped.
func TestExecLargeOutput(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	for _, row := range []struct {
		name, script   string
		stdout, stderr int
	}{
		{"exactly as much", "head -c 16777216 /dev/zero", 16 << 20, 0},
		{"more, twice", "head -c 20000000 /dev/zero & head -c 17000000 /dev/zero >&2; wait", 16 << 20, 16 << 20},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := c.tryExec(t, execBound, "sh", "-c", row.script)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.GetStdout()) != row.stdout || len(r.GetStderr()) != row.stderr || r.GetExitCode() != 0 {
				t.Errorf("%d bytes of stdout, %d of stderr, exit code %d", len(r.GetStdout()), len(r.GetStderr()), r.GetExitCode())
			}
		})
	}
}

func TestExecParallel(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	const workers, each = 8, 20
	failed := make(chan error, workers*each)
	for range workers {
		go func() {
			for range each {
				r, err := d.runtime.ExecSync(bounded(t), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"echo", "x"}})
				if err == nil && string(r.GetStdout()) != "x\n" {
					t.Errorf("stdout %q", r.GetStdout())
				}
				failed <- err
			}
		}()
	}
	for range workers * each {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// What an exec leaves behind ends with the container.
func TestExecDaemonised(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	c.exec(t, "setsid sleep 7780 >/dev/null 2>&1 </dev/null &")
	c.stop(t, 0)
	if s := c.status(t); s.GetExitCode() != 137 {
		t.Errorf("exit code %d", s.GetExitCode())
	}
}
