package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/test/metrictest"
)

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLife(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		ps, err := m.s.PodStatus(pod[:5])
		must(t, err)
		want(t, "pod state", ps.State, PodReady)
		want(t, "address", ps.IPs[0].String(), "10.0.0.7")
		want(t, "config verbatim", proto.Equal(ps.Config(), podConfig()), true)
		want(t, "pid of pause", ps.Pid, 42)
		st := m.status(id)
		want(t, "state", st.State, ContainerRunning)
		want(t, "config verbatim", proto.Equal(st.Config(), containerConfig()), true)
		want(t, "stop signal of the image", st.StopSignal, "SIGQUIT")
		want(t, "pid", st.Pid, 43)
		want(t, "finished before its end", st.FinishedAt.IsZero(), true)

		time.Sleep(time.Minute)
		m.process(id).exits(ociruntime.Exit{Code: 3})
		synctest.Wait()
		want(t, "earlier status is not changed", st.State, ContainerRunning)
		st = m.status(id)
		want(t, "state", st.State, ContainerExited)
		want(t, "code", st.ExitCode, int32(3))
		want(t, "reason", st.Reason, ReasonError)
		want(t, "ran for", st.FinishedAt.Sub(st.StartedAt), time.Minute)
		want(t, "stop of an exited one", m.s.StopContainer(t.Context(), id, time.Hour), nil)
		want(t, "start of an exited one", errors.Is(m.s.StartContainer(t.Context(), id), ErrState), true)

		must(t, m.s.StopPod(t.Context(), pod))
		must(t, m.s.StopPod(t.Context(), pod))
		ps, err = m.s.PodStatus(pod)
		must(t, err)
		want(t, "pod state", ps.State, PodNotReady)
		want(t, "addresses of a stopped pod", len(ps.IPs), 0)
		_, err = m.s.CreateContainer(t.Context(), pod, containerConfig(), podConfig())
		want(t, "create in a stopped pod", errors.Is(err, ErrState), true)
		must(t, m.s.RemovePod(t.Context(), pod))
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

func TestRemoveOfWhatRuns(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		must(t, m.s.RemoveContainer(t.Context(), id))
		_, err := m.s.ContainerStatus(id)
		want(t, "status of a removed one", errors.Is(err, ErrNotFound), true)
		must(t, m.s.RemoveContainer(t.Context(), id))
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

func TestReasons(t *testing.T) {
	for _, test := range []struct {
		exit   ociruntime.Exit
		reason string
	}{
		{ociruntime.Exit{Code: 0}, ReasonCompleted},
		{ociruntime.Exit{Code: 1}, ReasonError},
		{ociruntime.Exit{Code: 137, Signal: 9, OOMKilled: true}, ReasonOOMKilled},
		{ociruntime.Exit{Code: 137, Signal: 9, OOMKilled: true, Message: "of another"}, ReasonOOMKilled},
	} {
		in(t, func(t *testing.T, m *machine) {
			pod, id := m.made()
			m.process(id).exits(test.exit)
			synctest.Wait()
			want(t, "reason", m.status(id).Reason, test.reason)
			want(t, "message", m.status(id).Message, test.exit.Message)
			want(t, "counted", metrictest.Values(t, m.s.Metrics())["criserver_container_exits_total "+test.reason], 1.0)
			must(t, m.s.RemovePod(t.Context(), pod))
		})
	}
}

func TestStartError(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		id, err := m.s.CreateContainer(t.Context(), pod, containerConfig(), nil)
		must(t, err)
		m.failing("Start", errors.New("exec /bin/true: no such file, says a hook: \xff"))
		err = m.s.StartContainer(t.Context(), id)
		want(t, "error names the stage and the cause", err != nil && strings.Contains(err.Error(), "stage start: exec /bin/true"), true)
		st := m.status(id)
		want(t, "state", st.State, ContainerExited)
		want(t, "code", st.ExitCode, int32(128))
		want(t, "reason", st.Reason, ReasonStartError)
		want(t, "message", strings.Contains(st.Message, "no such file, says a hook: \uFFFD"), true)
		want(t, "started", st.StartedAt.IsZero(), true)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

func TestBadRequests(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		noName := podConfig()
		noName.Metadata.Name = ""
		otherImage := containerConfig()
		otherImage.Image.Image = "nowhere"
		otherSignal, noImage, unnamed := containerConfig(), containerConfig(), containerConfig()
		otherSignal.StopSignal, noImage.Image, unnamed.Metadata.Name = 1000, nil, ""
		target := containerConfig()
		target.Linux = &runtimev1.LinuxContainerConfig{SecurityContext: &runtimev1.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_TARGET, TargetId: "00"}}}
		run := func(c *runtimev1.PodSandboxConfig, handler string) error {
			_, err := m.s.RunPod(t.Context(), c, handler)
			return err
		}
		create := func(pod ID, c *runtimev1.ContainerConfig) error {
			_, err := m.s.CreateContainer(t.Context(), pod, c, podConfig())
			return err
		}
		exec := func(id ContainerID, cmd ...string) error {
			_, _, _, err := m.s.ExecSync(t.Context(), id, cmd, 0)
			return err
		}
		for _, test := range []struct {
			name string
			err  error
			is   error
		}{
			{"no config", run(nil, ""), ErrInvalid},
			{"no name", run(noName, ""), ErrInvalid},
			{"unknown handler", run(podConfig(), "slow"), ErrInvalid},
			{"create in nothing", create("abc", containerConfig()), ErrNotFound},
			{"create without an id", create("", containerConfig()), ErrInvalid},
			{"absent image", create(pod, otherImage), ErrNotFound},
			{"absent target", create(pod, target), ErrInvalid},
			{"no container config", create(pod, nil), ErrInvalid},
			{"start of nothing", m.s.StartContainer(t.Context(), "abc"), ErrNotFound},
			{"start twice", m.s.StartContainer(t.Context(), id), ErrState},
			{"create of another signal", create(pod, otherSignal), ErrInvalid},
			{"create of no image", create(pod, noImage), ErrInvalid},
			{"create of no name", create(pod, unnamed), ErrInvalid},
			{"exec in nothing", exec("abc", "true"), ErrNotFound},
			{"exec of nothing", exec(id), ErrInvalid},
			{"log of nothing", m.s.ReopenContainerLog(t.Context(), "abc"), ErrNotFound},
			{"no log", m.s.ReopenContainerLog(t.Context(), id), ErrState},
		} {
			if !errors.Is(test.err, test.is) {
				t.Errorf("%s: got %v, want %v", test.name, test.err, test.is)
			}
		}
		p, err := m.s.pod(pod)
		must(t, err)
		c, err := m.s.container(id)
		must(t, err)
		must(t, m.s.StopPod(t.Context(), pod))
		want(t, "start in a stopped pod", errors.Is(m.s.StartContainer(t.Context(), id), ErrState), true)
		want(t, "exec in an exited one", errors.Is(exec(id, "true"), ErrState), true)
		want(t, "log of an exited one", errors.Is(m.s.ReopenContainerLog(t.Context(), id), ErrState), true)
		must(t, m.s.RemovePod(t.Context(), pod))
		for what, again := range map[string]func(context.Context) error{ // of those that had found it before its removal
			"stop of a pod": p.stop, "removal of a pod": p.remove, "removal of a container": c.remove} {
			want(t, what+" that is gone", again(t.Context()), nil)
		}
		want(t, "stop of nothing", m.s.StopPod(t.Context(), "abc"), nil)
		want(t, "remove of nothing", m.s.RemovePod(t.Context(), "abc"), nil)
		want(t, "stop of no container", m.s.StopContainer(t.Context(), "abc", 0), nil)
		want(t, "remove of no container", m.s.RemoveContainer(t.Context(), "abc"), nil)
		m.clean()
	})
}

// A process may end after its container was seen running.
func TestProcessThatHasJustEnded(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		config, logs := containerConfig(), podConfig()
		config.LogPath, logs.LogDirectory = "log", t.TempDir()
		id, err := m.s.CreateContainer(t.Context(), pod, config, logs)
		must(t, err)
		must(t, m.s.StartContainer(t.Context(), id))
		must(t, m.s.ReopenContainerLog(t.Context(), id))
		m.failing("Exec", ociruntime.ErrNotRunning)
		m.failing("ReopenLog", ociruntime.ErrNotRunning)
		want(t, "log", errors.Is(m.s.ReopenContainerLog(t.Context(), id), ErrState), true)
		_, _, _, err = m.s.ExecSync(t.Context(), id, []string{"true"}, 0)
		want(t, "exec", errors.Is(err, ErrState), true)
		must(t, m.s.RemovePod(t.Context(), pod))
	})
}

// life is the whole life of a pod; it goes on after failures as the kubelet would.
func (m *machine) life(ctx context.Context) error {
	pod, err := m.s.RunPod(ctx, podConfig(), "fast")
	if err != nil {
		return err
	}
	id, err := m.s.CreateContainer(ctx, pod, containerConfig(), podConfig())
	if err == nil {
		err = m.s.StartContainer(ctx, id)
	}
	if err == nil {
		err = m.s.StopContainer(ctx, id, time.Second)
	}
	return errors.Join(err, m.s.RemovePod(ctx, pod))
}

func TestEveryFailureIsUndone(t *testing.T) {
	broken := errors.New("broken")
	for _, call := range []string{"Plan", "StartPod", "Pin", "Add", "Rootfs", "CreateLeaf", "Create", "Start"} {
		t.Run(call, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				m.failing(call, broken)
				err := m.life(t.Context())
				if !errors.Is(err, broken) || !strings.Contains(err.Error(), "stage ") {
					t.Errorf("got %v, want the failure of a stage", err)
				}
				m.failing(call, nil)
				m.clean()
				must(t, m.life(t.Context())) // the identity is free again
				m.clean()
			})
		})
	}
}

func TestFailingUndoIsRepeated(t *testing.T) {
	broken := errors.New("broken")
	for first, then := range map[string]string{"Add": "Stop", "Create": "ReleaseRootfs", "Pin": "Unpin"} {
		t.Run(first, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				m.failing(first, broken)
				m.failing(then, broken)
				err := m.life(t.Context())
				want(t, "failed", errors.Is(err, broken), true)
				records, err := os.ReadDir(filepath.Join(m.dir, "state/pods"))
				must(t, err)
				want(t, "pods on disk while they cannot be undone", len(records), 1)
				time.Sleep(10 * time.Minute)
				m.failing(then, nil)
				time.Sleep(10 * time.Minute)
				for _, p := range m.s.ListPods() { // the kubelet's part
					must(t, m.s.RemovePod(t.Context(), p.ID))
				}
				m.clean()
			})
		})
	}
}

func TestKillAtEveryBoundary(t *testing.T) {
	at := 0
	for killedAt(t, "", at) {
		at++
	}
	if at < 40 {
		t.Errorf("only %d boundaries were reached", at)
	}
	t.Logf("killed at %d boundaries", at)
}

// What a failure made criserver undo may be half undone when it is killed.
func TestKillWhileUndoing(t *testing.T) {
	for _, broken := range []string{"Add", "Create"} {
		at := 0
		for killedAt(t, broken, at) {
			at++
		}
		if at < 20 {
			t.Errorf("%s: only %d boundaries were reached", broken, at)
		}
		t.Logf("%s: killed at %d boundaries", broken, at)
	}
}

// A criserver may be killed again while it deals with what the last one left.
func TestKillWhileRecovering(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	reached := 0
	for first := 1; killedAt(t, "", first); first += 6 {
		for second := 0; killedAt(t, "", first, second); second++ {
			reached++
		}
	}
	if reached < 100 {
		t.Errorf("only %d boundaries were reached", reached)
	}
	t.Logf("killed at %d boundaries", reached)
}

// killedAt kills criservers, one after the other, at a boundary each: the first within a pod's life, the others while
// they recover and remove what is left. The last one is not killed and must leave nothing of the pod. In that life the call that
// is broken fails; "" is none. It returns false if there are not that many boundaries.
func killedAt(t *testing.T, broken string, boundaries ...int) bool {
	var killers []*killer
	synctest.Test(t, func(t *testing.T) {
		m := &machine{node: newNode(), t: t, dir: t.TempDir(), boot: "boot-1"}
		work := m.life
		if broken != "" {
			m.failing(broken, errors.New("broken"))
		}
		for _, at := range boundaries {
			ctx, cancel := context.WithCancel(t.Context())
			k := &killer{at: at, kill: func() {
				cancel()
				m.s.halt()
			}}
			killers = append(killers, k)
			m.at = k.boundary
			m.start(k.boundary)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = work(ctx)
			}()
			synctest.Wait()
			time.Sleep(3 * time.Hour)
			m.crash()
			cancel()
			m.s.Close(ctx) // ends those that wait for what was killed; each of their effects is a boundary too
			<-ended
			m.behind.Wait()
			m.at = nil
			m.failing(broken, nil)
			work = m.tidy
		}
		m.start(nil)
		<-m.s.Recovered()
		must(t, m.tidy(t.Context()))
		m.clean()
		if t.Failed() {
			for _, k := range killers {
				t.Logf("killed %s", k.where)
			}
		}
		m.s.Close(t.Context())
		m.behind.Wait()
	})
	return killers[len(killers)-1].where != ""
}

// tidy removes what the kubelet did not ask for, which it does when criserver has had its time to recover.
func (m *machine) tidy(ctx context.Context) error {
	time.Sleep(time.Hour)
	var errs []error
	for _, p := range m.s.ListPods() {
		errs = append(errs, m.s.RemovePod(ctx, p.ID))
	}
	return errors.Join(errs...)
}

// killer ends a criserver at a boundary as SIGKILL would: nothing is undone, and nothing more is done.
type killer struct {
	mu    sync.Mutex
	at    int
	where string // it happened
	kill  func()
}

func (k *killer) boundary(name string) {
	k.mu.Lock()
	k.at--
	now := k.at == -1
	if now {
		k.where = name
	}
	dead := k.where != ""
	k.mu.Unlock()
	if now {
		k.kill()
	}
	if dead {
		runtime.Goexit()
	}
}

func TestCorruptRecordCostsOneObject(t *testing.T) {
	for _, name := range []string{podRecordName, containerPrefix + "*"} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				pod, _ := m.made()
				files, err := filepath.Glob(filepath.Join(m.dir, "state/pods", string(pod), name))
				must(t, err)
				want(t, "records found", len(files), 1)
				must(t, os.WriteFile(files[0], []byte("garbage"), 0o600))
				m.restart()
				time.Sleep(time.Minute)
				aside, err := filepath.Glob(filepath.Join(m.dir, "state/corrupt/*"))
				must(t, err)
				want(t, "set aside", len(aside), 1)
				want(t, "containers", len(m.s.ListContainers()), 0)
				if name != podRecordName {
					want(t, "pods", len(m.s.ListPods()), 1)
					must(t, m.s.RemovePod(t.Context(), pod))
				}
				time.Sleep(time.Minute)
				m.clean()
			})
		})
	}
}
