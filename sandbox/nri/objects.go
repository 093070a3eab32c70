package nri

import (
	"maps"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Pod is a pod as plugins see it.
type Pod struct {
	ID, Name, UID, Namespace string
	Labels, Annotations      map[string]string
	Handler                  string
	CgroupParent             string
	NetNS                    string // path; "": the host's, or gone
	Pid                      int
	IPs                      []string
	Overhead, Resources      *specs.LinuxResources // as the kubelet says; nil: unknown
}

// Container is a container as plugins see it.
type Container struct {
	ID, Pod, Name              string
	State                      State
	Labels, Annotations        map[string]string // of the request; those of the spec are told too
	ImageName, ImageDigest     string
	ImageConfig                string // digest
	CDIDevices                 []string
	Seccomp                    *Seccomp // nil: not asked for
	Pid                        int      // 0 unless it runs
	Created, Started, Finished time.Time
	ExitCode                   int32
	Reason, Message            string
	Spec                       *specs.Spec // nil: not known any more
}

// State is where a container is in its life.
type State = api.ContainerState

// States of a container.
const (
	Created = api.ContainerState_CONTAINER_CREATED
	Running = api.ContainerState_CONTAINER_RUNNING
	Stopped = api.ContainerState_CONTAINER_STOPPED
)

// Seccomp is the kind of profile that was asked for.
type Seccomp = api.SecurityProfile

// SeccompKind is one of the following.
type SeccompKind = api.SecurityProfile_ProfileType

// Kinds of seccomp profiles.
const (
	RuntimeDefault = api.SecurityProfile_RUNTIME_DEFAULT
	Unconfined     = api.SecurityProfile_UNCONFINED
	Localhost      = api.SecurityProfile_LOCALHOST
)

func toPods(pods []*Pod) []*api.PodSandbox {
	all := make([]*api.PodSandbox, len(pods))
	for i, p := range pods {
		all[i] = p.api()
	}
	return all
}

func toContainers(containers []*Container) []*api.Container {
	all := make([]*api.Container, len(containers))
	for i, c := range containers {
		all[i] = c.api()
	}
	return all
}

func (p *Pod) api() *api.PodSandbox {
	linux := &api.LinuxPodSandbox{CgroupParent: p.CgroupParent, PodOverhead: api.FromOCILinuxResources(p.Overhead, nil),
		PodResources: api.FromOCILinuxResources(p.Resources, nil)}
	if p.NetNS != "" {
		linux.Namespaces = []*api.LinuxNamespace{{Type: string(specs.NetworkNamespace), Path: p.NetNS}}
	}
	return &api.PodSandbox{Id: p.ID, Name: p.Name, Uid: p.UID, Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations,
		RuntimeHandler: p.Handler, Pid: uint32(p.Pid), Ips: p.IPs, Linux: linux}
}

// api copies what the library changes on its way from plugin to plugin.
func (c *Container) api() *api.Container {
	out := &api.Container{Id: c.ID, PodSandboxId: c.Pod, Name: c.Name, State: c.State,
		Labels: maps.Clone(c.Labels), Annotations: maps.Clone(c.Annotations), Pid: uint32(c.Pid), CreatedAt: nanos(c.Created), StartedAt: nanos(c.Started), FinishedAt: nanos(c.Finished),
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message,
		Image: &api.Image{Name: c.ImageName, Digest: c.ImageDigest, ConfigDigest: c.ImageConfig},
		Linux: &api.LinuxContainer{SeccompProfile: c.Seccomp}}
	for _, name := range c.CDIDevices {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: name})
	}
	if c.Spec != nil {
		c.describe(out)
	}
	return out
}

// describe fills in what the spec says.
func (c *Container) describe(out *api.Container) {
	out.Annotations = make(map[string]string, len(c.Annotations)+len(c.Spec.Annotations))
	maps.Copy(out.Annotations, c.Spec.Annotations)
	maps.Copy(out.Annotations, c.Annotations)
	out.Mounts, out.Hooks = api.FromOCIMounts(c.Spec.Mounts), api.FromOCIHooks(c.Spec.Hooks)
	if p := c.Spec.Process; p != nil {
		out.Args, out.Env, out.Rlimits = text(p.Args), text(p.Env), rlimits(p.Rlimits)
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		out.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		out.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		out.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
	}
	l := c.Spec.Linux
	if l == nil {
		return
	}
	out.Linux.Namespaces, out.Linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
	out.Linux.Resources, out.Linux.CgroupsPath = api.FromOCILinuxResources(l.Resources, nil), l.CgroupsPath
	out.Linux.Sysctl, out.Linux.NetDevices = maps.Clone(l.Sysctl), api.FromOCILinuxNetDevices(l.NetDevices)
	if l.Seccomp != nil {
		out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
}

// text makes copies that a message can hold: images may have variables that are not UTF-8.
func text(all []string) []string {
	copies := make([]string, len(all))
	for i, s := range all {
		copies[i] = strings.ToValidUTF8(s, "\uFFFD")
	}
	return copies
}

func rlimits(limits []specs.POSIXRlimit) []*api.POSIXRlimit {
	var all []*api.POSIXRlimit
	for _, l := range limits {
		all = append(all, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
	}
	return all
}

// nanos is 0 for what has not happened.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
