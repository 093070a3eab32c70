package cri

import (
	"math"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces reports what neither a pod nor a container may ask for.
func (f *faults) namespaces(field string, ns *runtimev1.NamespaceOption) {
	for _, o := range []struct {
		name string
		mode runtimev1.NamespaceMode
	}{{".network", ns.GetNetwork()}, {".ipc", ns.GetIpc()}} {
		if o.mode != runtimev1.NamespaceMode_POD && o.mode != runtimev1.NamespaceMode_NODE {
			f.add(field+o.name, "%s is neither POD nor NODE", o.mode)
		}
	}
	f.in(field+".pid", int32(ns.GetPid()), runtimev1.NamespaceMode_name)
	if target := ns.GetPid() == runtimev1.NamespaceMode_TARGET; target != (ns.GetTargetId() != "") {
		f.add(field+".target_id", "must be set with pid TARGET, and only then")
	}
	f.userns(field+".userns_options", ns.GetUsernsOptions())
}

func (f *faults) userns(field string, u *runtimev1.UserNamespace) {
	switch mode := u.GetMode(); {
	case u == nil:
	case mode == runtimev1.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			f.add(field, "mode NODE must not have mappings")
		}
	case mode == runtimev1.NamespaceMode_POD:
		f.podMapping(field+".uids", u.GetUids())
		f.podMapping(field+".gids", u.GetGids())
	default:
		f.add(field+".mode", "%s is neither POD nor NODE", mode)
	}
}

// podMapping reports anything but one mapping that includes root.
func (f *faults) podMapping(field string, list []*runtimev1.IDMapping) {
	if len(list) != 1 {
		f.add(field, "must have exactly one mapping, not %d", len(list))
		return
	}
	if list[0].GetContainerId() != 0 {
		f.add(field+"[0].container_id", "must be 0")
	}
	f.mappings(field, list)
}

// mappings reports mappings that are empty or go beyond the largest id.
func (f *faults) mappings(field string, list []*runtimev1.IDMapping) {
	for i, m := range list {
		if m.GetLength() == 0 {
			f.add(index(field, i)+".length", "must not be 0")
		}
		if uint64(max(m.GetHostId(), m.GetContainerId()))+uint64(m.GetLength()) > math.MaxUint32 {
			f.add(index(field, i), "goes beyond the largest id")
		}
	}
}

func (f *faults) user(field string, uid, gid *runtimev1.Int64Value, name string) {
	if uid != nil {
		f.id(field+".run_as_user", uid.GetValue())
	}
	if uid != nil && name != "" {
		f.add(field+".run_as_username", "must not be given together with run_as_user")
	}
	if gid != nil {
		f.id(field+".run_as_group", gid.GetValue())
		if uid == nil && name == "" {
			f.add(field+".run_as_group", "needs a user")
		}
	}
	f.printable(field+".run_as_username", name)
	if strings.Contains(name, ":") {
		f.add(field+".run_as_username", "%q must not have a colon", name)
	}
}

// id reports a user or group id that the kernel does not have; the largest one means "none" there.
func (f *faults) id(field string, id int64) {
	if id < 0 || id >= math.MaxUint32 {
		f.add(field, "%d is not between 0 and %d", id, uint32(math.MaxUint32-1))
	}
}

func (f *faults) groups(field string, groups []int64, policy runtimev1.SupplementalGroupsPolicy) {
	for i, g := range groups {
		f.id(index(field+".supplemental_groups", i), g)
	}
	f.in(field+".supplemental_groups_policy", int32(policy), runtimev1.SupplementalGroupsPolicy_name)
}

func (f *faults) seccomp(field string, p *runtimev1.SecurityProfile) {
	f.profile(field, p)
	if p.GetProfileType() == runtimev1.SecurityProfile_Localhost && p.GetLocalhostRef() != "" {
		f.absolute(field+".localhost_ref", p.GetLocalhostRef())
	}
}

func (f *faults) profile(field string, p *runtimev1.SecurityProfile) {
	f.in(field+".profile_type", int32(p.GetProfileType()), runtimev1.SecurityProfile_ProfileType_name)
	local := p.GetProfileType() == runtimev1.SecurityProfile_Localhost
	if local && p.GetLocalhostRef() == "" {
		f.add(field+".localhost_ref", "must name the profile")
	}
	if !local && p.GetLocalhostRef() != "" {
		f.add(field+".localhost_ref", "is only for profile type Localhost")
	}
}

// selinux reports what cannot be a part of a label. An empty part has a default.
func (f *faults) selinux(field string, o *runtimev1.SELinuxOption) {
	for _, part := range []struct{ name, value, not string }{
		{".user", o.GetUser(), ":"}, {".role", o.GetRole(), ":"}, {".type", o.GetType(), ":"}, {".level", o.GetLevel(), ""},
	} {
		switch {
		case part.value == "":
		case part.not != "" && strings.Contains(part.value, part.not):
			f.add(field+part.name, "%q must not have a colon", part.value)
		default:
			f.word(field+part.name, part.value)
		}
	}
}

func (f *faults) capabilities(field string, c *runtimev1.Capability) {
	for _, l := range []struct {
		name string
		list []string
	}{
		{".add_capabilities", c.GetAddCapabilities()},
		{".drop_capabilities", c.GetDropCapabilities()},
		{".add_ambient_capabilities", c.GetAddAmbientCapabilities()},
	} {
		for i, name := range l.list {
			letters := strings.Trim(strings.ToUpper(name), "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789")
			if name == "" || letters != "" {
				f.add(index(field+l.name, i), "%q is not the name of a capability", name)
			}
		}
	}
}
