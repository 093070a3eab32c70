package critest

import (
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestContainerLife(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.create(t, idle)
	if s := c.status(t); s.GetState() != cri.ContainerState_CONTAINER_CREATED || s.GetStartedAt() != 0 || s.GetCreatedAt() == 0 {
		t.Errorf("after CreateContainer: %v", s)
	}
	if err := c.tryStart(t); err != nil {
		t.Fatal(err)
	}
	s := c.status(t)
	if s.GetState() != cri.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() < s.GetCreatedAt() || s.GetFinishedAt() != 0 {
		t.Errorf("after StartContainer: %v", s)
	}
	refused(t, c.tryStart(t), codes.FailedPrecondition, c.id)
	c.waitOutput(t, "ready") // before that, PID 1 ignores the signal
	c.stop(t, 10)
	s = c.status(t)
	if s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetFinishedAt() < s.GetStartedAt() || s.GetExitCode() != 0 || s.GetReason() != "Completed" {
		t.Errorf("after StopContainer: %v", s)
	}
	refused(t, c.tryStart(t), codes.FailedPrecondition, c.id)
	c.stop(t, 10)
	c.remove(t)
	c.remove(t)
	_, err := d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id})
	refused(t, err, codes.NotFound, c.id)
}

func TestContainerRemove(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	for name, prepare := range map[string]func() *container{
		"created": func() *container { return p.create(t, idle) },
		"running": func() *container { return p.start(t, idle) },
		"exited":  func() *container { c := p.start(t, "exit 1"); c.wait(t); return c },
	} {
		c := prepare()
		c.remove(t)
		if _, err := d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id}); err == nil {
			t.Errorf("a %s container is there after its removal", name)
		}
	}
}

func TestContainerAttributes(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	labels, annotations := map[string]string{"l": "1"}, map[string]string{"a": "2"}
	c := p.create(t, idle, func(c *cri.ContainerConfig) {
		c.Metadata = &cri.ContainerMetadata{Name: "main", Attempt: 5}
		c.Labels, c.Annotations = labels, annotations
		c.Image.UserSpecifiedImage = "busybox"
		c.Image.Annotations = map[string]string{"i": "3"}
	})
	s := c.status(t)
	if m := s.GetMetadata(); m.GetName() != "main" || m.GetAttempt() != 5 {
		t.Errorf("metadata %v", m)
	}
	same(t, "labels", s.GetLabels(), labels)
	same(t, "annotations", s.GetAnnotations(), annotations)
	same(t, "image annotations", s.GetImage().GetAnnotations(), map[string]string{"i": "3"})
	if s.GetImage().GetImage() != "busybox" {
		t.Errorf("image %q", s.GetImage().GetImage())
	}
	r, err := d.images.ImageStatus(bounded(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: suite.busybox}})
	if err != nil {
		t.Fatal(err)
	}
	if s.GetImageId() != r.GetImage().GetId() || s.GetImageRef() != r.GetImage().GetRepoDigests()[0] {
		t.Errorf("image id %q, ref %q; the image is %v", s.GetImageId(), s.GetImageRef(), r.GetImage())
	}
	if s.GetLogPath() != c.log() {
		t.Errorf("log path %q instead of %q", s.GetLogPath(), c.log())
	}
	if s.GetStopSignal() != cri.Signal_SIGNAL_SIGTERM {
		t.Errorf("stop signal %s", s.GetStopSignal())
	}
}

func TestContainerFilters(t *testing.T) {
	d := use(t)
	p, q := runPod(t, d), runPod(t, d)
	label := func(v string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Labels = map[string]string{"which": v} }
	}
	created, running, exited, other := p.create(t, idle, label("a")), p.start(t, idle, label("b")), p.start(t, "true", label("a")), q.start(t, idle, label("a"))
	exited.wait(t)
	state := func(s cri.ContainerState) *cri.ContainerStateValue { return &cri.ContainerStateValue{State: s} }
	for _, row := range []struct {
		name   string
		filter *cri.ContainerFilter
		want   []*container
	}{
		{"none", nil, []*container{created, running, exited, other}},
		{"id", &cri.ContainerFilter{Id: running.id}, []*container{running}},
		{"unknown id", &cri.ContainerFilter{Id: strings.Repeat("f", 64)}, nil},
		{"pod", &cri.ContainerFilter{PodSandboxId: p.id}, []*container{created, running, exited}},
		{"created", &cri.ContainerFilter{State: state(cri.ContainerState_CONTAINER_CREATED)}, []*container{created}},
		{"running", &cri.ContainerFilter{State: state(cri.ContainerState_CONTAINER_RUNNING)}, []*container{running, other}},
		{"exited", &cri.ContainerFilter{State: state(cri.ContainerState_CONTAINER_EXITED)}, []*container{exited}},
		{"label", &cri.ContainerFilter{LabelSelector: map[string]string{"which": "a"}}, []*container{created, exited, other}},
		{"label, pod and state", &cri.ContainerFilter{LabelSelector: map[string]string{"which": "a"}, PodSandboxId: p.id, State: state(cri.ContainerState_CONTAINER_EXITED)}, []*container{exited}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := d.runtime.ListContainers(bounded(t), &cri.ListContainersRequest{Filter: row.filter})
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, c := range row.want {
				want = append(want, c.id)
			}
			listed(t, r.GetContainers(), want)
		})
	}
}

// Docker's rules of command, args, environment and working directory.
func TestContainerProcess(t *testing.T) {
	d := use(t)
	image := pullNew(t, d, "process", ocispec.ImageConfig{
		Entrypoint: []string{"echo", "entrypoint"}, Cmd: []string{"cmd"}, Env: []string{"A=image", "B=image", "PATH=/bin:/other"}, WorkingDir: "/var",
	})
	p := runPod(t, d)
	env := func(pairs ...string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			for i := 0; i < len(pairs); i += 2 {
				c.Envs = append(c.Envs, &cri.KeyValue{Key: pairs[i], Value: []byte(pairs[i+1])})
			}
		}
	}
	for _, row := range []struct {
		name          string
		command, args []string
		change        func(*cri.ContainerConfig)
		want          string
	}{
		{"neither", nil, nil, nil, "entrypoint cmd\n"},
		{"args", nil, []string{"args"}, nil, "entrypoint args\n"},
		{"command", []string{"echo", "command"}, nil, nil, "command\n"},
		{"both", []string{"echo", "command"}, []string{"args"}, nil, "command args\n"},
		{"image's environment", []string{"sh", "-c", "echo $A $B $PATH"}, nil, nil, "image image /bin:/other\n"},
		{"environment", []string{"sh", "-c", "echo $A $B $C"}, nil, env("A", "config", "C", "config"), "config image config\n"},
		{"variable twice", []string{"sh", "-c", "echo $A; env | grep -c ^A="}, nil, env("A", "1", "A", "2"), "2\n1\n"},
		{"empty variable", []string{"sh", "-c", "echo ${A-unset}"}, nil, env("A", ""), "\n"},
		{"value with = and spaces", []string{"sh", "-c", `echo "$A"`}, nil, env("A", "x=y  z"), "x=y  z\n"},
		{"HOME", []string{"sh", "-c", "echo $HOME"}, nil, nil, "/root\n"},
		{"image's directory", []string{"pwd"}, nil, nil, "/var\n"},
		{"directory", []string{"pwd"}, nil, func(c *cri.ContainerConfig) { c.WorkingDir = "/tmp" }, "/tmp\n"},
		{"directory that is not there", []string{"pwd"}, nil, func(c *cri.ContainerConfig) { c.WorkingDir = "/not/there" }, "/not/there\n"},
		{"absolute path", []string{"/bin/echo", "x"}, nil, nil, "x\n"},
		{"path relative to the directory", []string{"./echo", "x"}, nil, func(c *cri.ContainerConfig) { c.WorkingDir = "/bin" }, "x\n"},
		{"odd arguments", []string{"echo", "-e", "a b", "", `c"d'`, "é\n."}, nil, nil, "a b  c\"d' é\n.\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, row.want, "", func(c *cri.ContainerConfig) {
				c.Image.Image, c.Command, c.Args = image, row.command, row.args
				if row.change != nil {
					row.change(c)
				}
			})
		})
	}
}

func TestContainerExit(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	for _, row := range []struct {
		name, script string
		memory       int64
		code         int32
		reason       string
	}{
		{"success", "exit 0", 0, 0, "Completed"},
		{"code", "exit 42", 0, 42, "Error"},
		{"highest code", "exit 255", 0, 255, "Error"},
		{"killed by itself", "(sleep 0.1; kill -KILL 1) & kill -KILL $$; exit 7", 0, 7, "Error"},
		{"children left", "sleep 1000 & sleep 1000 & exit 5", 0, 5, "Error"},
		{"out of memory", "dd if=/dev/zero of=/dev/null bs=40M count=2", 15 << 20, 137, "OOMKilled"},
		{"child out of memory, survived", "dd if=/dev/zero of=/dev/null bs=40M count=2; exit 0", 15 << 20, 0, "Completed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, row.script, func(c *cri.ContainerConfig) {
				c.Linux.Resources.MemoryLimitInBytes = row.memory
				if row.reason == "OOMKilled" {
					c.Command = append([]string{}, strings.Fields(row.script)...)
				}
			})
			s := c.wait(t)
			if s.GetExitCode() != row.code || s.GetReason() != row.reason {
				t.Errorf("exit code %d, reason %q, message %q; want %d, %q", s.GetExitCode(), s.GetReason(), s.GetMessage(), row.code, row.reason)
			}
			if s.GetFinishedAt() < s.GetStartedAt() || time.Since(time.Unix(0, s.GetFinishedAt())) > rpcBound {
				t.Errorf("started at %d, finished at %d", s.GetStartedAt(), s.GetFinishedAt())
			}
		})
	}
}

// never is a grace, in seconds, for which no call waits: one that does fails at rpcBound.
const never = 1_000_000

func TestContainerStop(t *testing.T) {
	d := use(t)
	image := pullNew(t, d, "stopsignal", ocispec.ImageConfig{StopSignal: "SIGUSR1"})
	p := runPod(t, d)
	trap := func(sig string) string { // ends with 3 on sig, ignores TERM
		return "trap '' TERM; trap 'exit 3' " + sig + "; echo ready; while :; do sleep 1000 & wait $!; done"
	}
	for _, row := range []struct {
		name, script string
		grace        int64
		change       func(*cri.ContainerConfig)
		code         int32
	}{
		{"heeds TERM", "trap 'exit 9' TERM; echo ready; while :; do sleep 1000 & wait $!; done", never, nil, 9},
		{"ignores TERM", "trap '' TERM; echo ready; while :; do sleep 1000; done", 1, nil, 137},
		{"no grace", "trap 'exit 9' TERM; echo ready; while :; do sleep 1000 & wait $!; done", 0, nil, 137},
		{"image's signal", trap("USR1"), never, func(c *cri.ContainerConfig) { c.Image.Image = image }, 3},
		{"signal", trap("HUP"), never, func(c *cri.ContainerConfig) { c.StopSignal = cri.Signal_SIGNAL_SIGHUP }, 3},
		{"signal over image's", trap("HUP"), never, func(c *cri.ContainerConfig) { c.Image.Image, c.StopSignal = image, cri.Signal_SIGNAL_SIGHUP }, 3},
		{"many processes", "trap '' TERM; for i in $(seq 50); do (trap '' TERM; sleep 1000) & done; echo ready; wait", 0, nil, 137},
		{"stopped by STOP", "trap 'exit 9' TERM; echo ready; kill -STOP $$; sleep 1000", 0, nil, 137},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, row.script, func(c *cri.ContainerConfig) {
				if row.change != nil {
					row.change(c)
				}
			})
			c.waitOutput(t, "ready")
			began := time.Now()
			c.stop(t, row.grace)
			if took := time.Since(began); row.code == 137 && took < time.Duration(row.grace)*time.Second {
				t.Errorf("killed after %v of a grace of %d s", took, row.grace)
			}
			if s := c.status(t); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != row.code {
				t.Errorf("%s, exit code %d instead of %d", s.GetState(), s.GetExitCode(), row.code)
			}
		})
	}
}

// A stop with a shorter grace than one that is under way does not wait for that one.
func TestContainerStopSooner(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, "trap 'echo signalled' TERM; echo ready; while :; do sleep 1000 & wait $!; done")
	c.waitOutput(t, "ready")
	slow := make(chan error, 1)
	go func() {
		_, err := d.runtime.StopContainer(bounded(t), &cri.StopContainerRequest{ContainerId: c.id, Timeout: never})
		slow <- err
	}()
	c.waitOutput(t, "signalled")
	c.stop(t, 0)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

func TestContainerStopCreated(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.create(t, idle)
	c.stop(t, 5)
	if s := c.status(t); s.GetState() == cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %s", s.GetState())
	}
}
