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
	case name == "7777": // a number needs no entry
		u.UID = 7777
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
