package specgen

import (
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces: network, ipc and uts are always the pod's, which may be the host's.
func (g *generator) namespaces() error {
	add := func(kind specs.LinuxNamespaceType, path string) {
		g.spec.Linux.Namespaces = append(g.spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	}
	join := func(kind specs.LinuxNamespaceType) {
		if path := g.Namespaces[kind]; path != "" {
			add(kind, path)
		}
	}
	add(specs.MountNamespace, "")
	pod := podNamespaces(g.Pod)
	if pod.GetNetwork() != runtimev1.NamespaceMode_NODE {
		join(specs.NetworkNamespace)
	}
	if pod.GetIpc() != runtimev1.NamespaceMode_NODE {
		join(specs.IPCNamespace)
	}
	join(specs.UTSNamespace)
	switch mode := g.namespacesOf().GetPid(); mode {
	case runtimev1.NamespaceMode_POD:
		join(specs.PIDNamespace)
	case runtimev1.NamespaceMode_CONTAINER:
		add(specs.PIDNamespace, "")
	case runtimev1.NamespaceMode_NODE:
	case runtimev1.NamespaceMode_TARGET:
		if g.namespacesOf().GetTargetId() == "" {
			return invalid(securityField+"namespace_options.target_id", "must name a container with pid TARGET")
		}
		join(specs.PIDNamespace)
	default:
		return invalid(securityField+"namespace_options.pid", "unknown value %d", mode)
	}
	if !g.privileged {
		add(specs.CgroupNamespace, "")
	}
	return g.userNamespace(join)
}

func (g *generator) userNamespace(join func(specs.LinuxNamespaceType)) error {
	pod, err := UserNamespace(g.Pod)
	if err != nil {
		return err
	}
	if asked := g.security.GetNamespaceOptions().GetUsernsOptions(); asked != nil {
		own, err := idMap(securityField+"namespace_options.userns_options", asked)
		if err != nil {
			return err
		}
		if !slices.Equal(own.UIDs, pod.UIDs) || !slices.Equal(own.GIDs, pod.GIDs) {
			return invalid(securityField+"namespace_options.userns_options", "differs from the pod's")
		}
	}
	if !pod.Used() {
		return nil
	}
	join(specs.UserNamespace)
	g.spec.Linux.UIDMappings, g.spec.Linux.GIDMappings = pod.UIDs, pod.GIDs
	return nil
}

// IDMap is a user namespace's mapping; without mappings there is none.
type IDMap struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// Used says whether there is a user namespace.
func (m IDMap) Used() bool { return len(m.UIDs) > 0 }

// UserNamespace returns the mapping that a pod asks for.
func UserNamespace(pod *runtimev1.PodSandboxConfig) (IDMap, error) {
	return idMap(securityField+"namespace_options.userns_options", podNamespaces(pod).GetUsernsOptions())
}

func idMap(field string, o *runtimev1.UserNamespace) (IDMap, error) {
	switch {
	case o == nil:
		return IDMap{}, nil
	case o.GetMode() == runtimev1.NamespaceMode_NODE:
		if len(o.GetUids())+len(o.GetGids()) > 0 {
			return IDMap{}, invalid(field, "mode NODE must not have mappings")
		}
		return IDMap{}, nil
	case o.GetMode() != runtimev1.NamespaceMode_POD:
		return IDMap{}, invalid(field+".mode", "%s is neither POD nor NODE", o.GetMode())
	}
	uids, err := podMapping(field+".uids", o.GetUids())
	if err != nil {
		return IDMap{}, err
	}
	gids, err := podMapping(field+".gids", o.GetGids())
	return IDMap{UIDs: uids, GIDs: gids}, err
}

// podMapping accepts exactly one mapping, which includes root.
func podMapping(field string, list []*runtimev1.IDMapping) ([]specs.LinuxIDMapping, error) {
	if len(list) != 1 {
		return nil, invalid(field, "must have exactly one mapping, not %d", len(list))
	}
	if list[0].GetContainerId() != 0 {
		return nil, invalid(field+"[0].container_id", "must be 0, so that root is mapped")
	}
	return mappings(field, list)
}

func mappings(field string, list []*runtimev1.IDMapping) ([]specs.LinuxIDMapping, error) {
	var all []specs.LinuxIDMapping
	for i, m := range list {
		if m.GetLength() == 0 {
			return nil, invalid(indexed(field, i)+".length", "must not be 0")
		}
		if uint64(max(m.GetHostId(), m.GetContainerId()))+uint64(m.GetLength()) > math.MaxUint32 {
			return nil, invalid(indexed(field, i), "goes beyond the largest id")
		}
		all = append(all, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return all, nil
}
