package specgen

import (
	"maps"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/user"
)

// Input is a request and what it meets on this node.
type Input struct {
	Pod       *runtimev1.PodSandboxConfig
	Container *runtimev1.ContainerConfig
	Image     ocispec.Image
	ImageName string // for annotations: the image as the request names it, or its digest

	PodID       string
	Hostname    string // of the pod, as it was decided
	CgroupsPath string // as the cgroup driver wants it
	// Namespaces are paths of the pod's namespaces. What the container joins appears in the spec if its path is here.
	// With pid TARGET, the pid namespace is the target's.
	Namespaces   map[specs.LinuxNamespaceType]string
	Files        PodFiles
	Volumes      []*runtimev1.Mount // of the image; mounts of the request win over them
	ImageVolumes map[int]string     // sources of the request's mounts that are of images, by index
	// User looks up the container's user in its root: user.Resolve.
	User    func(user.Request) (user.User, error)
	Labels  Labels // of SELinuxLabels
	Host    Host
	Handler *Handler // the pod's
}

// PodFiles are paths on the host of what the containers of a pod share; empty ones are not mounted.
type PodFiles struct {
	Hostname, Hosts, ResolvConf string
	Shm                         string // /dev/shm: the pod's, or the host's with host IPC
}

// Host is what this node has and how it is configured.
type Host struct {
	CgroupV2          bool
	LastCap           int                                            // the last capability that the kernel knows
	RecursiveReadOnly bool                                           // mount_setattr (5.12)
	AppArmor          *AppArmor                                      // nil: the host has none
	Ceiling           map[string]uint64                              // by type, beyond which no limit of a process can be given; nil: none
	CeilingUserNS     map[string]uint64                              // the same in a user namespace
	Devices           func(path string) ([]specs.LinuxDevice, error) // nil: HostDevices
}

// AppArmor is what the host has of it.
type AppArmor struct {
	Default string                             // profile of RuntimeDefault; "": none
	Loaded  func(profile string) (bool, error) // whether the kernel has a profile
}

// generator builds one spec.
type generator struct {
	Input
	security   *runtimev1.LinuxContainerSecurityContext
	privileged bool
	spec       *specs.Spec
}

// Container makes the spec of a container.
func Container(in Input) (*specs.Spec, error) {
	g := &generator{Input: in, security: in.Container.GetLinux().GetSecurityContext()}
	g.privileged = g.security.GetPrivileged()
	if g.privileged && !in.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return nil, invalid("linux.security_context.privileged", "the pod is not privileged")
	}
	g.spec = &specs.Spec{
		Version:     specs.Version,
		Process:     &specs.Process{},
		Root:        &specs.Root{Path: "rootfs", Readonly: g.security.GetReadonlyRootfs()},
		Linux:       &specs.Linux{CgroupsPath: in.CgroupsPath},
		Annotations: g.annotations(),
	}
	for _, step := range []func() error{g.namespaces, g.process, g.user, g.capabilities, g.confinement, g.mounts, g.devices, g.resources, g.ownLimits} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return g.spec, nil
}

// annotations are containerd's, which hooks, NRI plugins and monitors read, over those that the handler passes on.
func (g *generator) annotations() map[string]string {
	pod := g.Pod.GetMetadata()
	all := g.passedOn()
	maps.Copy(all, map[string]string{
		"io.kubernetes.cri.container-type":        "container",
		"io.kubernetes.cri.sandbox-id":            g.PodID,
		"io.kubernetes.cri.sandbox-namespace":     pod.GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":           pod.GetUid(),
		"io.kubernetes.cri.sandbox-name":          pod.GetName(),
		"io.kubernetes.cri.sandbox-log-directory": g.Pod.GetLogDirectory(),
		"io.kubernetes.cri.container-name":        g.Container.GetMetadata().GetName(),
		"io.kubernetes.cri.image-name":            g.ImageName,
	})
	return all
}
