package cni

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
)

// DefaultIfName is the name of a pod's network device.
const DefaultIfName = "eth0"

// Attachment says which network namespace is attached, for which pod, and what the pod asks of the network.
// It is plain data and goes into the ledger as a part of Debt.
type Attachment struct {
	ContainerID  string            `json:"containerID"`      // of the sandbox
	NetNS        string            `json:"netNS"`            // path of an nsfs mount; if nothing is there any more, plugins are told none
	IfName       string            `json:"ifName,omitempty"` // empty: DefaultIfName
	PodNamespace string            `json:"podNamespace,omitempty"`
	PodName      string            `json:"podName,omitempty"`
	PodUID       string            `json:"podUID,omitempty"`
	PortMappings []PortMapping     `json:"portMappings,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"` // the pod's; bandwidth limits are read from here
	DNS          DNS               `json:"dns,omitzero"`
	CgroupPath   string            `json:"cgroupPath,omitempty"` // the pod's cgroup parent as CRI gives it
}

// PortMapping forwards a port of the host to the pod.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"` // 0 or less: no forwarding is wanted, the mapping is ignored
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`         // tcp, udp or sctp in any case; empty: tcp
	HostIP        string `json:"hostIP,omitempty"` // empty: every address of the host
}

// DNS is passed to plugins that ask for the capability "dns".
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Debt is all that Del needs. It is owed from before Add until a Del returned nil, and is written as JSON by the
// caller: a field may be added, none may change its meaning, since debts outlive upgrades.
type Debt struct {
	Attachment Attachment      `json:"attachment"`
	ConfList   json.RawMessage `json:"confList"`         // the exact configuration list that Add uses
	Result     json.RawMessage `json:"result,omitempty"` // of Add; empty while it is not known
	Since      time.Time       `json:"since"`
}

func (a *Attachment) ifName() string {
	if a.IfName == "" {
		return DefaultIfName
	}
	return a.IfName
}

// check names the first field that no plugin should be given.
func (a *Attachment) check() error {
	if err := utils.ValidateContainerID(a.ContainerID); err != nil {
		return fmt.Errorf("container id %q: %w", a.ContainerID, err)
	}
	if err := utils.ValidateInterfaceName(a.ifName()); err != nil {
		return fmt.Errorf("interface name %q: %w", a.ifName(), err)
	}
	for _, arg := range a.args() {
		if strings.ContainsAny(arg[1], ";=\x00\n") { // they would become further arguments
			return fmt.Errorf("%s %q: contains a character that CNI_ARGS cannot carry", arg[0], arg[1])
		}
	}
	for _, m := range a.PortMappings {
		if err := m.check(); err != nil {
			return err
		}
	}
	_, err := bandwidthOf(a.Annotations)
	return err
}

func (m *PortMapping) check() error {
	if m.HostPort <= 0 {
		return nil
	}
	if m.HostPort > math.MaxUint16 {
		return fmt.Errorf("host port %d: greater than %d", m.HostPort, math.MaxUint16)
	}
	if m.ContainerPort <= 0 || m.ContainerPort > math.MaxUint16 {
		return fmt.Errorf("container port %d of host port %d: not between 1 and %d", m.ContainerPort, m.HostPort, math.MaxUint16)
	}
	switch strings.ToLower(m.Protocol) {
	case "", "tcp", "udp", "sctp":
		return nil
	}
	return fmt.Errorf("protocol %q of host port %d: not tcp, udp or sctp", m.Protocol, m.HostPort)
}

// args are the CNI_ARGS by which plugins learn of the Kubernetes pod.
func (a *Attachment) args() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", a.PodNamespace},
		{"K8S_POD_NAME", a.PodName},
		{"K8S_POD_INFRA_CONTAINER_ID", a.ContainerID},
		{"K8S_POD_UID", a.PodUID},
	}
}

// ports are the mappings as the capability portMappings wants them.
func (a *Attachment) ports() []PortMapping {
	var ports []PortMapping
	for _, m := range a.PortMappings {
		if m.HostPort <= 0 {
			continue
		}
		m.Protocol = strings.ToLower(m.Protocol)
		if m.Protocol == "" {
			m.Protocol = "tcp"
		}
		ports = append(ports, m)
	}
	return ports
}

// runtimeConf is the attachment in libcni's terms. netNS is what plugins are told, which may be nothing.
func (a *Attachment) runtimeConf(netNS string) (*libcni.RuntimeConf, error) {
	limits, err := bandwidthOf(a.Annotations)
	if err != nil {
		return nil, err
	}
	caps := map[string]any{}
	if ports := a.ports(); len(ports) > 0 {
		caps["portMappings"] = ports
	}
	if limits != nil {
		caps["bandwidth"] = limits
	}
	if len(a.DNS.Servers)+len(a.DNS.Searches)+len(a.DNS.Options) > 0 {
		caps["dns"] = a.DNS
	}
	if a.CgroupPath != "" {
		caps["cgroupPath"] = a.CgroupPath
	}
	if len(a.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = a.Annotations
	}
	return &libcni.RuntimeConf{
		ContainerID:    a.ContainerID,
		NetNS:          netNS,
		IfName:         a.ifName(),
		Args:           a.args(),
		CapabilityArgs: caps,
	}, nil
}
