//lint:file-ignore SA1019 old clients set the deprecated fields

package specgen

import (
	"errors"
	"strings"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

func TestRefusals(t *testing.T) {
	type (
		in  = *Input
		cfg = *runtimev1.ContainerConfig
		sec = *runtimev1.LinuxContainerSecurityContext
	)
	imageMount := func(f func(m *runtimev1.Mount)) change {
		return func(i in, c cfg, _ sec) {
			i.ImageVolumes = map[int]string{0: "/v/image/0"}
			m := &runtimev1.Mount{ContainerPath: "/data", Image: &runtimev1.ImageSpec{Image: "x"}, Readonly: true}
			f(m)
			c.Mounts = []*runtimev1.Mount{m}
		}
	}
	mount := func(f func(m *runtimev1.Mount)) change {
		return func(_ in, c cfg, _ sec) {
			m := &runtimev1.Mount{ContainerPath: "/data", HostPath: "/h"}
			f(m)
			c.Mounts = []*runtimev1.Mount{m}
		}
	}
	limits := func(r *runtimev1.LinuxContainerResources) change {
		return func(_ in, c cfg, _ sec) { c.Linux.Resources = r }
	}
	dev := func(d *runtimev1.Device) change {
		return func(_ in, c cfg, _ sec) { c.Devices = []*runtimev1.Device{d} }
	}
	ids := func(n uint32) []*runtimev1.IDMapping {
		return []*runtimev1.IDMapping{{ContainerId: 0, HostId: n, Length: 10}}
	}
	podUserNS := func(u *runtimev1.UserNamespace) change {
		return func(i in, _ cfg, _ sec) {
			i.Pod.Linux.SecurityContext.NamespaceOptions = &runtimev1.NamespaceOption{UsernsOptions: u}
		}
	}
	annotated := func(key, value string) change {
		return func(i in, _ cfg, _ sec) {
			i.Pod.Annotations = map[string]string{key: value}
			for _, a := range PeerAnnotations {
				i.Handler.AllowedAnnotations = append(i.Handler.AllowedAnnotations, a.Name)
			}
		}
	}
	local := func(ref string) *runtimev1.SecurityProfile {
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	for _, c := range []struct {
		want string
		f    change
	}{
		{"command: no command specified", func(_ in, c cfg, _ sec) { c.Command = nil }},
		{"command[1]: contains a NUL byte", func(_ in, c cfg, _ sec) { c.Command = []string{"a", "b\x00"} }},
		{"args[0]: contains a NUL byte", func(_ in, c cfg, _ sec) { c.Args = []string{"\x00"} }},
		{`envs[0].key: "A=B" is not the name`, func(_ in, c cfg, _ sec) { c.Envs = []*runtimev1.KeyValue{{Key: "A=B"}} }},
		{`envs[0].key: "" is not the name`, func(_ in, c cfg, _ sec) { c.Envs = []*runtimev1.KeyValue{{}} }},
		{`envs[0]: "A" contains a NUL byte`, func(_ in, c cfg, _ sec) { c.Envs = []*runtimev1.KeyValue{{Key: "A", Value: []byte{0}}} }},
		{`working_dir: "srv" is not an absolute path`, func(_ in, c cfg, _ sec) { c.WorkingDir = "srv" }},
		{"linux.security_context.privileged: the pod is not privileged", func(_ in, _ cfg, s sec) { s.Privileged = true }},
		{"linux.security_context.run_as_group: needs run_as_user or run_as_username", func(_ in, _ cfg, s sec) { s.RunAsGroup = &runtimev1.Int64Value{} }},
		{"linux.security_context.run_as_user: -1 is not between", func(_ in, _ cfg, s sec) { s.RunAsUser = &runtimev1.Int64Value{Value: -1} }},
		{"linux.security_context.run_as_user: 4294967295 is not between", func(_ in, _ cfg, s sec) { s.RunAsUser = &runtimev1.Int64Value{Value: 1<<32 - 1} }},
		{"linux.security_context.run_as_username: must not be given together", func(_ in, _ cfg, s sec) {
			s.RunAsUser, s.RunAsUsername = &runtimev1.Int64Value{}, "app"
		}},
		{`linux.security_context.run_as_username: "a:b" is not a user name`, func(_ in, _ cfg, s sec) { s.RunAsUsername = "a:b" }},
		{"linux.security_context.supplemental_groups[1]: -3 is not between", func(_ in, _ cfg, s sec) { s.SupplementalGroups = []int64{1, -3} }},
		{"linux.security_context.supplemental_groups_policy: unknown value 9", func(_ in, _ cfg, s sec) { s.SupplementalGroupsPolicy = 9 }},
		{`linux.security_context.capabilities.add_capabilities[0]: "FLY" is not a capability`, func(_ in, _ cfg, s sec) {
			s.Capabilities = &runtimev1.Capability{AddCapabilities: []string{"FLY"}}
		}},
		{`linux.security_context.capabilities.drop_capabilities[0]: "" is not`, func(_ in, _ cfg, s sec) {
			s.Capabilities = &runtimev1.Capability{DropCapabilities: []string{""}}
		}},
		{`linux.security_context.capabilities.add_ambient_capabilities[0]: "x" is not`, func(_ in, _ cfg, s sec) {
			s.Capabilities = &runtimev1.Capability{AddAmbientCapabilities: []string{"x"}}
		}},
		{`linux.security_context.masked_paths[0]: "proc" is not`, func(_ in, _ cfg, s sec) { s.MaskedPaths = []string{"proc"} }},
		{`linux.security_context.readonly_paths[0]: "" is not`, func(_ in, _ cfg, s sec) { s.ReadonlyPaths = []string{""} }},
		{"linux.security_context.seccomp.profile_type: unknown value 7", func(_ in, _ cfg, s sec) { s.Seccomp = &runtimev1.SecurityProfile{ProfileType: 7} }},
		{`linux.security_context.seccomp.localhost_ref: "x.json" is not an absolute path`, func(_ in, _ cfg, s sec) { s.Seccomp = local("x.json") }},
		{"linux.security_context.seccomp.localhost_ref: read seccomp profile: open /nowhere/x.json", func(_ in, _ cfg, s sec) { s.Seccomp = local("/nowhere/x.json") }},
		{`linux.security_context.seccomp_profile_path: unknown value "what"`, func(_ in, _ cfg, s sec) { s.SeccompProfilePath = "what" }},
		{"linux.security_context.seccomp_profile_path: read seccomp profile: open /nowhere/x.json", func(_ in, _ cfg, s sec) { s.SeccompProfilePath = "localhost//nowhere/x.json" }},
		{`linux.security_context.apparmor_profile: "" is not`, func(_ in, _ cfg, s sec) { s.ApparmorProfile = "localhost/" }},
		{`linux.security_context.apparmor_profile: profile "other" is not loaded`, func(_ in, _ cfg, s sec) { s.ApparmorProfile = "localhost/other" }},
		{`linux.security_context.apparmor: profile "other" is not loaded`, func(_ in, _ cfg, s sec) { s.Apparmor = local("localhost/other") }},
		{`linux.security_context.apparmor: profile "mine" is asked for, but this host has no AppArmor`, func(i in, _ cfg, s sec) {
			i.Host.AppArmor, s.Apparmor = nil, local("mine")
		}},
		{`linux.security_context.apparmor.localhost_ref: "" is not`, func(_ in, _ cfg, s sec) { s.Apparmor = local("") }},
		{`mounts[0].container_path: "data" is not`, mount(func(m *runtimev1.Mount) { m.ContainerPath = "data" })},
		{"mounts[0].container_path: must not be the root", mount(func(m *runtimev1.Mount) { m.ContainerPath = "/a/.." })},
		{`mounts[0].host_path: "" is not`, mount(func(m *runtimev1.Mount) { m.HostPath = "" })},
		{"mounts[0].readonly: must be true where an image", imageMount(func(m *runtimev1.Mount) { m.Readonly = false })},
		{"mounts[0].propagation: must be PRIVATE where an image", imageMount(func(m *runtimev1.Mount) { m.Propagation = 1 })},
		{"mounts[0].uidMappings: differ from", imageMount(func(m *runtimev1.Mount) {
			m.UidMappings, m.GidMappings = userNS(0, 5, 9).Uids, userNS(0, 5, 9).Gids
		})},
		{"mounts[0].propagation: unknown value 5", mount(func(m *runtimev1.Mount) { m.Propagation = 5 })},
		{"mounts[0].recursive_read_only: needs readonly", mount(func(m *runtimev1.Mount) { m.RecursiveReadOnly = true })},
		{"mounts[0].recursive_read_only: needs propagation PRIVATE", mount(func(m *runtimev1.Mount) { m.RecursiveReadOnly, m.Readonly, m.Propagation = true, true, 1 })},
		{`mounts[0].mount_options[1]: "sync" is not`, mount(func(m *runtimev1.Mount) { m.MountOptions = []string{"noexec", "sync"} })},
		{"mounts[0].uidMappings[0].length: must not be 0", mount(func(m *runtimev1.Mount) { m.UidMappings = []*runtimev1.IDMapping{{}} })},
		{"mounts[0].uidMappings: differ from", mount(func(m *runtimev1.Mount) { m.UidMappings, m.GidMappings = ids(5), ids(5) })},
		{"linux.security_context.namespace_options.userns_options.uids: must have exactly one mapping, not 0", podUserNS(&runtimev1.UserNamespace{Mode: runtimev1.NamespaceMode_POD})},
		{"linux.security_context.namespace_options.userns_options.uids[0].container_id: must be 0", podUserNS(userNS(1, 5, 9))},
		{"linux.security_context.namespace_options.userns_options.uids[0]: goes beyond", podUserNS(userNS(0, 1<<32-10, 65536))},
		{"linux.security_context.namespace_options.userns_options.mode: TARGET is neither", podUserNS(&runtimev1.UserNamespace{Mode: runtimev1.NamespaceMode_TARGET})},
		{"linux.security_context.namespace_options.userns_options: mode NODE must not have mappings", podUserNS(&runtimev1.UserNamespace{Mode: runtimev1.NamespaceMode_NODE, Uids: ids(1)})},
		{"linux.security_context.namespace_options.userns_options: differs from the pod's", func(_ in, _ cfg, s sec) { s.NamespaceOptions.UsernsOptions = userNS(0, 5, 9) }},
		{"linux.security_context.namespace_options.target_id: must name", func(_ in, _ cfg, s sec) { s.NamespaceOptions.Pid = runtimev1.NamespaceMode_TARGET }},
		{"linux.security_context.namespace_options.pid: unknown value 8", func(_ in, _ cfg, s sec) { s.NamespaceOptions.Pid = 8 }},
		{`devices[0].host_path: "fuse" is not`, dev(&runtimev1.Device{HostPath: "fuse"})},
		{"devices[0].host_path: stat /dev/none: no such file", dev(&runtimev1.Device{HostPath: "/dev/none"})},
		{`devices[0].container_path: "/dev/../x" is not`, dev(&runtimev1.Device{HostPath: "/dev/fuse", ContainerPath: "/dev/../x"})},
		{`devices[0].permissions: "rx" is not`, dev(&runtimev1.Device{HostPath: "/dev/fuse", Permissions: "rx"})},
		{"linux.resources.oom_score_adj: 1001 is not", limits(&runtimev1.LinuxContainerResources{OomScoreAdj: 1001})},
		{"linux.resources.cpu_period: -1 is negative", limits(&runtimev1.LinuxContainerResources{CpuPeriod: -1})},
		{"linux.resources.cpu_quota: -2 is below", limits(&runtimev1.LinuxContainerResources{CpuQuota: -2})},
		{"linux.resources.cpu_shares: -1 is negative", limits(&runtimev1.LinuxContainerResources{CpuShares: -1})},
		{"linux.resources.memory_limit_in_bytes: -2 is below", limits(&runtimev1.LinuxContainerResources{MemoryLimitInBytes: -2})},
		{"linux.resources.memory_swap_limit_in_bytes: 5 is below the memory limit of 9", limits(&runtimev1.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 5})},
		{`linux.resources.hugepage_limits[0].page_size: "2X" is not`, limits(&runtimev1.LinuxContainerResources{HugepageLimits: []*runtimev1.HugepageLimit{{PageSize: "2X"}}})},
		{`linux.resources.unified: "../x.y" is not`, limits(&runtimev1.LinuxContainerResources{Unified: map[string]string{"../x.y": "1"}})},
		{`annotations["umask.crio.io"]: "1000" is not an octal number`, annotated("umask.crio.io", "1000")},
		{`annotations["umask.crio.io"]: "8" is not an octal number`, annotated("umask.crio.io", "8")},
		{`annotations["devices.crio.io"]: device "/dev/sda" is not one that pods may ask for`, annotated("devices.crio.io", "/dev/fuse,/dev/sda")},
		{`annotations["devices.crio.io"]: "/dev/fuse:/a:r:w" is not of the form`, annotated("devices.crio.io", "/dev/fuse:/a:r:w")},
		{`annotations["devices.crio.io"].permissions: "x" is not`, annotated("devices.crio.io", "/dev/fuse:/dev/a:x")},
		{`annotations["unified-cgroup.crio.io/web"]: "memory.high" is not of the form`, annotated("unified-cgroup.crio.io/web", "memory.high")},
		{`annotations["io.kubernetes.cri-o.UnifiedCgroup.web"]: "../x.y=1" is not of the form`, annotated("io.kubernetes.cri-o.UnifiedCgroup.web", "../x.y=1")},
		{`annotations["unified-cgroup.crio.io.web"]: this host has no cgroup v2`, func(i in, c cfg, s sec) {
			annotated("unified-cgroup.crio.io.web", "a.b=1")(i, c, s)
			i.Host.CgroupV2 = false
		}},
		{`linux.security_context.run_as_username: user "ghost" is not in /etc/passwd of the image`, func(_ in, _ cfg, s sec) { s.RunAsUsername = "ghost" }},
		{`linux.security_context.run_as_username: user "7777" is not in /etc/passwd of the image`, func(_ in, _ cfg, s sec) { s.RunAsUsername = "7777" }},
		{`linux.resources.unified: "a.b": this host has no cgroup v2`, func(i in, c cfg, _ sec) {
			i.Host.CgroupV2 = false
			c.Linux.Resources = &runtimev1.LinuxContainerResources{Unified: map[string]string{"a.b": "1"}}
		}},
	} {
		t.Run(c.want, func(t *testing.T) {
			_, err := Container(changed(c.f))
			var bad *InvalidError
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || !errors.As(err, &bad) {
				t.Errorf("error %v, want an InvalidError that begins with %q", err, c.want)
			}
		})
	}
}

func TestOldKernelRefusesRecursiveReadOnly(t *testing.T) {
	_, err := Container(changed(func(in *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		in.Host.RecursiveReadOnly = false
		c.Mounts = []*runtimev1.Mount{{ContainerPath: "/a", HostPath: "/a", Readonly: true, RecursiveReadOnly: true}}
	}))
	var bad *InvalidError
	if !errors.Is(err, crierrors.ErrRROUnsupported) || !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), "RROUnsupported: mounts[0].recursive_read_only: ") {
		t.Errorf("error %v, want RROUnsupported with the field", err)
	}
}

func TestFaultsOfTheImageAreNotInvalid(t *testing.T) {
	for want, f := range map[string]change{
		`user "ghost" is not in /etc/passwd of the image`: func(in *Input, _ *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
			in.Image.Config.User = "ghost"
		},
		"image config: Env: ": func(in *Input, _ *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
			in.Image.Config.Env = []string{"A=\x00"}
		},
	} {
		_, err := Container(changed(f))
		var bad *InvalidError
		if err == nil || !strings.Contains(err.Error(), want) || errors.As(err, &bad) {
			t.Errorf("error %v, want one with %q that is not an InvalidError", err, want)
		}
	}
}
