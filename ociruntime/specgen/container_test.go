//lint:file-ignore SA1019 old clients set the deprecated fields

package specgen

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/criserver/criserver/ociruntime/user"
)

var update = flag.Bool("update", false, "rewrite golden files")

// users is an image whose passwd has root and app.
func users(r user.Request) (user.User, error) {
	u := user.User{Home: "/", Additional: []uint32{0}}
	switch name, _, _ := strings.Cut(r.User, ":"); {
	case r.UID != nil:
		u.UID = *r.UID
	case name == "app":
		u = user.User{UID: 1000, GID: 1001, Name: "app", Home: "/home/app", Additional: []uint32{1001}}
		if !r.Strict {
			u.Additional = append(u.Additional, 50)
		}
	case name == "":
		u.Home = "/root"
	default:
		return u, &user.NotFoundError{Kind: "user", Name: name, File: "/etc/passwd"}
	}
	if r.GID != nil {
		u.GID = *r.GID
		u.Additional[0] = *r.GID
	}
	u.Additional = append(u.Additional, r.Groups...)
	return u, nil
}

func hostDevices(path string) ([]specs.LinuxDevice, error) {
	node := func(p, kind string, major, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: p, Type: kind, Major: major, Minor: minor, FileMode: new(os.FileMode(0o660)), UID: new(uint32(0)), GID: new(uint32(6))}
	}
	switch path {
	case "/dev":
		return []specs.LinuxDevice{node("/dev/console", "c", 5, 1), node("/dev/null", "c", 1, 3), node("/dev/kmsg", "c", 1, 11), node("/dev/vda", "b", 254, 0)}, nil
	case "/dev/fuse":
		return []specs.LinuxDevice{node("/dev/fuse", "c", 10, 229)}, nil
	case "/dev/snd":
		return []specs.LinuxDevice{node("/dev/snd/timer", "c", 116, 33), node("/dev/snd/by/seq", "c", 116, 1)}, nil
	}
	return nil, fmt.Errorf("stat %s: no such file or directory", path)
}

func plainHandler() *Handler {
	h := DefaultHandler()
	return &h
}

// base is the smallest complete input.
func base() Input {
	return Input{
		Pod: &runtimev1.PodSandboxConfig{
			Metadata: &runtimev1.PodSandboxMetadata{Name: "web-0", Namespace: "default", Uid: "u-1"},
			Linux:    &runtimev1.LinuxPodSandboxConfig{SecurityContext: &runtimev1.LinuxSandboxSecurityContext{}},
		},
		Container: &runtimev1.ContainerConfig{
			Metadata: &runtimev1.ContainerMetadata{Name: "web"},
			Command:  []string{"/bin/server"},
			Linux:    &runtimev1.LinuxContainerConfig{SecurityContext: &runtimev1.LinuxContainerSecurityContext{NamespaceOptions: &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER}}},
		},
		ImageName:   "registry.example/web:1",
		PodID:       "p0",
		Hostname:    "web-0",
		CgroupsPath: "/kubepods/pod1/c0",
		Files:       PodFiles{Hostname: "/run/pod/hostname", Hosts: "/run/pod/hosts", ResolvConf: "/run/pod/resolv.conf", Shm: "/run/pod/shm"},
		Namespaces: map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "/proc/7/ns/net", specs.IPCNamespace: "/proc/7/ns/ipc",
			specs.UTSNamespace: "/proc/7/ns/uts", specs.PIDNamespace: "/proc/8/ns/pid", specs.UserNamespace: "/proc/7/ns/user"},
		User: users,
		Host: Host{LastCap: 40, RecursiveReadOnly: true, Devices: hostDevices, CgroupV2: true,
			AppArmor: &AppArmor{Default: "cri-default", Loaded: func(p string) (bool, error) { return p == "mine", nil }}},
		Handler: plainHandler(),
	}
}

type change func(in *Input, c *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext)

func changed(f change) Input {
	in := base()
	f(&in, in.Container, in.Container.Linux.SecurityContext)
	return in
}

func userNS(container, host, length uint32) *runtimev1.UserNamespace {
	m := func() []*runtimev1.IDMapping {
		return []*runtimev1.IDMapping{{ContainerId: container, HostId: host, Length: length}}
	}
	return &runtimev1.UserNamespace{Mode: runtimev1.NamespaceMode_POD, Uids: m(), Gids: m()}
}

func privileged(in *Input, s *runtimev1.LinuxContainerSecurityContext) {
	s.Privileged = true
	in.Pod.Linux.SecurityContext.Privileged = true
}

var golden = []struct {
	name string
	f    change
}{
	{"minimal", func(*Input, *runtimev1.ContainerConfig, *runtimev1.LinuxContainerSecurityContext) {}},
	{"image-config", func(in *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Command = nil
		in.Image.Config = ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, User: "app:staff", WorkingDir: "srv", Env: []string{"PATH=/opt/bin", "A=1"}}
	}},
	{"args-replace-cmd", func(in *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Command, c.Args = nil, []string{"other"}
		in.Image.Config = ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}}
	}},
	{"command-replaces-both", func(in *Input, _ *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		in.Image.Config = ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}}
	}},
	{"empty-entrypoint", func(in *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Command = nil
		in.Image.Config = ocispec.ImageConfig{Entrypoint: []string{""}, Cmd: []string{"/bin/sh"}}
	}},
	{"environment", func(in *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		in.Image.Config.Env = []string{"A=image", "B=image", "HOSTNAME=image", "BARE"}
		c.Tty, c.WorkingDir = true, "/work/../tmp/"
		c.Envs = []*runtimev1.KeyValue{{Key: "A", Value: []byte("first")}, {Key: "C", Value: []byte("x=y")}, {Key: "A", Value: []byte("last")}, {Key: "HOME", Value: nil}, {Key: "TERM", Value: []byte("vt100")}}
	}},
	{"user-ids", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Image.Config.User = "app"
		s.RunAsUser, s.RunAsGroup = &runtimev1.Int64Value{Value: 1005}, &runtimev1.Int64Value{Value: 0}
		s.SupplementalGroups = []int64{1234, 50000}
	}},
	{"user-name-strict", func(_ *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		s.RunAsUsername, s.SupplementalGroups, s.SupplementalGroupsPolicy = "app", []int64{7}, runtimev1.SupplementalGroupsPolicy_Strict
	}},
	{"mounts", func(_ *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Mounts = []*runtimev1.Mount{
			{ContainerPath: "/data/deep/er", HostPath: "/h/1"},
			{ContainerPath: "/data/", HostPath: "/h/2", Readonly: true, Propagation: runtimev1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{ContainerPath: "/rro", HostPath: "/h/3", Readonly: true, RecursiveReadOnly: true},
			{ContainerPath: "/opt", HostPath: "/h/4", MountOptions: []string{"noexec", "nodev", "nosuid"}},
			{ContainerPath: "/etc/hosts", HostPath: "/h/hosts"},
			{ContainerPath: "/opt", HostPath: "/h/5"},
		}
	}},
	{"mount-shared", func(_ *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Mounts = []*runtimev1.Mount{
			{ContainerPath: "/a", HostPath: "/a", Propagation: runtimev1.MountPropagation_PROPAGATION_BIDIRECTIONAL},
			{ContainerPath: "/b", HostPath: "/b", Propagation: runtimev1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		}
	}},
	{"mount-dev-and-sys", func(_ *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Mounts = []*runtimev1.Mount{{ContainerPath: "/dev", HostPath: "/dev"}, {ContainerPath: "/sys", HostPath: "/sys", Readonly: true}}
	}},
	{"volumes", func(in *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		in.Volumes = []*runtimev1.Mount{{ContainerPath: "/var/lib/db", HostPath: "/v/0"}, {ContainerPath: "/cache", HostPath: "/v/1"}}
		c.Mounts = []*runtimev1.Mount{{ContainerPath: "/cache", HostPath: "/h/cache"}}
	}},
	{"image-volumes", func(in *Input, c *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Pod.Linux.SecurityContext.NamespaceOptions = &runtimev1.NamespaceOption{UsernsOptions: userNS(0, 100000, 65536)}
		s.NamespaceOptions.UsernsOptions = userNS(0, 100000, 65536)
		in.ImageVolumes = map[int]string{0: "/v/image/0", 2: "/v/image/2"}
		mapping := userNS(0, 100000, 65536)
		c.Mounts = []*runtimev1.Mount{
			{ContainerPath: "/model", Image: &runtimev1.ImageSpec{Image: "model"}, Readonly: true, UidMappings: mapping.Uids, GidMappings: mapping.Gids},
			{ContainerPath: "/data", HostPath: "/h/1", UidMappings: mapping.Uids, GidMappings: mapping.Gids},
			{ContainerPath: "/model/tools", Image: &runtimev1.ImageSpec{Image: "tools"}, ImageSubPath: "bin", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}},
		}
	}},
	{"readonly-root", func(_ *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		s.ReadonlyRootfs, s.NoNewPrivs = true, true
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
	}},
	{"devices", func(_ *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Devices = []*runtimev1.Device{{HostPath: "/dev/fuse", Permissions: "rw"}, {HostPath: "/dev/snd", ContainerPath: "/dev/audio"}, {HostPath: "/dev/fuse", ContainerPath: "/dev/other", Permissions: "r"}}
	}},
	{"privileged", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		privileged(in, s)
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		s.Seccomp = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: "/none"}
		s.Apparmor = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: "none"}
		in.Labels = Labels{Process: "system_u:system_r:spc_t:s0", Mount: "system_u:object_r:container_file_t:s0:c1,c2"}
	}},
	{"caps-drop-all-add", func(_ *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimev1.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"net_admin", "CAP_Chown"}}
	}},
	{"caps-add-all-drop", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Host.LastCap = 5
		s.Capabilities = &runtimev1.Capability{AddCapabilities: []string{"all"}, DropCapabilities: []string{"KILL"}}
	}},
	{"caps-ambient", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Image.Config.User = "app"
		s.Capabilities = &runtimev1.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	}},
	{"seccomp-default", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		s.Seccomp = &runtimev1.SecurityProfile{}
	}},
	{"labels", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Labels = Labels{Process: "system_u:system_r:web_t:s0:c1,c2", Mount: "system_u:object_r:container_file_t:s0:c1,c2"}
		s.ApparmorProfile = "localhost/mine"
	}},
	{"no-apparmor", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Host.AppArmor = nil
		s.Apparmor = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}
	}},
	{"resources", func(_ *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		c.Linux.Resources = &runtimev1.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 1 << 28, OomScoreAdj: 900,
			CpusetCpus: "0-1", CpusetMems: "0", HugepageLimits: []*runtimev1.HugepageLimit{{PageSize: "2Mi", Limit: 0}, {PageSize: "1GB", Limit: 1 << 30}},
			Unified: map[string]string{"memory.oom.group": "1"}}
	}},
	{"resources-unlimited", func(in *Input, c *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		in.Host.CgroupV2 = false
		c.Linux.Resources = &runtimev1.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: 1 << 28, MemorySwapLimitInBytes: -1, OomScoreAdj: -997}
	}},
	{"host-namespaces", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		o := &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE, Ipc: runtimev1.NamespaceMode_NODE, Pid: runtimev1.NamespaceMode_NODE}
		in.Pod.Linux.SecurityContext.NamespaceOptions, s.NamespaceOptions = o, o
		in.Files.Shm = "/dev/shm"
	}},
	{"pod-pid", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		s.NamespaceOptions = nil
		in.Pod.Linux.SecurityContext.NamespaceOptions = &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_POD}
	}},
	{"target-pid", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_TARGET, TargetId: "c9"}
		in.Namespaces[specs.PIDNamespace] = "/proc/99/ns/pid"
	}},
	{"user-namespace", func(in *Input, c *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Pod.Linux.SecurityContext.NamespaceOptions = &runtimev1.NamespaceOption{UsernsOptions: userNS(0, 200000, 65536)}
		s.NamespaceOptions.UsernsOptions = userNS(0, 200000, 65536)
		ids := []*runtimev1.IDMapping{{ContainerId: 0, HostId: 200000, Length: 65536}}
		c.Mounts = []*runtimev1.Mount{{ContainerPath: "/data", HostPath: "/h/1", UidMappings: ids, GidMappings: ids}}
	}},
	{"user-namespace-host-network", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		o := &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE, Pid: runtimev1.NamespaceMode_CONTAINER, UsernsOptions: userNS(0, 200000, 65536)}
		in.Pod.Linux.SecurityContext.NamespaceOptions, s.NamespaceOptions = o, o
	}},
}

var goldenHandlers = []struct {
	name string
	f    change
}{
	{"handler", func(in *Input, c *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		in.Pod.Annotations = map[string]string{"example.com/a": "1", "example.com/b/c": "2", "other.com/a": "3", "io.kubernetes.cri.sandbox-name": "forged",
			"umask.crio.io": "077", "unified-cgroup.crio.io/web": "memory.high=7; pids.max=8;", "io.kubernetes.cri-o.Devices": "/dev/fuse:/dev/annotated:r"}
		c.Annotations = map[string]string{"device.example.com/x": "4", "example.com/a": "container's"}
		c.Devices = []*runtimev1.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/other"}}
		s.RunAsUser, s.RunAsGroup = &runtimev1.Int64Value{Value: 1005}, &runtimev1.Int64Value{Value: 7}
		*in.Handler = Handler{
			Capabilities: []string{"chown", "CAP_KILL"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 5, Hard: 500}, {Type: "RLIMIT_CORE", Hard: 9}},
			Env: []string{"A=handler", "PATH=/handler"}, DeviceOwnership: true, PidsLimit: 50, CgroupWritable: true, PrivilegedDevices: PrivilegedHost,
			SeccompUnset: runtimeDefault, PodAnnotations: []string{"example.com/*", "io.kubernetes.*"}, ContainerAnnotations: []string{"device.example.com/?"},
			AllowedAnnotations: []string{"umask.crio.io", "io.kubernetes.cri-o.UnifiedCgroup", "devices.crio.io"}, AnnotationDevices: []string{"/dev/fuse"},
		}
		in.Host.Ceiling = map[string]uint64{"RLIMIT_NOFILE": 100}
	}},
	{"handler-annotations-not-allowed", func(in *Input, _ *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		in.Pod.Annotations = map[string]string{"umask.crio.io": "9", "unified-cgroup.crio.io/web": "x", "devices.crio.io": "/dev/none", "cgroup2-mount-hierarchy-rw.crio.io": "true"}
	}},
	{"handler-privileged-allowed", func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		privileged(in, s)
		in.Handler.PrivilegedDevices = PrivilegedAllowed
	}},
	{"handler-privileged-none", func(in *Input, c *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		privileged(in, s)
		in.Handler.PrivilegedDevices = PrivilegedNone
		c.Devices = []*runtimev1.Device{{HostPath: "/dev/fuse"}}
	}},
	{"handler-cgroup-writable-v1", func(in *Input, _ *runtimev1.ContainerConfig, _ *runtimev1.LinuxContainerSecurityContext) {
		in.Host.CgroupV2, in.Handler.CgroupWritable, in.Handler.Capabilities = false, true, []string{"ALL"}
	}},
}

func TestGolden(t *testing.T) {
	golden := slices.Concat(golden, goldenHandlers)
	for _, c := range golden {
		t.Run(c.name, func(t *testing.T) {
			spec, err := Container(changed(c.f))
			if err != nil {
				t.Fatal(err)
			}
			if spec.Linux.Seccomp != nil { // its own package tests it
				spec.Linux.Seccomp.Syscalls = nil
			}
			got, err := json.MarshalIndent(spec, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", c.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("%s differs (-update rewrites it):\n%s", file, got)
			}
		})
	}
}

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

func TestRequestIsNotChanged(t *testing.T) {
	for _, c := range golden {
		in := changed(c.f)
		pod, config := proto.Clone(in.Pod), proto.Clone(in.Container)
		spec, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		for i := range spec.Process.Env {
			spec.Process.Env[i] = "changed"
		}
		if !proto.Equal(pod, in.Pod) || !proto.Equal(config, in.Container) {
			t.Errorf("%s: the request was changed", c.name)
		}
	}
}

func FuzzContainer(f *testing.F) {
	for _, c := range golden {
		in := changed(c.f)
		pod, err := proto.Marshal(in.Pod)
		if err != nil {
			f.Fatal(err)
		}
		config, err := proto.Marshal(in.Container)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pod, config)
	}
	f.Fuzz(func(t *testing.T, pod, config []byte) {
		in := base()
		in.Pod, in.Container = &runtimev1.PodSandboxConfig{}, &runtimev1.ContainerConfig{}
		if proto.Unmarshal(pod, in.Pod) != nil || proto.Unmarshal(config, in.Container) != nil {
			t.Skip("not a message")
		}
		if _, err := PodSysctls(in.Pod, plainHandler()); err != nil {
			var bad *InvalidError
			if !errors.As(err, &bad) {
				t.Errorf("sysctls: %v is not an InvalidError", err)
			}
		}
		spec, err := Container(in)
		if err != nil {
			return
		}
		for i, m := range spec.Mounts {
			if !filepath.IsAbs(m.Destination) || m.Destination == "/" {
				t.Errorf("mount on %q", m.Destination)
			}
			if i > 0 && depth(spec.Mounts[i-1].Destination) > depth(m.Destination) {
				t.Errorf("%s is mounted before its parent could be", spec.Mounts[i-1].Destination)
			}
		}
		for _, s := range append(spec.Process.Args, spec.Process.Env...) {
			if strings.ContainsRune(s, 0) {
				t.Errorf("NUL byte in %q", s)
			}
		}
	})
}
