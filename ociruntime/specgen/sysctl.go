package specgen

import (
	"maps"
	"slices"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSysctls returns the kernel parameters of a pod's namespaces: those of its config, and what its handler lets
// programs do that are not root: listen on any port and send pings. Keys are dotted, unless a name (of an interface) has a
// dot itself: then they have slashes. Parameters of the node are refused.
func PodSysctls(pod *runtimev1.PodSandboxConfig, h *Handler) (map[string]string, error) {
	ns := podNamespaces(pod)
	all := make(map[string]string)
	if ns.GetNetwork() != runtimev1.NamespaceMode_NODE {
		if h.UnprivilegedPorts {
			all["net.ipv4.ip_unprivileged_port_start"] = "0"
		}
		inUserNS := ns.GetUsernsOptions() != nil && ns.GetUsernsOptions().GetMode() == runtimev1.NamespaceMode_POD
		if h.UnprivilegedICMP && !inUserNS { // which may not have these groups
			all["net.ipv4.ping_group_range"] = "0 2147483647"
		}
	}
	return all, addSysctls(all, "linux.sysctls", pod.GetLinux().GetSysctls(), ns)
}

// CheckSysctls refuses kernel parameters that are not the pod's, which somebody else than the kubelet asks for.
func CheckSysctls(pod *runtimev1.PodSandboxConfig, asked map[string]string) error {
	return addSysctls(make(map[string]string), "linux.sysctl", asked, podNamespaces(pod))
}

// addSysctls adds what is asked for to all.
func addSysctls(all map[string]string, field string, asked map[string]string, ns *runtimev1.NamespaceOption) error {
	spelt := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(asked)) {
		parts, err := sysctlParts(field, key)
		if err != nil {
			return err
		}
		name := strings.Join(parts, ".")
		if strings.Contains(strings.Join(parts, ""), ".") {
			name = strings.Join(parts, "/")
		}
		if other, ok := spelt[name]; ok {
			return invalid(field, "%q and %q are the same", other, key)
		}
		spelt[name] = key
		if reason := notOfPod(parts, ns); reason != "" {
			return invalid(field, "%q %s", key, reason)
		}
		if strings.ContainsAny(asked[key], "\x00\n") {
			return invalid(field, "value of %q is not one line", key)
		}
		all[name] = asked[key]
	}
	return nil
}

// sysctlParts understands both spellings: the separator that comes first tells which it is; in the other one's place
// stands a character of a name.
func sysctlParts(field, key string) ([]string, error) {
	separator, other := ".", "/"
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		separator, other = other, separator
	}
	parts := strings.Split(key, separator)
	for i, p := range parts {
		if separator == "." {
			p = strings.ReplaceAll(p, other, ".")
		}
		if p == "" || p == "." || p == ".." || strings.ContainsAny(p, "/\x00") {
			return nil, invalid(field, "%q is not the name of a kernel parameter", key)
		}
		parts[i] = p
	}
	if len(parts) < 2 {
		return nil, invalid(field, "%q is not the name of a kernel parameter", key)
	}
	return parts, nil
}

// notOfPod says why a parameter does not belong to a namespace of the pod.
func notOfPod(parts []string, ns *runtimev1.NamespaceOption) string {
	ipc := []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
	switch {
	case parts[0] == "net":
		if ns.GetNetwork() == runtimev1.NamespaceMode_NODE {
			return "belongs to the host's network, which the pod shares"
		}
	case slices.Contains(ipc, strings.Join(parts, ".")) || parts[0] == "fs" && parts[1] == "mqueue":
		if ns.GetIpc() == runtimev1.NamespaceMode_NODE {
			return "belongs to the host's IPC, which the pod shares"
		}
	default:
		return "belongs to no namespace of the pod"
	}
	return ""
}
