package cri

import (
	"context"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
)

func (h *runtimeHandlers) RunPodSandbox(ctx context.Context, r *runtimev1.RunPodSandboxRequest) (*runtimev1.RunPodSandboxResponse, error) {
	if err := validateRunPod(r, h.handlers()); err != nil {
		return nil, err
	}
	id, err := h.serving().Pods.RunPod(ctx, r.GetConfig(), r.GetRuntimeHandler())
	return &runtimev1.RunPodSandboxResponse{PodSandboxId: string(id)}, err
}

func (h *runtimeHandlers) StopPodSandbox(ctx context.Context, r *runtimev1.StopPodSandboxRequest) (*runtimev1.StopPodSandboxResponse, error) {
	if err := validateID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimev1.StopPodSandboxResponse{}, h.serving().Pods.StopPod(ctx, sandbox.ID(r.GetPodSandboxId()))
}

func (h *runtimeHandlers) RemovePodSandbox(ctx context.Context, r *runtimev1.RemovePodSandboxRequest) (*runtimev1.RemovePodSandboxResponse, error) {
	if err := validateID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimev1.RemovePodSandboxResponse{}, h.serving().Pods.RemovePod(ctx, sandbox.ID(r.GetPodSandboxId()))
}

func (h *runtimeHandlers) PodSandboxStatus(_ context.Context, r *runtimev1.PodSandboxStatusRequest) (*runtimev1.PodSandboxStatusResponse, error) {
	if err := validateID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	view, err := h.serving().Pods.PodView(sandbox.ID(r.GetPodSandboxId()))
	if err != nil {
		return nil, err
	}
	pod := view.Pod
	response := &runtimev1.PodSandboxStatusResponse{Status: podStatus(pod), Timestamp: nanos(view.At)}
	if response.ContainersStatuses, err = h.statuses.all(view.Containers); err == nil && r.GetVerbose() {
		response.Info, err = h.inspectPod(pod)
	}
	return response, err
}

// podStatus is a pod as its status and its events tell.
func podStatus(pod *sandbox.PodStatus) *runtimev1.PodSandboxStatus {
	return &runtimev1.PodSandboxStatus{
		Id:             string(pod.ID),
		Metadata:       pod.Metadata,
		State:          podState(pod.State),
		CreatedAt:      nanos(pod.CreatedAt),
		Network:        podNetwork(pod),
		Linux:          &runtimev1.LinuxPodSandboxStatus{Namespaces: &runtimev1.Namespace{Options: pod.Namespaces}},
		Labels:         pod.Labels,
		Annotations:    pod.Annotations,
		RuntimeHandler: pod.Handler,
	}
}

// listedPod is a pod as lists have it.
func listedPod(pod *sandbox.PodStatus) *runtimev1.PodSandbox {
	return &runtimev1.PodSandbox{
		Id:             string(pod.ID),
		Metadata:       pod.Metadata,
		State:          podState(pod.State),
		CreatedAt:      nanos(pod.CreatedAt),
		Labels:         pod.Labels,
		Annotations:    pod.Annotations,
		RuntimeHandler: pod.Handler,
	}
}

func podState(s sandbox.PodState) runtimev1.PodSandboxState {
	if s == sandbox.PodReady {
		return runtimev1.PodSandboxState_SANDBOX_READY
	}
	return runtimev1.PodSandboxState_SANDBOX_NOTREADY
}

// podNetwork is never nil: on the host network the ip is empty.
func podNetwork(pod *sandbox.PodStatus) *runtimev1.PodSandboxNetworkStatus {
	n := &runtimev1.PodSandboxNetworkStatus{}
	for i, ip := range pod.IPs {
		if i == 0 {
			n.Ip = ip.String()
		} else {
			n.AdditionalIps = append(n.AdditionalIps, &runtimev1.PodIP{Ip: ip.String()})
		}
	}
	return n
}
