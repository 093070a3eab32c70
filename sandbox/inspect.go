package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cni"
)

// What people see who look into a pod or container. Some of it is read from disk, which no other reading does.

// ContainerDetails is what the status of a container leaves out.
type ContainerDetails struct {
	Removing bool
	Spec     *specs.Spec // as it was executed, with the present limits; nil if it went with the pod's pause
}

// InspectContainer finds a container; see ContainerStatus for errors.
func (s *Service) InspectContainer(id ContainerID) (ContainerDetails, error) {
	c, err := s.container(id)
	if err != nil {
		return ContainerDetails{}, err
	}
	phase, rt := c.look()
	d := ContainerDetails{Removing: phase == containerRemoving}
	if rt == nil {
		return d, nil
	}
	if d.Spec, err = rt.Spec(); errors.Is(err, fs.ErrNotExist) { // removed meanwhile
		err = nil
	}
	return d, err
}

// PodDetails is what the status of a pod leaves out.
type PodDetails struct {
	NetNS     string          // path of its own network namespace while that is there
	CNIResult json.RawMessage // of the last plugin, while the pod is attached
	Spec      *specs.Spec     // what containers share, in OCI's terms; nil unless the pod is ready
}

// InspectPod finds a pod; see PodStatus for errors.
func (s *Service) InspectPod(id ID) (PodDetails, error) {
	p, err := s.pod(id)
	if err != nil {
		return PodDetails{}, err
	}
	st, config := p.status.Load(), p.spec.Config()
	var d PodDetails
	if !hostNetwork(config) && cni.IsNetNS(p.netNSPath()) {
		d.NetNS = p.netNSPath()
		debt, err := s.ledger.Read(string(p.id))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return PodDetails{}, err
		}
		d.CNIResult = debt.Result
	}
	if st.State == PodReady {
		d.Spec = p.shared(config, st.Pid, d.NetNS)
	}
	return d, nil
}

// shared is the pod as a spec: namespaces by their paths, host name, sysctls, place of its cgroup.
func (p *pod) shared(config *runtimev1.PodSandboxConfig, pause int, netNS string) *specs.Spec {
	rc := p.runtimeConfig(config)
	linux := &specs.Linux{CgroupsPath: filepath.Join("/", rc.CgroupParent, string(p.id)), Sysctl: rc.Sysctls}
	join := func(kind specs.LinuxNamespaceType, path string) {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	}
	of := func(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", pause, name) }
	if netNS != "" {
		join(specs.NetworkNamespace, netNS)
	}
	if !rc.HostIPC {
		join(specs.IPCNamespace, of("ipc"))
	}
	join(specs.UTSNamespace, of("uts"))
	if m := rc.UserNS; m != nil {
		join(specs.UserNamespace, of("user"))
		linux.UIDMappings, linux.GIDMappings = m.UIDs, m.GIDs
	}
	return &specs.Spec{Version: specs.Version, Hostname: rc.Hostname, Linux: linux}
}
