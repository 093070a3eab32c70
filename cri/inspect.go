package cri

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/sandbox"
)

// What verbose statuses add has containerd's names where it means the same, for the tools that read it. A pod has neither
// image nor snapshot: its pause is criserver's own.

// runtimeType is what carries pods and containers out.
const runtimeType = "embedded"

func (h *runtimeHandlers) inspectPod(pod *sandbox.PodStatus) (map[string]string, error) {
	services := h.serving()
	details, err := services.Pods.InspectPod(pod.ID)
	if err != nil {
		return nil, err
	}
	overhead, resources := pod.Resources()
	info := map[string]any{
		"pid": pod.Pid, "processStatus": "deleted", "netNamespaceClosed": details.NetNS == "" && !hostNetwork(pod),
		"image": "", "snapshotKey": "", "snapshotter": "", "runtimeHandler": pod.Handler, "runtimeType": runtimeType, "runtimeOptions": nil,
		"config": pod.Config(), "runtimeSpec": details.Spec, "cniResult": nil,
		"overhead":  &runtimev1.ContainerResources{Linux: overhead},
		"resources": &runtimev1.ContainerResources{Linux: resources},
	}
	if pod.Pid != 0 {
		info["processStatus"] = "running"
	}
	if len(details.CNIResult) > 0 {
		if info["cniResult"], err = services.Network.InspectResult(details.CNIResult); err != nil {
			return nil, err
		}
	}
	return verbose(info)
}

func hostNetwork(pod *sandbox.PodStatus) bool {
	return pod.Namespaces.GetNetwork() == runtimev1.NamespaceMode_NODE
}

func (h *runtimeHandlers) inspectContainer(c *sandbox.ContainerStatus) (map[string]string, error) {
	details, err := h.serving().Containers.InspectContainer(c.ID)
	if err != nil {
		return nil, err
	}
	return verbose(map[string]any{
		"sandboxID": c.Pod, "pid": c.Pid, "removing": details.Removing, "snapshotKey": c.ID, "snapshotter": "overlayfs",
		"runtimeType": runtimeType, "runtimeOptions": nil, "config": c.Config(), "runtimeSpec": details.Spec,
	})
}

func inspectImage(img *imageservice.Image) (map[string]string, error) {
	if img.ArtifactType != "" {
		return verbose(map[string]any{"artifactType": img.ArtifactType, "manifest": json.RawMessage(img.Manifest)})
	}
	var config ocispec.Image
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return nil, fmt.Errorf("config of image %s: %w", img.ID, err)
	}
	return verbose(map[string]any{"chainID": identity.ChainID(config.RootFS.DiffIDs), "imageSpec": json.RawMessage(img.Config)})
}

// verbose makes the map that a status has when it was asked to be verbose: one JSON text called "info".
func verbose(value map[string]any) (map[string]string, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode verbose status: %w", err)
	}
	return map[string]string{"info": valid(string(text))}, nil // what an image has as JSON is passed on as it is
}
