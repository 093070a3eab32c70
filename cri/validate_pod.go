package cri

import (
	"net/netip"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is what the kernel holds as a host name, in bytes.
const maxHostname = 64

func validateRunPod(r *runtimev1.RunPodSandboxRequest, handlers []string) error {
	var f faults
	f.handler("runtime_handler", r.GetRuntimeHandler(), handlers)
	f.podConfig("config", r.GetConfig())
	return f.err()
}

// handler reports a runtime handler that is not configured. The empty one always is.
func (f *faults) handler(field, name string, handlers []string) {
	for _, h := range handlers {
		if h == name {
			return
		}
	}
	if name != "" {
		f.add(field, "there is no runtime handler %q", name)
	}
}

func (f *faults) podConfig(field string, c *runtimev1.PodSandboxConfig) {
	if c == nil {
		f.add(field, "must not be empty")
		return
	}
	f.podMetadata(field+".metadata", c.GetMetadata())
	if len(c.GetHostname()) > maxHostname {
		f.add(field+".hostname", "%q is longer than %d bytes", c.GetHostname(), maxHostname)
	}
	if c.GetHostname() != "" {
		f.word(field+".hostname", c.GetHostname())
	}
	f.logDirectory(field+".log_directory", c.GetLogDirectory())
	f.dns(field+".dns_config", c.GetDnsConfig())
	for i, p := range c.GetPortMappings() {
		f.portMapping(index(field+".port_mappings", i), p)
	}
	f.linuxPod(field+".linux", c.GetLinux())
}

// logDirectory may be empty: then there are no logs.
func (f *faults) logDirectory(field, dir string) {
	if dir != "" {
		f.absolute(field, dir)
		f.noDotDot(field, dir)
	}
}

func (f *faults) podMetadata(field string, m *runtimev1.PodSandboxMetadata) {
	if m == nil {
		f.add(field, "must not be empty")
		return
	}
	f.name(field+".name", m.GetName())
	f.name(field+".namespace", m.GetNamespace())
	f.name(field+".uid", m.GetUid())
}

func (f *faults) dns(field string, d *runtimev1.DNSConfig) {
	for i, s := range d.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			f.add(index(field+".servers", i), "%q is not an IP address", s)
		}
	}
	for i, s := range d.GetSearches() {
		f.word(index(field+".searches", i), s)
	}
	for i, s := range d.GetOptions() {
		f.word(index(field+".options", i), s)
	}
}

func (f *faults) portMapping(field string, p *runtimev1.PortMapping) {
	f.in(field+".protocol", int32(p.GetProtocol()), runtimev1.Protocol_name)
	if p.GetHostPort() > 65535 {
		f.add(field+".host_port", "%d is not a port", p.GetHostPort())
	}
	if p.GetContainerPort() > 65535 || p.GetContainerPort() < 0 || p.GetHostPort() > 0 && p.GetContainerPort() == 0 {
		f.add(field+".container_port", "%d is not a port", p.GetContainerPort())
	}
	if ip := p.GetHostIp(); ip != "" {
		if _, err := netip.ParseAddr(ip); err != nil {
			f.add(field+".host_ip", "%q is not an IP address", ip)
		}
	}
}

func (f *faults) linuxPod(field string, l *runtimev1.LinuxPodSandboxConfig) {
	if parent := l.GetCgroupParent(); parent != "" {
		f.noDotDot(field+".cgroup_parent", parent)
		f.printable(field+".cgroup_parent", parent)
	}
	sc := l.GetSecurityContext()
	ns := sc.GetNamespaceOptions()
	f.namespaces(field+".security_context.namespace_options", ns)
	if ns.GetPid() == runtimev1.NamespaceMode_TARGET {
		f.add(field+".security_context.namespace_options.pid", "TARGET is for containers only")
	}
	f.user(field+".security_context", sc.GetRunAsUser(), sc.GetRunAsGroup(), "")
	f.groups(field+".security_context", sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
	f.seccomp(field+".security_context.seccomp", sc.GetSeccomp())
	f.profile(field+".security_context.apparmor", sc.GetApparmor())
	f.selinux(field+".security_context.selinux_options", sc.GetSelinuxOptions())
	for name := range l.GetSysctls() {
		f.sysctl(field+".sysctls", name, ns)
	}
	f.resources(field+".resources", l.GetResources())
	f.resources(field+".overhead", l.GetOverhead())
}

// sysctl reports a sysctl that would not be set in the pod's own namespaces.
func (f *faults) sysctl(field, given string, ns *runtimev1.NamespaceOption) {
	name, path := given, sysctlSwap.Replace(given)
	if i := strings.IndexAny(given, "./"); i >= 0 && given[i] == '/' { // the form of the path, where dots are part of a name
		name, path = path, name
	}
	f.noDotDot(field, path)
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		f.add(field, "%q is not the name of a sysctl", given)
		return
	}
	ipc := name == "kernel.sem" || hasAnyPrefix(name, "kernel.shm", "kernel.msg", "fs.mqueue.")
	switch {
	case strings.HasPrefix(name, "net."):
		if ns.GetNetwork() == runtimev1.NamespaceMode_NODE {
			f.add(field, "%q must not be set on the host network", given)
		}
	case ipc:
		if ns.GetIpc() == runtimev1.NamespaceMode_NODE {
			f.add(field, "%q must not be set with the IPC namespace of the host", given)
		}
	default:
		f.add(field, "%q does not belong to a namespace of the pod", given)
	}
}

// sysctlSwap turns the name of a sysctl into its path below /proc/sys, and back.
var sysctlSwap = strings.NewReplacer("/", ".", ".", "/")

func hasAnyPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
