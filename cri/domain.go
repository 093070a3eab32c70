package cri

import (
	"context"
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
}

// ContainerService is what cri wants of sandbox.Service for containers.
type ContainerService interface {
	CreateContainer(ctx context.Context, pod sandbox.ID, config *runtimev1.ContainerConfig, podConfig *runtimev1.PodSandboxConfig) (sandbox.ContainerID, error)
	StartContainer(ctx context.Context, id sandbox.ContainerID) error
	StopContainer(ctx context.Context, id sandbox.ContainerID, grace time.Duration) error
	RemoveContainer(ctx context.Context, id sandbox.ContainerID) error
	ContainerStatus(id sandbox.ContainerID) (*sandbox.ContainerStatus, error)
	ListContainers() []*sandbox.ContainerStatus
	ExecSync(ctx context.Context, id sandbox.ContainerID, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error)
	ReopenContainerLog(ctx context.Context, id sandbox.ContainerID) error
}

// ImageService is what cri wants of imageservice.Service.
type ImageService interface {
	Pull(context.Context, imageservice.PullRequest) (id string, err error)
	List() []*imageservice.Image
	Status(ref string) (*imageservice.Image, bool) // by id, short id, tag, digest or unqualified name
	Remove(ctx context.Context, ref string) error
	Usage() imageservice.Usage
}

// NetworkStatus says whether pods can be attached to a network now, and if not, why: in a word and in a sentence.
type NetworkStatus func() (ready bool, reason, message string)
