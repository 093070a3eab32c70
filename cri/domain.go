package cri

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/sandbox"
)

// PodService is what cri wants of sandbox.Service for pods.
type PodService interface {
	RunPod(ctx context.Context, config *runtimev1.PodSandboxConfig, handler string) (sandbox.ID, error)
	StopPod(ctx context.Context, id sandbox.ID) error
	RemovePod(ctx context.Context, id sandbox.ID) error
	PodView(id sandbox.ID) (*sandbox.PodView, error)
	ListPods() []*sandbox.PodStatus
	InspectPod(id sandbox.ID) (sandbox.PodDetails, error)
}

// ContainerService is what cri wants of sandbox.Service for containers.
type ContainerService interface {
	CreateContainer(ctx context.Context, pod sandbox.ID, config *runtimev1.ContainerConfig, podConfig *runtimev1.PodSandboxConfig) (sandbox.ContainerID, error)
	StartContainer(ctx context.Context, id sandbox.ContainerID) error
	StopContainer(ctx context.Context, id sandbox.ContainerID, grace time.Duration) error
	RemoveContainer(ctx context.Context, id sandbox.ContainerID) error
	ContainerStatus(id sandbox.ContainerID) (*sandbox.ContainerStatus, error)
	ListContainers() []*sandbox.ContainerStatus
	InspectContainer(id sandbox.ContainerID) (sandbox.ContainerDetails, error)
	ExecSync(ctx context.Context, id sandbox.ContainerID, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error)
	ReopenContainerLog(ctx context.Context, id sandbox.ContainerID) error
}

// ImageService is what cri wants of imageservice.Service.
type ImageService interface {
	Pull(context.Context, imageservice.PullRequest) (id string, err error)
	List() []*imageservice.Image
	Find(ref string) (*imageservice.Image, error) // by id, short id, tag, digest or unqualified name
	Remove(ctx context.Context, ref string) error
	Usage() imageservice.Usage
}

// NetworkService is what cri wants of the node's network.
type NetworkService interface {
	// Ready says whether pods can be attached to a network now, and if not, why: in a word and in a sentence.
	Ready() (ready bool, reason, message string)
	// Inspect tells what is configured, as something that becomes JSON, and whether that could be loaded: "OK" or why not.
	Inspect() (config any, load string)
	// InspectResult puts what plugins answered for a pod into the same terms.
	InspectResult(json.RawMessage) (any, error)
	// UsePodCIDRs has the network configured for these addresses, if that is for criserver to do.
	UsePodCIDRs([]netip.Prefix) error
}
