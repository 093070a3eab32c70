package cri

import (
	"context"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
)

// PodService is what cri wants of sandbox.Service for pods.
type PodService interface {
	RunPod(ctx context.Context, config *runtimev1.PodSandboxConfig, handler string) (sandbox.ID, error)
	StopPod(ctx context.Context, id sandbox.ID) error
	RemovePod(ctx context.Context, id sandbox.ID) error
	PodStatus(id sandbox.ID) (*sandbox.PodStatus, error)
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

// ImageService is what cri wants of imageservice.
type ImageService interface {
	Pull(ctx context.Context, request PullRequest) (id string, err error)
	List() []*Image
	Status(ref string) (*Image, bool) // by id, short id, tag, digest or unqualified name
	Remove(ctx context.Context, ref string) error
	FsInfo(ctx context.Context) (FilesystemUsage, error)
}

// NetworkStatus says whether pods can be attached to a network now, and if not, why: in a word and in a sentence.
type NetworkStatus func() (ready bool, reason, message string)

// Image is one image of the store. It is never changed.
type Image struct {
	ID          string // sha256:<hex> of its config
	RepoTags    []string
	RepoDigests []string
	Size        uint64 // bytes; never 0, which the kubelet's client refuses
	User        string // as in the image's config: "name", "uid", "uid:gid" or empty
	Pinned      bool
	Config      []byte // as the registry served it, for verbose status
}

// PullRequest asks for an image. Its secrets must not reach a log or an error.
type PullRequest struct {
	Ref  string
	Auth Auth
}

// Auth is what a pull may show to the registry, tried in this order; all empty is anonymous.
type Auth struct {
	Username, Password string
	IdentityToken      string
	RegistryToken      string
	ServerAddress      string // where they may be shown; empty: the registry of the image
}

// FilesystemUsage is what the image store holds of its file system.
type FilesystemUsage struct {
	Mountpoint string // an existing directory on it
	Bytes      uint64
	Inodes     uint64
}
