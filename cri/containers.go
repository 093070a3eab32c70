package cri

import (
	"context"
	"strings"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
)

func (h *runtimeHandlers) CreateContainer(ctx context.Context, r *runtimev1.CreateContainerRequest) (*runtimev1.CreateContainerResponse, error) {
	if err := validateCreateContainer(r, h.handlers()); err != nil {
		return nil, err
	}
	id, err := h.serving().Containers.CreateContainer(ctx, sandbox.ID(r.GetPodSandboxId()), r.GetConfig(), r.GetSandboxConfig())
	return &runtimev1.CreateContainerResponse{ContainerId: string(id)}, err
}

func (h *runtimeHandlers) StartContainer(ctx context.Context, r *runtimev1.StartContainerRequest) (*runtimev1.StartContainerResponse, error) {
	if err := validateID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimev1.StartContainerResponse{}, h.serving().Containers.StartContainer(ctx, sandbox.ContainerID(r.GetContainerId()))
}

func (h *runtimeHandlers) StopContainer(ctx context.Context, r *runtimev1.StopContainerRequest) (*runtimev1.StopContainerResponse, error) {
	if err := validateID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	seconds := min(max(r.GetTimeout(), 0), maxSeconds) // CRI counts seconds; a negative grace is none
	err := h.serving().Containers.StopContainer(ctx, sandbox.ContainerID(r.GetContainerId()), time.Duration(seconds)*time.Second)
	return &runtimev1.StopContainerResponse{}, err
}

func (h *runtimeHandlers) RemoveContainer(ctx context.Context, r *runtimev1.RemoveContainerRequest) (*runtimev1.RemoveContainerResponse, error) {
	if err := validateID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimev1.RemoveContainerResponse{}, h.serving().Containers.RemoveContainer(ctx, sandbox.ContainerID(r.GetContainerId()))
}

func (h *runtimeHandlers) ReopenContainerLog(ctx context.Context, r *runtimev1.ReopenContainerLogRequest) (*runtimev1.ReopenContainerLogResponse, error) {
	if err := validateID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimev1.ReopenContainerLogResponse{}, h.serving().Containers.ReopenContainerLog(ctx, sandbox.ContainerID(r.GetContainerId()))
}

func (h *runtimeHandlers) ExecSync(ctx context.Context, r *runtimev1.ExecSyncRequest) (*runtimev1.ExecSyncResponse, error) {
	if err := validateExecSync(r); err != nil {
		return nil, err
	}
	timeout := time.Duration(r.GetTimeout()) * time.Second
	stdout, stderr, code, err := h.serving().Containers.ExecSync(ctx, sandbox.ContainerID(r.GetContainerId()), r.GetCmd(), timeout)
	return &runtimev1.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, err
}

func (h *runtimeHandlers) ContainerStatus(_ context.Context, r *runtimev1.ContainerStatusRequest) (*runtimev1.ContainerStatusResponse, error) {
	if err := validateID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := h.serving().Containers.ContainerStatus(sandbox.ContainerID(r.GetContainerId()))
	if err != nil {
		return nil, err
	}
	response := &runtimev1.ContainerStatusResponse{}
	if response.Status, err = h.statuses.of(c); err == nil && r.GetVerbose() {
		response.Info, err = h.inspectContainer(c)
	}
	return response, err
}

// containerStatus is a container as its status and the events of its pod tell.
func containerStatus(c *sandbox.ContainerStatus) *runtimev1.ContainerStatus {
	return &runtimev1.ContainerStatus{
		Id:          string(c.ID),
		Metadata:    c.Metadata,
		State:       containerState(c.State),
		CreatedAt:   nanos(c.CreatedAt),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		ExitCode:    c.ExitCode,
		Image:       statusImage(c.Image),
		ImageRef:    c.ImageRef,
		ImageId:     c.ImageID,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Labels,
		Annotations: c.Annotations,
		Mounts:      statusMounts(c.Mounts(), c.ImageVolumes),
		LogPath:     c.LogPath,
		Resources:   &runtimev1.ContainerResources{Linux: c.Resources()},
		User:        containerUser(c.User),
		StopSignal:  stopSignal(c.StopSignal),
	}
}

// listedContainer is a container as lists have it.
func listedContainer(c *sandbox.ContainerStatus) *runtimev1.Container {
	return &runtimev1.Container{
		Id:           string(c.ID),
		PodSandboxId: string(c.Pod),
		Metadata:     c.Metadata,
		Image:        statusImage(c.Image),
		ImageRef:     c.ImageRef,
		ImageId:      c.ImageID,
		State:        containerState(c.State),
		CreatedAt:    nanos(c.CreatedAt),
		Labels:       c.Labels,
		Annotations:  c.Annotations,
	}
}

func containerState(s sandbox.ContainerState) runtimev1.ContainerState {
	switch s {
	case sandbox.ContainerCreated:
		return runtimev1.ContainerState_CONTAINER_CREATED
	case sandbox.ContainerRunning:
		return runtimev1.ContainerState_CONTAINER_RUNNING
	case sandbox.ContainerExited:
		return runtimev1.ContainerState_CONTAINER_EXITED
	}
	return runtimev1.ContainerState_CONTAINER_UNKNOWN
}

// statusImage is the image as its user named it, where the caller told us.
func statusImage(s *runtimev1.ImageSpec) *runtimev1.ImageSpec {
	if s.GetUserSpecifiedImage() == "" || s.GetUserSpecifiedImage() == s.GetImage() {
		return s
	}
	return &runtimev1.ImageSpec{
		Image: s.GetUserSpecifiedImage(), Annotations: s.GetAnnotations(),
		UserSpecifiedImage: s.GetUserSpecifiedImage(), RuntimeHandler: s.GetRuntimeHandler(), ImageRef: s.GetImageRef(),
	}
}

func containerUser(u sandbox.User) *runtimev1.ContainerUser {
	groups := make([]int64, 0, len(u.Groups))
	for _, g := range u.Groups {
		groups = append(groups, int64(g))
	}
	return &runtimev1.ContainerUser{Linux: &runtimev1.LinuxContainerUser{
		Uid: int64(u.UID), Gid: int64(u.GID), SupplementalGroups: groups,
	}}
}

// stopSignal translates a name such as "SIGTERM" or "SIGRTMIN+3". A name that CRI does not have is its default.
func stopSignal(name string) runtimev1.Signal {
	return runtimev1.Signal(runtimev1.Signal_value["SIGNAL_"+signalName.Replace(name)])
}

// signalName spells the real-time signals as CRI does.
var signalName = strings.NewReplacer("+", "PLUS", "-", "MINUS")

// nanos is t as CRI counts time; zero stays zero.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
