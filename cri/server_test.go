package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/criserver/criserver/cri/streaming"
	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/stage"
)

func TestToStatus(t *testing.T) {
	for _, test := range []struct {
		err  error
		code codes.Code
	}{
		{fmt.Errorf("%w: x", errInvalid), codes.InvalidArgument},
		{errStarting, codes.Unavailable},
		{fmt.Errorf("pod x: %w", sandbox.ErrNotFound), codes.NotFound},
		{fmt.Errorf("%w: x", sandbox.ErrInvalid), codes.InvalidArgument},
		{fmt.Errorf("x: %w", sandbox.ErrState), codes.FailedPrecondition},
		{fmt.Errorf("x: %w", sandbox.ErrExecTimeout), codes.DeadlineExceeded},
		{fmt.Errorf("x: %w", streaming.ErrTooMany), codes.ResourceExhausted},
		{fmt.Errorf("x: %w", stage.ErrSuperseded), codes.Aborted},
		{fmt.Errorf("x: %w", stage.ErrClosed), codes.Unavailable},
		{fmt.Errorf("in stage x: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("x: %w", context.Canceled), codes.Canceled},
		{fmt.Errorf("%w: connection refused", crierrors.ErrRegistryUnavailable), codes.Unknown},
		{fmt.Errorf("x: %w", &stage.PanicError{Value: "oh"}), codes.Internal},
		{status.Error(codes.Unimplemented, "x"), codes.Unimplemented},
		{errors.New("mount proc on /proc: operation not permitted (instruction 14)"), codes.Unknown},
	} {
		got := status.Convert(toStatus(test.err, nil))
		if got.Code() != test.code || !strings.Contains(test.err.Error(), got.Message()) {
			t.Errorf("%v: got %v %q, want %v", test.err, got.Code(), got.Message(), test.code)
		}
	}
	if err := toStatus(nil, nil); err != nil {
		t.Errorf("nil became %v", err)
	}
}

// Errors that clients know by the begin of their text have that begin, wherever the stage stands.
func TestFirstWords(t *testing.T) {
	for _, test := range []struct {
		err  error
		code codes.Code
		want string
	}{
		{fmt.Errorf("stage image volumes: %w: image x on /y: %w", crierrors.ErrImageVolumeMountFailed, sandbox.ErrNotFound), codes.Unknown,
			"ImageVolumeMountFailed: stage image volumes: image x on /y: not found"},
		{fmt.Errorf("stage spec: %w: %w: no", sandbox.ErrInvalid, crierrors.ErrRROUnsupported), codes.InvalidArgument, "RROUnsupported: stage spec: invalid request: no"},
		{fmt.Errorf("%w: pull x: no route", imageservice.ErrRegistryUnavailable), codes.Unknown, "RegistryUnavailable: pull x: no route"},
	} {
		if got := status.Convert(toStatus(test.err, nil)); got.Code() != test.code || got.Message() != test.want {
			t.Errorf("%v: got %v %q, want %v %q", test.err, got.Code(), got.Message(), test.code, test.want)
		}
	}
}

func TestBeforeStart(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	if v, err := c.Version(ctx, &runtimev1.VersionRequest{}); err != nil || v.GetRuntimeName() != "criserver" || v.GetRuntimeVersion() != "1.2.3" || v.GetRuntimeApiVersion() != "v1" || v.GetVersion() == "" {
		t.Errorf("Version: got %v, %v", v, err)
	}
	if r, err := c.RuntimeConfig(ctx, &runtimev1.RuntimeConfigRequest{}); err != nil || r.GetLinux().GetCgroupDriver() != runtimev1.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig: got %v, %v", r, err)
	}
	s, err := c.Status(ctx, &runtimev1.StatusRequest{})
	if err != nil || len(s.GetStatus().GetConditions()) != 2 || len(s.GetInfo()) != 0 {
		t.Fatalf("Status: got %v, %v", s, err)
	}
	for _, cond := range s.GetStatus().GetConditions() {
		if cond.GetStatus() || cond.GetReason() != "Starting" {
			t.Errorf("condition %v while starting", cond)
		}
	}
	if _, err := c.ListContainers(ctx, &runtimev1.ListContainersRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("ListContainers: got %v, want Unavailable", err)
	}
	if _, err := c.images.ImageFsInfo(ctx, &runtimev1.ImageFsInfoRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("ImageFsInfo: got %v, want Unavailable", err)
	}
}

func TestStatus(t *testing.T) {
	c := newClient(t)
	c.start()
	s, err := c.RuntimeServiceClient.Status(t.Context(), &runtimev1.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*runtimev1.RuntimeCondition{}
	for _, cond := range s.GetStatus().GetConditions() {
		got[cond.GetType()] = cond
	}
	if r := got["RuntimeReady"]; !r.GetStatus() {
		t.Errorf("RuntimeReady: got %v", r)
	}
	if n := got["NetworkReady"]; n.GetStatus() || n.GetReason() != "NetworkPluginNotReady" || n.GetMessage() == "" {
		t.Errorf("NetworkReady: got %v", n)
	}
	if h := s.GetRuntimeHandlers(); len(h) != 1 || h[0].GetName() != "" || !h[0].GetFeatures().GetRecursiveReadOnlyMounts() || !h[0].GetFeatures().GetUserNamespaces() {
		t.Errorf("handlers: got %v", h)
	}
	if f := s.GetFeatures(); !f.GetSupplementalGroupsPolicy() || !f.GetMountOptions() || f.GetUserNamespacesHostNetwork() {
		t.Errorf("features: got %v", f)
	}
	if i := s.GetInfo(); i["cniconfig"] != `{"a":"b"}` || i["lastCNILoadStatus"] != "no configuration" || !strings.HasPrefix(i["golang"], `"go1.`) {
		t.Errorf("info: got %v", i)
	}
	if s.GetInfo()["config"] != `{"Root":"/r"}` || !strings.HasPrefix(s.GetInfo()["operations"], "[") {
		t.Errorf("info: got %v", s.GetInfo())
	}
}

func podCIDR(list string) *runtimev1.UpdateRuntimeConfigRequest {
	return &runtimev1.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimev1.RuntimeConfig{NetworkConfig: &runtimev1.NetworkConfig{PodCidr: list}}}
}

func TestPodCIDR(t *testing.T) {
	c := newClient(t)
	c.start()
	for _, request := range []*runtimev1.UpdateRuntimeConfigRequest{{}, podCIDR("")} {
		if _, err := c.UpdateRuntimeConfig(t.Context(), request); err != nil {
			t.Errorf("%v: %v", request, err)
		}
	}
	for _, list := range []string{"10.1.0.0", "10.1.0.0/33", "x", "10.1.0.0/24,", ","} {
		_, err := c.UpdateRuntimeConfig(t.Context(), podCIDR(list))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "runtime_config.network_config.pod_cidr") {
			t.Errorf("%q: got %v", list, err)
		}
	}
	if len(c.back.calls) > 0 {
		t.Errorf("calls %q", c.back.calls)
	}
}

// TestHandlersCallOnce sends every RPC that changes something and looks at the one call that it makes.
func TestHandlersCallOnce(t *testing.T) {
	pod := read[runtimev1.PodSandboxConfig](t, goodPod)
	for _, test := range []struct {
		want string
		send func(context.Context, *client) error
	}{
		{`RunPod web-0 ""`, func(ctx context.Context, c *client) error {
			r, err := c.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: pod})
			return errors.Join(err, mustBe(r.GetPodSandboxId(), "pod1"))
		}},
		{"StopPod p", func(ctx context.Context, c *client) error {
			_, err := c.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: "p"})
			return err
		}},
		{"RemovePod p", func(ctx context.Context, c *client) error {
			_, err := c.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: "p"})
			return err
		}},
		{"CreateContainer p nginx", func(ctx context.Context, c *client) error {
			r, err := c.CreateContainer(ctx, &runtimev1.CreateContainerRequest{PodSandboxId: "p", SandboxConfig: pod, Config: read[runtimev1.ContainerConfig](t, goodContainer)})
			return errors.Join(err, mustBe(r.GetContainerId(), "c1"))
		}},
		{"StartContainer c", func(ctx context.Context, c *client) error {
			_, err := c.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: "c"})
			return err
		}},
		{"StopContainer c 30s", func(ctx context.Context, c *client) error {
			_, err := c.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: "c", Timeout: 30})
			return err
		}},
		{"StopContainer c 0s", func(ctx context.Context, c *client) error {
			_, err := c.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: "c", Timeout: -30})
			return err
		}},
		{"RemoveContainer c", func(ctx context.Context, c *client) error {
			_, err := c.RemoveContainer(ctx, &runtimev1.RemoveContainerRequest{ContainerId: "c"})
			return err
		}},
		{"ReopenContainerLog c", func(ctx context.Context, c *client) error {
			_, err := c.ReopenContainerLog(ctx, &runtimev1.ReopenContainerLogRequest{ContainerId: "c"})
			return err
		}},
		{`ExecSync c ["a" "b"] 2s`, func(ctx context.Context, c *client) error {
			r, err := c.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a", "b"}, Timeout: 2})
			return errors.Join(err, mustBe(fmt.Sprintf("%s %s %d", r.GetStdout(), r.GetStderr(), r.GetExitCode()), "out err 3"))
		}},
		{"UpdateContainer c 7 map[a:b]", func(ctx context.Context, c *client) error {
			_, err := c.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{ContainerId: "c", Linux: &runtimev1.LinuxContainerResources{CpuShares: 7},
				Annotations: map[string]string{"a": "b"}})
			return err
		}},
		{"UpdatePod p 2 7", func(ctx context.Context, c *client) error {
			_, err := c.UpdatePodSandboxResources(ctx, &runtimev1.UpdatePodSandboxResourcesRequest{PodSandboxId: "p",
				Overhead: &runtimev1.LinuxContainerResources{CpuShares: 2}, Resources: &runtimev1.LinuxContainerResources{CpuShares: 7}})
			return err
		}},
		{"UsePodCIDRs [10.1.0.0/24 fd00::/64]", func(ctx context.Context, c *client) error {
			_, err := c.UpdateRuntimeConfig(ctx, podCIDR("10.1.0.7/24, fd00::/64"))
			return err
		}},
		{"Remove busybox", func(ctx context.Context, c *client) error {
			_, err := c.images.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: "busybox"}})
			return err
		}},
	} {
		t.Run(test.want, func(t *testing.T) {
			c := newClient(t)
			c.start()
			if err := test.send(t.Context(), c); err != nil {
				t.Error(err)
			}
			if len(c.back.calls) != 1 || c.back.calls[0] != test.want {
				t.Errorf("got calls %q, want %q", c.back.calls, test.want)
			}
			c.back.fail = fmt.Errorf("x: %w", sandbox.ErrNotFound)
			if err := test.send(t.Context(), c); !strings.Contains(err.Error(), "code = NotFound") {
				t.Errorf("failure: got %v, want NotFound", err)
			}
		})
	}
}

func mustBe(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

func TestIDsAreRequired(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	c.start()
	_, stop := c.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{})
	_, remove := c.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{})
	_, pod := c.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{})
	_, start := c.StartContainer(ctx, &runtimev1.StartContainerRequest{})
	_, stopC := c.StopContainer(ctx, &runtimev1.StopContainerRequest{})
	_, removeC := c.RemoveContainer(ctx, &runtimev1.RemoveContainerRequest{})
	_, statusC := c.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{})
	_, reopen := c.ReopenContainerLog(ctx, &runtimev1.ReopenContainerLogRequest{})
	_, update := c.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{})
	_, updateP := c.UpdatePodSandboxResources(ctx, &runtimev1.UpdatePodSandboxResourcesRequest{})
	_, image := c.images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{})
	_, removeI := c.images.RemoveImage(ctx, &runtimev1.RemoveImageRequest{})
	for i, err := range []error{stop, remove, pod, start, stopC, removeC, statusC, reopen, update, updateP, image, removeI} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "must not be empty") {
			t.Errorf("request %d: got %v, want InvalidArgument", i, err)
		}
	}
	if len(c.back.calls) > 0 {
		t.Errorf("services were called: %q", c.back.calls)
	}
}

func TestImages(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	c.start()
	want := &runtimev1.Image{Id: busybox.ID, RepoTags: busybox.RepoTags, RepoDigests: busybox.RepoDigests, Size: 7,
		Uid: &runtimev1.Int64Value{Value: 1000}, Spec: &runtimev1.ImageSpec{Image: busybox.ID}}
	list, err := c.images.ListImages(ctx, &runtimev1.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 1 || list.GetImages()[0].String() != want.String() {
		t.Errorf("ListImages: got %v, %v, want %v", list, err, want)
	}
	for ref, n := range map[string]int{"busybox": 1, "absent": 0} {
		spec := &runtimev1.ImageSpec{Image: ref}
		list, err := c.images.ListImages(ctx, &runtimev1.ListImagesRequest{Filter: &runtimev1.ImageFilter{Image: spec}})
		if err != nil || len(list.GetImages()) != n {
			t.Errorf("ListImages of %s: got %v, %v", ref, list, err)
		}
		st, err := c.images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: spec, Verbose: true})
		if err != nil || (st.GetImage() != nil) != (n == 1) || (st.GetInfo()["info"] == "{\"chainID\":\"\",\"imageSpec\":{\"os\":\"linux\uFFFD\"}}") != (n == 1) {
			t.Errorf("ImageStatus of %s: got %v, %v", ref, st, err)
		}
	}
	several := &runtimev1.ImageSpec{Image: "a"}
	filter := &runtimev1.ImageFilter{Image: several}
	_, err = c.images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: several})
	_, listErr := c.images.ListImages(ctx, &runtimev1.ListImagesRequest{Filter: filter})
	stream, streamErr := c.images.StreamImages(ctx, &runtimev1.StreamImagesRequest{Filter: filter})
	if streamErr == nil {
		_, streamErr = stream.Recv()
	}
	for _, err := range []error{err, listErr, streamErr} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "ambiguous") {
			t.Errorf("the beginning of several ids: %v", err)
		}
	}
	fs, err := c.images.ImageFsInfo(ctx, &runtimev1.ImageFsInfoRequest{})
	if u := fs.GetImageFilesystems(); err != nil || len(u) != 1 || u[0].GetFsId().GetMountpoint() != "/var/lib/criserver" || u[0].GetUsedBytes().GetValue() != 5 || u[0].GetInodesUsed().GetValue() != 6 || u[0].GetTimestamp() <= 0 {
		t.Errorf("ImageFsInfo: got %v, %v", fs, err)
	}
	r, err := c.images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: "busybox"}, Auth: &runtimev1.AuthConfig{Username: "u", Password: "secret"}})
	if err != nil || r.GetImageRef() != busybox.ID || c.back.pull.Auth.Password != "secret" {
		t.Errorf("PullImage: got %v, %v; the service got another password", r, err)
	}
}

// What a request says may be as long as a message, and an error may quote it; but the answer must arrive.
func TestLongErrorArrives(t *testing.T) {
	c := newClient(t)
	c.start()
	c.back.fail = fmt.Errorf("pod %s: %w", strings.Repeat("ü", 4<<20), sandbox.ErrNotFound)
	_, err := c.PodSandboxStatus(t.Context(), &runtimev1.PodSandboxStatusRequest{PodSandboxId: "p"})
	if st := status.Convert(err); st.Code() != codes.NotFound || len(st.Message()) > longestText || !strings.HasPrefix(st.Message(), "pod ü") {
		t.Errorf("got %v with a text of %d bytes, want NotFound", st.Code(), len(st.Message()))
	}
}

func TestImageUser(t *testing.T) {
	for user, want := range map[string]string{"": "nil ", "0": "0 ", "1000:7": "1000 ", "www": "nil www", "www:www": "nil www", "-1": "nil -1", "4294967296": "nil 4294967296"} {
		uid, name := imageUser(user)
		got := "nil " + name
		if uid != nil {
			got = fmt.Sprintf("%d %s", uid.GetValue(), name)
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", user, got, want)
		}
	}
}

func TestFailureIsLoggedOnceWithStagesAndWithoutSecrets(t *testing.T) {
	c := newClient(t)
	c.start()
	c.back.fail = errors.New("registry r refused dTpzZWNyZXQ= of u with hunter2")
	_, err := c.images.PullImage(t.Context(), &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: "r/busybox"},
		Auth: &runtimev1.AuthConfig{Username: "u", Password: "secret", IdentityToken: "hunter2"}})
	log := c.log.String()
	for _, text := range []string{err.Error(), log, fmt.Sprint(c.rec.Records()[0].Error)} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "secret") || strings.Contains(text, "dTpzZWNyZXQ=") {
			t.Errorf("secret in %q", text)
		}
		if !strings.Contains(text, "registry r refused [redacted]") {
			t.Errorf("cause not in %q", text)
		}
	}
	for _, want := range []string{"level=WARN", `msg="rpc failed"`, "rpc=PullImage", "subject=r/busybox", "code=Unknown", `stages="resolve `} {
		if strings.Count(log, want) != 1 {
			t.Errorf("log does not say %s once:\n%s", want, log)
		}
	}
}

func TestSlowRPCIsLoggedOnceWithStages(t *testing.T) {
	for slow, want := range map[time.Duration]int{time.Nanosecond: 1, time.Hour: 0, 0: 0} {
		c := newClient(t, func(config *Config) { config.Slow = slow })
		c.start()
		if _, err := c.images.PullImage(t.Context(), &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: "r/busybox"}}); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{`level=INFO msg="rpc was slow" rpc=PullImage subject=r/busybox took=`, `stages="resolve `} {
			if got := strings.Count(c.log.String(), text); got != want {
				t.Errorf("slow from %v on: the log says %s %d times, want %d:\n%s", slow, text, got, want, c.log)
			}
		}
	}
}

func TestPanicIsInternal(t *testing.T) {
	c := newClient(t)
	c.start()
	c.back.panik = true
	_, err := c.StartContainer(t.Context(), &runtimev1.StartContainerRequest{ContainerId: "c"})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "panic: oh") {
		t.Errorf("got %v, want Internal", err)
	}
	if log := c.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "backend_test.go") {
		t.Errorf("log without level or stack:\n%s", log)
	}
}

func TestUnlistedRPCsAreUnimplemented(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	c.start()
	_, err := c.CheckpointPod(ctx, &runtimev1.CheckpointPodRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v, want Unimplemented", err)
	}
	if c.log.Len() > 0 {
		t.Errorf("logged as if something were wrong: %s", c.log)
	}
}

func TestTranslations(t *testing.T) {
	for name, want := range map[string]runtimev1.Signal{"SIGTERM": runtimev1.Signal_SIGNAL_SIGTERM, "SIGRTMIN+3": runtimev1.Signal_SIGNAL_SIGRTMINPLUS3,
		"SIGRTMAX-1": runtimev1.Signal_SIGNAL_SIGRTMAXMINUS1, "": runtimev1.Signal_SIGNAL_RUNTIME_DEFAULT} {
		if got := stopSignal(name); got != want {
			t.Errorf("%q: got %v, want %v", name, got, want)
		}
	}
	for state, want := range map[sandbox.ContainerState]runtimev1.ContainerState{sandbox.ContainerCreated: runtimev1.ContainerState_CONTAINER_CREATED,
		sandbox.ContainerRunning: runtimev1.ContainerState_CONTAINER_RUNNING, sandbox.ContainerExited: runtimev1.ContainerState_CONTAINER_EXITED} {
		if got := containerState(state); got != want {
			t.Errorf("state %d: got %v, want %v", state, got, want)
		}
	}
	if nanos(time.Time{}) != 0 || nanos(time.Unix(1, 2)) != 1_000_000_002 {
		t.Error("times are not in nanoseconds with zero as zero")
	}
	if img := statusImage(&runtimev1.ImageSpec{Image: "sha256:abc", UserSpecifiedImage: "busybox"}); img.GetImage() != "busybox" {
		t.Errorf("image of a status: got %v", img)
	}
}
