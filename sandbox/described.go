package sandbox

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/sandbox/nri"
)

// knownOfPod and knownOfContainer are what plugins are told of what a record of an earlier criserver speaks of. What was
// half made was never told to those who are there now.
var (
	knownOfPod = map[podPhase]known{podReady: knownRunning, podStopping: knownRunning, podStopped: knownStopped}

	knownOfContainer = map[containerPhase]known{containerCreated: knownMade, containerStarting: knownRunning, containerRunning: knownRunning,
		containerExited: knownStopped, containerRemoving: knownStopped}
)

// openPlugins lets plugins see what was recovered.
func (s *Service) openPlugins() error {
	for _, p := range s.table.Load().pods {
		p.mu.Lock()
		for _, c := range p.members {
			if c.phase == containerExited { // while criserver was away
				c.known = knownStopped
			}
		}
		p.mu.Unlock()
	}
	return s.config.Plugins.Open(source{s})
}

// source is what plugins ask of a Service.
type source struct{ *Service }

// Told returns all pods and those of their containers that have not ended, as plugins know them.
func (s source) Told() (pods []*nri.Pod, containers []*nri.Container) {
	s.mu.Lock()
	all := slices.Clone(s.newer)
	s.mu.Unlock()
	for _, p := range s.table.Load().pods {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	for _, p := range all {
		p.mu.Lock()
		known, members := p.known, slices.Clone(p.members)
		p.mu.Unlock()
		if known != knownRunning && known != knownStopped {
			continue
		}
		pods = append(pods, p.described())
		for _, c := range members {
			if d := c.described(nil); d.State != nri.Stopped && c.isKnown() {
				d.Spec = c.oci()
				containers = append(containers, d)
			}
		}
	}
	return pods, containers
}

// expect makes a pod known that is not listed yet, for Told.
func (s *Service) expect(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newer = append(s.newer, p)
}

// expected ends that.
func (s *Service) expected(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newer = slices.DeleteFunc(s.newer, func(o *pod) bool { return o == p })
}

// described is the pod as plugins see it.
func (p *pod) described() *nri.Pod {
	config := p.spec.Config()
	overhead, resources := config.GetLinux().GetOverhead(), config.GetLinux().GetResources()
	if st := p.status.Load(); st != nil { // which a pod that is made has not
		overhead, resources = st.Resources()
	}
	d := &nri.Pod{ID: string(p.id), Name: config.Metadata.Name, UID: config.Metadata.Uid, Namespace: config.Metadata.Namespace,
		Labels: config.Labels, Annotations: config.Annotations, Handler: p.handler, CgroupParent: config.GetLinux().GetCgroupParent(),
		Overhead: ociResources(overhead), Resources: ociResources(resources)}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ip := range p.ips {
		d.IPs = append(d.IPs, ip.String())
	}
	if p.rt != nil {
		d.Pid = p.rt.Pid()
	}
	if !hostNetwork(config) && p.phase != podStopped && p.phase != podRemoved {
		d.NetNS = p.netNSPath()
	}
	return d
}

// ociResources is nil for what nobody said. What cannot be translated is only told, not used.
func ociResources(r *runtimev1.LinuxContainerResources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	translated, err := specgen.Resources(r, true)
	if err != nil {
		return nil
	}
	return translated
}

// described is the container as plugins see it.
func (c *container) described(spec *specs.Spec) *nri.Container {
	st := c.status.Load()
	config := st.Config()
	d := &nri.Container{ID: string(c.id), Pod: string(c.p.id), Name: config.GetMetadata().GetName(), State: nri.Created,
		Labels: config.Labels, Annotations: config.Annotations, ImageName: config.GetImage().GetImage(), ImageConfig: st.ImageID,
		Seccomp: seccompOf(config), Pid: st.Pid, Created: st.CreatedAt, Started: st.StartedAt, Finished: st.FinishedAt,
		ExitCode: st.ExitCode, Reason: st.Reason, Message: st.Message, Spec: spec}
	if _, digest, ok := strings.Cut(st.ImageRef, "@"); ok {
		d.ImageDigest = digest
	}
	for _, device := range config.GetCDIDevices() {
		d.CDIDevices = append(d.CDIDevices, device.Name)
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	switch {
	case c.known == knownStopped || c.known == knownGone:
		d.State = nri.Stopped
	case c.phase == containerRunning || c.phase == containerExited:
		d.State = nri.Running
	}
	return d
}

// isKnown says whether plugins have been told of the container.
func (c *container) isKnown() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.known != knownNothing
}

// seccompOf is the kind of profile that was asked for, or nil.
func seccompOf(config *runtimev1.ContainerConfig) *nri.Seccomp {
	profile := config.GetLinux().GetSecurityContext().GetSeccomp()
	if profile == nil {
		return nil
	}
	kinds := map[runtimev1.SecurityProfile_ProfileType]nri.SeccompKind{runtimev1.SecurityProfile_RuntimeDefault: nri.RuntimeDefault,
		runtimev1.SecurityProfile_Unconfined: nri.Unconfined, runtimev1.SecurityProfile_Localhost: nri.Localhost}
	return &nri.Seccomp{ProfileType: kinds[profile.ProfileType], LocalhostRef: profile.LocalhostRef}
}

// oci is the spec that the container was made of; nil if nobody knows any more.
func (c *container) oci() *specs.Spec {
	_, rt := c.look()
	if rt == nil {
		return nil
	}
	spec, err := rt.Spec()
	if err != nil {
		c.p.s.log.Debug("a container's spec is not known any more", "container", c.id, "error", err)
	}
	return spec
}
