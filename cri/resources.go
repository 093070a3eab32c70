package cri

import (
	"context"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
)

// ResourceService is what cri wants of sandbox.Service for limits.
type ResourceService interface {
	UpdateContainer(ctx context.Context, id sandbox.ContainerID, change *runtimev1.LinuxContainerResources, annotations map[string]string) error
	UpdatePod(ctx context.Context, id sandbox.ID, overhead, resources *runtimev1.LinuxContainerResources) error
}

func (h *runtimeHandlers) UpdateContainerResources(ctx context.Context, r *runtimev1.UpdateContainerResourcesRequest) (*runtimev1.UpdateContainerResourcesResponse, error) {
	if err := validateUpdateContainer(r); err != nil {
		return nil, err
	}
	err := h.serving().Resources.UpdateContainer(ctx, sandbox.ContainerID(r.GetContainerId()), r.GetLinux(), r.GetAnnotations())
	return &runtimev1.UpdateContainerResourcesResponse{}, err
}

func (h *runtimeHandlers) UpdatePodSandboxResources(ctx context.Context, r *runtimev1.UpdatePodSandboxResourcesRequest) (*runtimev1.UpdatePodSandboxResourcesResponse, error) {
	if err := validateUpdatePod(r); err != nil {
		return nil, err
	}
	err := h.serving().Resources.UpdatePod(ctx, sandbox.ID(r.GetPodSandboxId()), r.GetOverhead(), r.GetResources())
	return &runtimev1.UpdatePodSandboxResourcesResponse{}, err
}

func validateUpdateContainer(r *runtimev1.UpdateContainerResourcesRequest) error {
	var f faults
	f.required("container_id", r.GetContainerId())
	if r.GetWindows() != nil {
		f.add("windows", "this is Linux")
	}
	f.resources("linux", r.GetLinux())
	return f.err()
}

func validateUpdatePod(r *runtimev1.UpdatePodSandboxResourcesRequest) error {
	var f faults
	f.required("pod_sandbox_id", r.GetPodSandboxId())
	f.resources("overhead", r.GetOverhead())
	f.resources("resources", r.GetResources())
	return f.err()
}
