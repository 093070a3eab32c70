package sandbox

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/specgen"
)

// ID is the id of a pod sandbox: 64 lower-case hex digits, or in requests a prefix of them that fits one pod only.
type ID string

// ContainerID is the id of a container; see ID.
type ContainerID string

// PodState says where a pod is in its life.
type PodState uint8

// States of a pod. Only Ready and NotReady are ever listed.
const (
	PodCreating PodState = iota
	PodReady
	PodNotReady // stopped, being stopped, or its pause died
	PodRemoved
)

// ContainerState says where a container is in its life.
type ContainerState uint8

// States of a container. Only Created, Running and Exited are ever listed.
const (
	ContainerCreating ContainerState = iota
	ContainerCreated
	ContainerRunning
	ContainerExited
	ContainerRemoved
)

// Reasons of an exit.
const (
	ReasonCompleted  = "Completed"  // exit code 0
	ReasonError      = "Error"      // any other exit code
	ReasonOOMKilled  = "OOMKilled"  // the kernel killed for want of memory, in it or its pause, and the exit code is not 0
	ReasonStartError = "StartError" // never ran; exit code 128
	ReasonUnknown    = "Unknown"    // the exit code was lost, with the machine or with pause; exit code 255
)

// PodStatus is a pod at one moment. It and everything it refers to is immutable.
type PodStatus struct {
	ID        ID
	State     PodState // PodReady or PodNotReady
	CreatedAt time.Time
	Handler   string       // as asked for
	IPs       []netip.Addr // of the pod's own network while it is attached, preferred one first; empty on the host network
	Pid       int          // of pause; 0 unless Ready

	updated *podResources // nil: as config has them

	*podSpec
}

// podSpec is what never changes of a pod.
type podSpec struct {
	Metadata    *runtimev1.PodSandboxMetadata
	Labels      map[string]string
	Annotations map[string]string
	Namespaces  *runtimev1.NamespaceOption // as asked for; never nil
	rest        []byte                     // the marshalled config without metadata, labels and annotations
	userNS      *ociruntime.IDMap          // nil: the host's
	hostNetwork bool
}

// Config returns the config as the pod was asked for, verbatim; it shares metadata, labels and annotations.
func (s *podSpec) Config() *runtimev1.PodSandboxConfig {
	c := &runtimev1.PodSandboxConfig{}
	unmarshal(s.rest, c)
	c.Metadata, c.Labels, c.Annotations = s.Metadata, s.Labels, s.Annotations
	return c
}

// ContainerStatus is a container at one moment. It and everything it refers to is immutable.
type ContainerStatus struct {
	ID         ContainerID
	Pod        ID
	State      ContainerState // ContainerCreated, ContainerRunning or ContainerExited
	CreatedAt  time.Time
	StartedAt  time.Time // zero until it ran
	FinishedAt time.Time // zero until Exited
	ExitCode   int32     // valid in Exited; 128+signal if it was killed
	Reason     string    // empty until Exited
	Message    string    // why a start failed
	Pid        int       // of the first process; 0 unless Running
	Limits     Limits    // at present

	*containerSpec
}

// containerSpec is what never changes of a container.
type containerSpec struct {
	Metadata    *runtimev1.ContainerMetadata
	Image       *runtimev1.ImageSpec // as asked for
	Labels      map[string]string
	Annotations map[string]string

	ImageID      string   // sha256:<hex>
	ImageRef     string   // repository@digest, or the id if the image has none
	ImageVolumes []string // ids of mounted images, one for each of the config's mounts, "" if that is none of an image; nil: there are none
	LogPath      string   // absolute; empty: no log
	StopSignal   string   // the effective one, for example "SIGTERM"
	User         User     // the effective one

	mounts []byte // the marshalled config with mounts alone, of which every status tells
	rest   []byte // the marshalled config without mounts, metadata, image, labels and annotations
}

// Mounts are those that the container was asked for with.
func (s *containerSpec) Mounts() []*runtimev1.Mount {
	c := &runtimev1.ContainerConfig{}
	unmarshal(s.mounts, c)
	return c.Mounts
}

// User is whom a container's first process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Config returns the config as the container was asked for, verbatim; it shares metadata, image, labels and annotations.
func (s *containerSpec) Config() *runtimev1.ContainerConfig {
	c := &runtimev1.ContainerConfig{}
	unmarshal(s.rest, c)
	unmarshal(s.mounts, c)
	c.Metadata, c.Image, c.Labels, c.Annotations = s.Metadata, s.Image, s.Labels, s.Annotations
	return c
}

// unmarshal adds to m what was marshalled here or checked at recovery.
func unmarshal(data []byte, m proto.Message) {
	if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(data, m); err != nil {
		panic(fmt.Sprintf("part of a config cannot be read back: %v", err))
	}
}

// newPodSpec takes over config.
func newPodSpec(config *runtimev1.PodSandboxConfig) (*podSpec, error) {
	s := &podSpec{Metadata: config.Metadata, Labels: config.Labels, Annotations: config.Annotations, hostNetwork: hostNetwork(config)}
	if s.Namespaces = namespaceOptions(config); s.Namespaces == nil { // the kubelet makes a pod anew whose network is not what it wants
		s.Namespaces = &runtimev1.NamespaceOption{}
	}
	m, err := specgen.UserNamespace(config)
	if err != nil {
		return nil, fmt.Errorf("%w: pod config: %w", ErrInvalid, err)
	}
	if m.Used() {
		s.userNS = &ociruntime.IDMap{UIDs: m.UIDs, GIDs: m.GIDs}
	}
	rest := proto.CloneOf(config)
	rest.Metadata, rest.Labels, rest.Annotations = nil, nil, nil
	if s.rest, err = proto.Marshal(rest); err != nil {
		return nil, fmt.Errorf("%w: pod config: %w", ErrInvalid, err)
	}
	return s, nil
}

// newContainerSpec takes over config.
func newContainerSpec(config *runtimev1.ContainerConfig) (*containerSpec, error) {
	s := &containerSpec{Metadata: config.Metadata, Image: config.Image, Labels: config.Labels, Annotations: config.Annotations}
	rest := proto.CloneOf(config)
	rest.Metadata, rest.Image, rest.Labels, rest.Annotations, rest.Mounts = nil, nil, nil, nil, nil
	var err error
	if s.rest, err = proto.Marshal(rest); err == nil {
		s.mounts, err = proto.Marshal(&runtimev1.ContainerConfig{Mounts: config.Mounts})
	}
	if err != nil {
		return nil, fmt.Errorf("%w: container config: %w", ErrInvalid, err)
	}
	return s, nil
}
