package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRealLife(t *testing.T) {
	r := newRealNode(t)
	pod, err := r.s.RunPod(t.Context(), r.podConfig("life"), "")
	r.must(err)
	config := r.containerConfig("main", "sh", "-c", "hostname; id -u; cat /data/seed; echo x > /data/new; cat /host/file; echo bad >&2; exit 5")
	config.Mounts = []*runtimev1.Mount{{ContainerPath: "/host", HostPath: r.dir + "/made/here"}}
	config.Linux.SecurityContext.RunAsUsername = "app"
	config.Linux.SecurityContext.RunAsUser = nil
	id, err := r.s.CreateContainer(t.Context(), pod, config, nil)
	r.must(err)
	r.must(os.WriteFile(r.dir+"/made/here/file", []byte("from the host\n"), 0o644))
	r.must(r.s.StartContainer(t.Context(), id))
	st := r.exited(id)
	want(t, "code", st.ExitCode, int32(5))
	want(t, "reason", st.Reason, ReasonError)
	want(t, "user", st.User.UID, uint32(1000))
	want(t, "times are in order", st.CreatedAt.Before(st.StartedAt) && !st.FinishedAt.Before(st.StartedAt), true)
	log := r.log("main")
	for _, line := range []string{"h-life|1000|seed", "from the host", "bad"} {
		if !strings.Contains(log, line) {
			t.Errorf("log lacks %q: %s", line, log)
		}
	}
	r.must(r.s.RemovePod(t.Context(), pod))
	if _, err := os.Stat(r.dir + "/logs/main.log"); err != nil {
		t.Errorf("the log is gone: %v", err)
	}
}

func TestRealStartError(t *testing.T) {
	r := newRealNode(t)
	pod, err := r.s.RunPod(t.Context(), r.podConfig("starterror"), "")
	r.must(err)
	id, err := r.s.CreateContainer(t.Context(), pod, r.containerConfig("main", "/bin/nothing"), nil)
	r.must(err)
	err = r.s.StartContainer(t.Context(), id)
	if err == nil || !strings.Contains(err.Error(), "/bin/nothing") {
		t.Errorf("got %v, want an error that names the program", err)
	}
	st, err := r.s.ContainerStatus(id)
	r.must(err)
	want(t, "code", st.ExitCode, int32(128))
	want(t, "reason", st.Reason, ReasonStartError)
	config := r.containerConfig("user", "true")
	config.Linux.SecurityContext.RunAsUsername = "nobody-here"
	_, err = r.s.CreateContainer(t.Context(), pod, config, nil)
	want(t, "missing user is an error", err != nil && strings.Contains(err.Error(), "nobody-here"), true)
}

func TestRealStopAndExec(t *testing.T) {
	r := newRealNode(t)
	pod, err := r.s.RunPod(t.Context(), r.podConfig("stop"), "")
	r.must(err)
	// The shell ignores TERM, and leaves a child that does as well.
	id := r.run(pod, r.containerConfig("main", "sh", "-c", "trap '' TERM; sleep 1000 & echo ready; while :; do sleep 1000; done"))
	stdout, stderr, code, err := r.s.ExecSync(t.Context(), id, []string{"sh", "-c", "echo out; echo err >&2; echo more > /dev/stdout; exit 3"}, time.Minute)
	r.must(err)
	want(t, "stdout", string(stdout), "out\nmore\n")
	want(t, "stderr", string(stderr), "err\n")
	want(t, "code", code, int32(3))
	_, _, _, err = r.s.ExecSync(t.Context(), id, []string{"sh", "-c", "sleep 999 & sleep 999"}, 100*time.Millisecond)
	want(t, "timeout", errors.Is(err, ErrExecTimeout), true)
	stdout, _, _, err = r.s.ExecSync(t.Context(), id, []string{"sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"}, time.Minute)
	r.must(err)
	want(t, "the command died with its children", strings.Contains(string(stdout), "sleep 999 "), false)
	_, _, _, err = r.s.ExecSync(t.Context(), id, []string{"/bin/nothing"}, time.Minute)
	want(t, "missing command", err != nil && strings.Contains(err.Error(), "/bin/nothing"), true)

	r.must(os.Rename(r.dir+"/logs/main.log", r.dir+"/logs/old"))
	r.must(r.s.ReopenContainerLog(t.Context(), id))
	if _, err := os.Stat(r.dir + "/logs/main.log"); err != nil {
		t.Errorf("no new log: %v", err)
	}
	began := time.Now()
	r.must(r.s.StopContainer(t.Context(), id, 300*time.Millisecond))
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("stop took %s, less than the grace", took)
	}
	st, err := r.s.ContainerStatus(id)
	r.must(err)
	want(t, "code", st.ExitCode, 128+int32(unix.SIGKILL))
	want(t, "reopen of an exited one", errors.Is(r.s.ReopenContainerLog(t.Context(), id), ErrState), true)
}

func TestRealRestart(t *testing.T) {
	r := newRealNode(t)
	pod, err := r.s.RunPod(t.Context(), r.podConfig("restart"), "")
	r.must(err)
	running := r.run(pod, r.containerConfig("running", "sh", "-c", "echo one; cat /data/seed; sleep 1000"))
	config := r.containerConfig("ending", "sh", "-c", "while ! [ -e /host/go ]; do sleep 0.05; done; exit 9")
	config.Mounts = []*runtimev1.Mount{{ContainerPath: "/host", HostPath: r.dir + "/signal"}}
	ending := r.run(pod, config)
	created, err := r.s.CreateContainer(t.Context(), pod, r.containerConfig("created", "sh", "-c", "echo late"), nil)
	r.must(err)
	r.crash()
	r.must(os.WriteFile(r.dir+"/signal/go", nil, 0o644))
	r.start(nil)
	want(t, "layers that pause gave back", len(r.adopted), 1)
	want(t, "code of what ended", r.exited(ending).ExitCode, int32(9))
	st, err := r.s.ContainerStatus(running)
	r.must(err)
	want(t, "running", st.State, ContainerRunning)
	want(t, "pid is known", st.Pid > 0, true)
	stdout, _, _, err := r.s.ExecSync(t.Context(), running, []string{"echo", "hello"}, time.Minute)
	r.must(err)
	want(t, "exec after the restart", string(stdout), "hello\n")
	r.must(r.s.StartContainer(t.Context(), created))
	want(t, "start after the restart", r.exited(created).ExitCode, int32(0))
	want(t, "its log", r.log("created"), "late")
	r.must(r.s.StopContainer(t.Context(), running, 0))
	want(t, "stop after the restart", r.exited(running).ExitCode, int32(137))
	r.crash()
	r.start(nil)
	want(t, "exit is remembered", r.exited(running).ExitCode, int32(137))
}

// crash ends criserver as far as the pods can tell: all its connections end and nothing is undone.
func (r *realNode) crash() {
	r.s.halt()
	r.s.background.Wait()
}

func TestRealDeathOfPause(t *testing.T) {
	r := newRealNode(t)
	pod, err := r.s.RunPod(t.Context(), r.podConfig("death"), "")
	r.must(err)
	id := r.run(pod, r.containerConfig("main", "sh", "-c", "sleep 1000 & sleep 1000"))
	st, err := r.s.PodStatus(pod)
	r.must(err)
	r.must(unix.Kill(st.Pid, unix.SIGKILL))
	ended := r.exited(id)
	want(t, "code", ended.ExitCode, int32(137))
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(time.Millisecond) { // it is told beside the container's end
		st, err = r.s.PodStatus(pod)
		r.must(err)
		if st.State == PodNotReady {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod: got %v, want %v", st.State, PodNotReady)
		}
	}
	r.must(r.s.RemovePod(t.Context(), pod))
}

// TestRealNetworkNamespace has a real network namespace and plugins that are not real.
func TestRealNetworkNamespace(t *testing.T) {
	r := newRealNode(t)
	config := r.podConfig("net")
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimev1.NamespaceMode_POD
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	pod, err := r.s.RunPod(t.Context(), config, "")
	r.must(err)
	id := r.run(pod, r.containerConfig("main", "sh", "-c", "readlink /proc/self/ns/net; cat /proc/sys/net/ipv4/ip_forward; cat /proc/net/if_inet6"))
	r.exited(id)
	pin := r.dir + "/netns/cri-" + string(pod)
	var st unix.Stat_t
	r.must(unix.Stat(pin, &st))
	log := strings.Split(r.log("main"), "|")
	want(t, "the container is in the pinned namespace", log[0], fmt.Sprintf("net:[%d]", st.Ino))
	want(t, "sysctl", log[1], "1")
	want(t, "lo is up", len(log) == 3 && strings.HasSuffix(log[2], " lo"), true)
	r.crash()
	r.start(nil)
	shown, err := r.s.PodStatus(pod)
	r.must(err)
	want(t, "address after the restart", len(shown.IPs), 1)
	r.must(r.s.StopPod(t.Context(), pod))
	_, err = os.Lstat(pin)
	want(t, "pin is gone", errors.Is(err, os.ErrNotExist), true)
	want(t, "addresses", len(r.attached), 0)
}

func TestRealPodsInParallel(t *testing.T) {
	r := newRealNode(t)
	const n = 8
	errs := make(chan error, n)
	for i := range n {
		go func() {
			errs <- func() error {
				pod, err := r.s.RunPod(t.Context(), r.podConfig("p"+string(rune('a'+i))), "")
				if err != nil {
					return err
				}
				id, err := r.s.CreateContainer(t.Context(), pod, r.containerConfig("c"+string(rune('a'+i)), "sleep", "1000"), nil)
				if err == nil {
					err = r.s.StartContainer(t.Context(), id)
				}
				return errors.Join(err, r.s.RemovePod(t.Context(), pod))
			}()
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	want(t, "pods left", len(r.s.ListPods()), 0)
}

// BenchmarkRealPod is the life of a pod on the host's network, and how much of it each call takes.
func BenchmarkRealPod(b *testing.B) {
	r := newRealNode(b)
	var took [5]time.Duration
	for b.Loop() {
		at := time.Now()
		lap := func(i int) {
			took[i] += time.Since(at)
			at = time.Now()
		}
		pod, err := r.s.RunPod(b.Context(), r.podConfig("bench"), "")
		r.must(err)
		lap(0)
		id, err := r.s.CreateContainer(b.Context(), pod, r.containerConfig("main", "sleep", "1000"), nil)
		r.must(err)
		lap(1)
		r.must(r.s.StartContainer(b.Context(), id))
		lap(2)
		r.must(r.s.StopPod(b.Context(), pod))
		lap(3)
		r.must(r.s.RemovePod(b.Context(), pod))
		lap(4)
	}
	for i, call := range []string{"RunPod", "Create", "Start", "StopPod", "RemovePod"} {
		b.ReportMetric(float64(took[i].Microseconds())/1000/float64(b.N), call+"-ms")
	}
}

func BenchmarkRealExecSync(b *testing.B) {
	r := newRealNode(b)
	pod, err := r.s.RunPod(b.Context(), r.podConfig("bench"), "")
	r.must(err)
	id := r.run(pod, r.containerConfig("main", "sleep", "1000"))
	b.ReportAllocs()
	for b.Loop() {
		_, _, _, err := r.s.ExecSync(b.Context(), id, []string{"true"}, time.Minute)
		r.must(err)
	}
}

// Nothing is left of a pod whose record cannot be read, also of one whose pause died meanwhile: end would find its cgroups.
func TestRealUnreadableRecord(t *testing.T) {
	for name, meanwhile := range map[string]func(pause int) error{
		"its pause lives": func(int) error { return nil },
		"its pause died":  func(pause int) error { return unix.Kill(pause, unix.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRealNode(t)
			pod, err := r.s.RunPod(t.Context(), r.podConfig("unreadable"), "")
			r.must(err)
			r.run(pod, r.containerConfig("main", "sh", "-c", "sleep 1000 & sleep 1000"))
			_, err = r.s.CreateContainer(t.Context(), pod, r.containerConfig("created", "true"), nil)
			r.must(err)
			st, err := r.s.PodStatus(pod)
			r.must(err)
			r.crash()
			r.must(meanwhile(st.Pid))
			r.must(os.WriteFile(filepath.Join(r.dir, "state/pods", string(pod), podRecordName), []byte("garbage"), 0o600))
			r.start(nil)
			want(t, "pods", len(r.s.ListPods()), 0)
		})
	}
}
