package cri

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/imageservice/remote"
)

// goodPod and goodContainer are requests without fault that use every field that is checked.
const goodPod = `{"metadata":{"name":"web-0","namespace":"default","uid":"6f1d"},"hostname":"web-0","logDirectory":"/var/log/pods/x",
"dnsConfig":{"servers":["10.0.0.10","fe80::1%eth0"],"searches":["a.svc"],"options":["ndots:5"]},
"portMappings":[{"protocol":"SCTP","containerPort":80,"hostPort":8080,"hostIp":"127.0.0.1"},{"containerPort":0}],
"linux":{"cgroupParent":"/kubepods/burstable/pod6f1d","sysctls":{"kernel.shm_rmid_forced":"1","net.ipv4.ip_local_port_range":"1024 65535","fs/mqueue/msg_max":"10","net/ipv4/conf/eth0.1/forwarding":"1"},
"resources":{"cpuPeriod":"100000","cpuQuota":"-1","memoryLimitInBytes":"1000","memorySwapLimitInBytes":"1000","oomScoreAdj":"-998","cpusetCpus":"0-3,7","unified":{"memory.high":"max"}},
"securityContext":{"namespaceOptions":{"network":"POD","pid":"CONTAINER","ipc":"POD","usernsOptions":{"mode":"POD","uids":[{"hostId":100000,"length":65536}],"gids":[{"hostId":100000,"length":65536}]}},
"runAsUser":{"value":"0"},"runAsGroup":{"value":"7"},"supplementalGroups":["1","2"],"seccomp":{"profileType":"Localhost","localhostRef":"/profiles/a.json"}}}}`

const goodContainer = `{"metadata":{"name":"nginx"},"image":{"image":"sha256:abc"},"command":["/bin/sh"],"args":["-c","echo"],"workingDir":"/","envs":[{"key":"A","value":"eA=="}],
"mounts":[{"containerPath":"/data","hostPath":"/srv","readonly":true,"recursiveReadOnly":true,"mountOptions":["noexec"],"uidMappings":[{"length":1}],"gidMappings":[{"length":1}]},
{"containerPath":"/img","image":{"image":"x"},"readonly":true,"imageSubPath":"a/b"}],
"devices":[{"hostPath":"/dev/fuse","containerPath":"/dev/fuse","permissions":"rw"}],"logPath":"nginx/0.log","stopSignal":"SIGNAL_SIGQUIT",
"linux":{"resources":{"cpuShares":"2","hugepageLimits":[{"pageSize":"2MB"}]},"securityContext":{"capabilities":{"addCapabilities":["NET_ADMIN"],"dropCapabilities":["all"],"addAmbientCapabilities":["CAP_NET_BIND_SERVICE"]},
"namespaceOptions":{"pid":"TARGET","targetId":"abc"},"runAsUsername":"www","runAsGroup":{"value":"7"},"maskedPaths":["/proc/acpi"],"readonlyPaths":["/proc/sys"],"seccomp":{},"apparmor":{"profileType":"Localhost","localhostRef":"x"}}}}`

// read parses JSON into a message of type T; change, if not empty, is merged into it: objects merge, the rest replaces.
func read[T any, M interface {
	*T
	proto.Message
}](t *testing.T, texts ...string) M {
	t.Helper()
	m := M(new(T))
	for _, text := range texts {
		next := M(new(T))
		if err := protojson.Unmarshal([]byte(text), next); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		proto.Merge(m, next)
	}
	return m
}

// check compares err with what it should say; nothing is success.
func check(t *testing.T, err error, want ...string) {
	t.Helper()
	if len(want) == 0 {
		if err != nil {
			t.Errorf("got error %v, want none", err)
		}
		return
	}
	if !errors.Is(err, errInvalid) {
		t.Fatalf("got error %v, want one that wraps errInvalid", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if got := strings.Count(err.Error(), ";") + 1; got != len(want) {
		t.Errorf("error %q names %d faults, want %d", err, got, len(want))
	}
}

func TestValidateRunPod(t *testing.T) {
	long := strings.Repeat("x", 254)
	for _, test := range []struct {
		name, change string // change is merged into goodPod
		want         []string
	}{
		{name: "good", change: `{}`},
		{"no name", `{"metadata":{"name":""}}`, []string{"config.metadata.name: must not be empty"}},
		{"no namespace", `{"metadata":{"namespace":""}}`, []string{"config.metadata.namespace: must not be empty"}},
		{"no uid", `{"metadata":{"uid":""}}`, []string{"config.metadata.uid: must not be empty"}},
		{"name too long", `{"metadata":{"name":"` + long + `"}}`, []string{"config.metadata.name: is longer than 253 bytes"}},
		{"name with line end", `{"metadata":{"name":"a\nb"}}`, []string{"config.metadata.name: "}},
		{"hostname too long", `{"hostname":"` + long[:65] + `"}`, []string{"config.hostname: "}},
		{"hostname with space", `{"hostname":"a b"}`, []string{"config.hostname: "}},
		{"relative log directory", `{"logDirectory":"logs"}`, []string{"config.log_directory: \"logs\" is not an absolute path"}},
		{"log directory that climbs", `{"logDirectory":"/var/../etc"}`, []string{"config.log_directory: "}},
		{"dns server", `{"dnsConfig":{"servers":["one"]}}`, []string{"config.dns_config.servers[2]: \"one\" is not an IP address"}},
		{"dns search that adds a line", `{"dnsConfig":{"searches":["a\nnameserver 6.6.6.6"]}}`, []string{"config.dns_config.searches[1]: "}},
		{"dns option", `{"dnsConfig":{"options":[""]}}`, []string{"config.dns_config.options[1]: "}},
		{"host port", `{"portMappings":[{"hostPort":65536,"containerPort":1}]}`, []string{"config.port_mappings[2].host_port: 65536"}},
		{"container port", `{"portMappings":[{"hostPort":80,"containerPort":0}]}`, []string{"config.port_mappings[2].container_port: 0"}},
		{"host ip", `{"portMappings":[{"hostPort":80,"containerPort":1,"hostIp":"x"}]}`, []string{"config.port_mappings[2].host_ip: "}},
		{"protocol", `{"portMappings":[{"protocol":9}]}`, []string{"config.port_mappings[2].protocol: 9 is not a known value"}},
		{"cgroup parent that climbs", `{"linux":{"cgroupParent":"/a/../../b"}}`, []string{"config.linux.cgroup_parent: "}},
		{"sysctl of the host", `{"linux":{"sysctls":{"vm.swappiness":"1"}}}`, []string{`config.linux.sysctls: "vm.swappiness" does not belong to a namespace`}},
		{"sysctl that climbs", `{"linux":{"sysctls":{"net/../vm/swappiness":"1"}}}`, []string{"config.linux.sysctls: "}},
		{"empty sysctl", `{"linux":{"sysctls":{"":"1"}}}`, []string{"config.linux.sysctls: "}},
		{"net sysctl on the host network", `{"linux":{"securityContext":{"namespaceOptions":{"network":"NODE"}}}}`,
			[]string{`"net.ipv4.ip_local_port_range" must not be set on the host network`, `"net/ipv4/conf/eth0.1/forwarding" must not`}},
		{"ipc sysctl with host ipc", `{"linux":{"securityContext":{"namespaceOptions":{"ipc":"NODE"}}}}`,
			[]string{`"kernel.shm_rmid_forced" must not be set with the IPC namespace of the host`, `"fs/mqueue/msg_max" must not`}},
		{"network namespace", `{"linux":{"securityContext":{"namespaceOptions":{"network":"CONTAINER"}}}}`, []string{"config.linux.security_context.namespace_options.network: "}},
		{"ipc namespace", `{"linux":{"securityContext":{"namespaceOptions":{"ipc":"TARGET"}}}}`, []string{"config.linux.security_context.namespace_options.ipc: "}},
		{"pid of a target", `{"linux":{"securityContext":{"namespaceOptions":{"pid":"TARGET","targetId":"x"}}}}`, []string{"namespace_options.pid: TARGET is for containers only"}},
		{"unknown pid mode", `{"linux":{"securityContext":{"namespaceOptions":{"pid":17}}}}`, []string{"namespace_options.pid: 17"}},
		{"two uid mappings", `{"linux":{"securityContext":{"namespaceOptions":{"usernsOptions":{"uids":[{"length":1}]}}}}}`, []string{"userns_options.uids: must have exactly one mapping, not 2"}},
		{"user namespace of a container", `{"linux":{"securityContext":{"namespaceOptions":{"usernsOptions":{"mode":"CONTAINER"}}}}}`, []string{"userns_options.mode: CONTAINER"}},
		{"mappings without user namespace", `{"linux":{"securityContext":{"namespaceOptions":{"usernsOptions":{"mode":"NODE"}}}}}`, []string{"userns_options: mode NODE must not have mappings"}},
		{"user id", `{"linux":{"securityContext":{"runAsUser":{"value":"-1"}}}}`, []string{"config.linux.security_context.run_as_user: -1"}},
		{"group id", `{"linux":{"securityContext":{"runAsGroup":{"value":"4294967295"}}}}`, []string{"config.linux.security_context.run_as_group: 4294967295"}},
		{"label", `{"linux":{"securityContext":{"selinuxOptions":{"user":"a b","role":"c:d","level":"s0:c1,c2"}}}}`,
			[]string{"security_context.selinux_options.user: ", "security_context.selinux_options.role: "}},
		{"apparmor without profile", `{"linux":{"securityContext":{"apparmor":{"profileType":"Localhost"}}}}`, []string{"security_context.apparmor.localhost_ref: must name the profile"}},
		{"supplemental group", `{"linux":{"securityContext":{"supplementalGroups":["-5"]}}}`, []string{"security_context.supplemental_groups[2]: -5"}},
		{"policy", `{"linux":{"securityContext":{"supplementalGroupsPolicy":5}}}`, []string{"security_context.supplemental_groups_policy: 5"}},
		{"seccomp type", `{"linux":{"securityContext":{"seccomp":{"profileType":8}}}}`, []string{"seccomp.profile_type: 8", "seccomp.localhost_ref: is only for"}},
		{"seccomp file", `{"linux":{"securityContext":{"seccomp":{"localhostRef":"a.json"}}}}`, []string{"seccomp.localhost_ref: \"a.json\" is not an absolute path"}},
		{"resources", `{"linux":{"resources":{"cpuPeriod":"10"}}}`, []string{"config.linux.resources.cpu_period: 10"}},
		{"overhead", `{"linux":{"overhead":{"cpuShares":"-1"}}}`, []string{"config.linux.overhead.cpu_shares: -1"}},
		{"many at once", `{"metadata":{"name":"\u0001"},"hostname":"a b","logDirectory":"x"}`, []string{"metadata.name", "hostname", "log_directory"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := read[runtimev1.PodSandboxConfig](t, goodPod, test.change)
			for _, field := range []string{"name", "namespace", "uid"} { // merging cannot empty a field
				if strings.Contains(test.change, fmt.Sprintf("%q:\"\"", field)) {
					m := config.Metadata.ProtoReflect()
					m.Clear(m.Descriptor().Fields().ByName(protoreflect.Name(field)))
				}
			}
			check(t, validateRunPod(&runtimev1.RunPodSandboxRequest{Config: config}, []string{""}), test.want...)
		})
	}
}

func TestValidateRunPodWithoutParts(t *testing.T) {
	check(t, validateRunPod(&runtimev1.RunPodSandboxRequest{}, nil), "config: must not be empty")
	check(t, validateRunPod(&runtimev1.RunPodSandboxRequest{Config: &runtimev1.PodSandboxConfig{}}, nil), "config.metadata: must not be empty")
	minimal := &runtimev1.PodSandboxConfig{Metadata: &runtimev1.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}}
	check(t, validateRunPod(&runtimev1.RunPodSandboxRequest{Config: minimal}, nil))
	check(t, validateRunPod(&runtimev1.RunPodSandboxRequest{Config: minimal, RuntimeHandler: "kata"}, []string{"", "x"}), `runtime_handler: there is no runtime handler "kata"`)
	check(t, validateRunPod(&runtimev1.RunPodSandboxRequest{Config: minimal, RuntimeHandler: "x"}, []string{"", "x"}))
	for _, change := range []struct {
		field string
		uid   *runtimev1.IDMapping
		want  []string
	}{
		{"empty", &runtimev1.IDMapping{HostId: 1}, []string{"uids[0].length: must not be 0"}},
		{"not root", &runtimev1.IDMapping{ContainerId: 1, Length: 1}, []string{"uids[0].container_id: must be 0"}},
		{"too far", &runtimev1.IDMapping{HostId: 1 << 31, Length: 1<<31 + 1}, []string{"uids[0]: goes beyond the largest id"}},
	} {
		t.Run(change.field, func(t *testing.T) {
			u := &runtimev1.UserNamespace{Uids: []*runtimev1.IDMapping{change.uid}, Gids: []*runtimev1.IDMapping{{Length: 1}}}
			config := proto.CloneOf(minimal)
			config.Linux = &runtimev1.LinuxPodSandboxConfig{SecurityContext: &runtimev1.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimev1.NamespaceOption{UsernsOptions: u}}}
			check(t, validateRunPod(&runtimev1.RunPodSandboxRequest{Config: config}, nil), change.want...)
		})
	}
}

func TestValidateCreateContainer(t *testing.T) {
	for _, test := range []struct {
		name, change string // change is merged into goodContainer
		want         []string
	}{
		{name: "good", change: `{}`},
		{"name with NUL", `{"metadata":{"name":"a\u0000b"}}`, []string{"config.metadata.name: "}},
		{"image with space", `{"image":{"image":"a b"}}`, []string{"config.image.image: "}},
		{"image's handler", `{"image":{"runtimeHandler":"kata"}}`, []string{`config.image.runtime_handler: there is no runtime handler "kata"`}},
		{"NUL in command", `{"command":["a\u0000"]}`, []string{"config.command[1]: has a NUL byte"}},
		{"NUL in args", `{"args":["a\u0000"]}`, []string{"config.args[2]: has a NUL byte"}},
		{"relative working directory", `{"workingDir":"work"}`, []string{"config.working_dir: \"work\" is not an absolute path"}},
		{"variable without name", `{"envs":[{"key":""}]}`, []string{"config.envs[1].key: "}},
		{"variable with equals sign", `{"envs":[{"key":"A=B"}]}`, []string{"config.envs[1].key: "}},
		{"NUL in a variable", `{"envs":[{"key":"A","value":"AA=="}]}`, []string{"config.envs[1].value: has a NUL byte"}},
		{"stop signal", `{"stopSignal":99}`, []string{"config.stop_signal: 99 is not a known value"}},
		{"mount without paths", `{"mounts":[{}]}`, []string{"config.mounts[2].container_path: must not be empty", "config.mounts[2].host_path: must not be empty"}},
		{"relative mount", `{"mounts":[{"containerPath":"a","hostPath":"b"}]}`, []string{"config.mounts[2].container_path: \"a\"", "config.mounts[2].host_path: \"b\""}},
		{"mount over the root by a detour", `{"mounts":[{"containerPath":"/a/..","hostPath":"/b"}]}`, []string{"config.mounts[2].container_path: must not be the root"}},
		{"mount over the root", `{"mounts":[{"containerPath":"//.","hostPath":"/b"}]}`, []string{"config.mounts[2].container_path: must not be the root"}},
		{"propagation", `{"mounts":[{"containerPath":"/a","hostPath":"/b","propagation":9}]}`, []string{"config.mounts[2].propagation: 9"}},
		{"recursive read-only that is writable", `{"mounts":[{"containerPath":"/a","hostPath":"/b","recursiveReadOnly":true}]}`, []string{"config.mounts[2].recursive_read_only: needs readonly"}},
		{"recursive read-only that is bidirectional", `{"mounts":[{"containerPath":"/a","hostPath":"/b","readonly":true,"recursiveReadOnly":true,"propagation":"PROPAGATION_BIDIRECTIONAL"}]}`,
			[]string{"config.mounts[2].recursive_read_only: needs propagation PRIVATE"}},
		{"recursive read-only from the host", `{"mounts":[{"containerPath":"/a","hostPath":"/b","readonly":true,"recursiveReadOnly":true,"propagation":"PROPAGATION_HOST_TO_CONTAINER"}]}`,
			[]string{"config.mounts[2].recursive_read_only: needs propagation PRIVATE"}},
		{"half an id mapping", `{"mounts":[{"containerPath":"/a","hostPath":"/b","uidMappings":[{"length":1}]}]}`, []string{"config.mounts[2].gidMappings: "}},
		{"mount option", `{"mounts":[{"containerPath":"/a","hostPath":"/b","mountOptions":["nodev","suid"]}]}`, []string{`config.mounts[2].mount_options[1]: "suid"`}},
		{"image mount with host path", `{"mounts":[{"containerPath":"/a","hostPath":"/b","image":{"image":"x"},"readonly":true}]}`, []string{"config.mounts[2].host_path: must be empty"}},
		{"image mount that is writable", `{"mounts":[{"containerPath":"/a","image":{"image":"x"}}]}`, []string{"config.mounts[2].readonly: must be true"}},
		{"image sub path that climbs", `{"mounts":[{"containerPath":"/a","image":{"image":"x"},"readonly":true,"imageSubPath":"../x"}]}`, []string{"config.mounts[2].image_sub_path: "}},
		{"image sub path without image", `{"mounts":[{"containerPath":"/a","hostPath":"/b","imageSubPath":"x"}]}`, []string{"config.mounts[2].image_sub_path: needs an image"}},
		{"device", `{"devices":[{"hostPath":"fuse","containerPath":"/dev/../x","permissions":"rx"}]}`,
			[]string{"config.devices[1].host_path: ", "config.devices[1].container_path: ", "config.devices[1].permissions: "}},
		{"CDI", `{"CDIDevices":[{"name":"vendor.com/gpu=0"},{"name":"gpu"}]}`, []string{"config.CDI_devices[1].name: "}},
		{"log path that climbs", `{"logPath":"../../etc/passwd"}`, []string{"config.log_path: "}},
		{"absolute log path", `{"logPath":"/etc/passwd"}`, []string{"config.log_path: \"/etc/passwd\" must be relative"}},
		{"capability", `{"linux":{"securityContext":{"capabilities":{"addCapabilities":["net admin"]}}}}`, []string{`capabilities.add_capabilities[1]: "net admin"`}},
		{"dropped capability", `{"linux":{"securityContext":{"capabilities":{"dropCapabilities":[""]}}}}`, []string{"capabilities.drop_capabilities[1]: "}},
		{"ambient capability", `{"linux":{"securityContext":{"capabilities":{"addAmbientCapabilities":["-"]}}}}`, []string{"capabilities.add_ambient_capabilities[1]: "}},
		{"target without TARGET", `{"linux":{"securityContext":{"namespaceOptions":{"pid":"NODE"}}}}`, []string{"namespace_options.target_id: must be set with pid TARGET, and only then"}},
		{"two users", `{"linux":{"securityContext":{"runAsUser":{"value":"3"}}}}`, []string{"security_context.run_as_username: must not be given together"}},
		{"user name with group", `{"linux":{"securityContext":{"runAsUsername":"a:b"}}}`, []string{"security_context.run_as_username: "}},
		{"masked path", `{"linux":{"securityContext":{"maskedPaths":["proc"]}}}`, []string{"security_context.masked_paths[1]: "}},
		{"read-only path", `{"linux":{"securityContext":{"readonlyPaths":[""]}}}`, []string{"security_context.readonly_paths[1]: "}},
		{"seccomp without profile", `{"linux":{"securityContext":{"seccomp":{"profileType":"Localhost"}}}}`, []string{"seccomp.localhost_ref: must name the profile"}},
		{"label", `{"linux":{"securityContext":{"selinuxOptions":{"type":"a:b","level":"s0:c1 x"}}}}`,
			[]string{`selinux_options.type: "a:b" must not have a colon`, "selinux_options.level: "}},
		{"apparmor type", `{"linux":{"securityContext":{"apparmor":{"profileType":"Unconfined"}}}}`, []string{"apparmor.localhost_ref: is only for"}},
		{"quota", `{"linux":{"resources":{"cpuQuota":"-7"}}}`, []string{"config.linux.resources.cpu_quota: -7"}},
		{"small quota", `{"linux":{"resources":{"cpuQuota":"999"}}}`, []string{"config.linux.resources.cpu_quota: 999"}},
		{"memory", `{"linux":{"resources":{"memoryLimitInBytes":"-2"}}}`, []string{"config.linux.resources.memory_limit_in_bytes: -2"}},
		{"swap below memory", `{"linux":{"resources":{"memoryLimitInBytes":"10","memorySwapLimitInBytes":"9"}}}`, []string{"config.linux.resources.memory_swap_limit_in_bytes: 9"}},
		{"oom score", `{"linux":{"resources":{"oomScoreAdj":"1001"}}}`, []string{"config.linux.resources.oom_score_adj: 1001"}},
		{"cpus", `{"linux":{"resources":{"cpusetCpus":"3-1"}}}`, []string{"config.linux.resources.cpuset_cpus: \"3-1\""}},
		{"mems", `{"linux":{"resources":{"cpusetMems":"0,"}}}`, []string{"config.linux.resources.cpuset_mems: \"0,\""}},
		{"huge page", `{"linux":{"resources":{"hugepageLimits":[{}]}}}`, []string{"config.linux.resources.hugepage_limits[1].page_size: "}},
		{"unified file that climbs", `{"linux":{"resources":{"unified":{"../memory.max":"1"}}}}`, []string{`config.linux.resources.unified: "../memory.max"`}},
		{"unified value", `{"linux":{"resources":{"unified":{"memory.max":"\u0000"}}}}`, []string{"config.linux.resources.unified.memory.max: has a NUL byte"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &runtimev1.CreateContainerRequest{PodSandboxId: "abc", Config: read[runtimev1.ContainerConfig](t, goodContainer, test.change),
				SandboxConfig: read[runtimev1.PodSandboxConfig](t, goodPod)}
			check(t, validateCreateContainer(r, []string{""}), test.want...)
		})
	}
}

func TestValidateCreateContainerWithoutParts(t *testing.T) {
	check(t, validateCreateContainer(&runtimev1.CreateContainerRequest{}, nil),
		"pod_sandbox_id: must not be empty", "sandbox_config: must not be empty", "config: must not be empty")
	climbs := read[runtimev1.PodSandboxConfig](t, goodPod, `{"logDirectory":"logs/../.."}`)
	check(t, validateCreateContainer(&runtimev1.CreateContainerRequest{PodSandboxId: "a", Config: read[runtimev1.ContainerConfig](t, goodContainer), SandboxConfig: climbs}, nil),
		`sandbox_config.log_directory: "logs/../.." is not an absolute path`, "sandbox_config.log_directory: \"logs/../..\" must not have")
	check(t, validateCreateContainer(&runtimev1.CreateContainerRequest{PodSandboxId: "a", Config: &runtimev1.ContainerConfig{}, SandboxConfig: &runtimev1.PodSandboxConfig{}}, nil),
		"sandbox_config.metadata: must not be empty", "config.metadata: must not be empty", "config.image.image: must not be empty")
	noUser := read[runtimev1.ContainerConfig](t, `{"metadata":{"name":"a"},"image":{"image":"b"},"linux":{"securityContext":{"runAsGroup":{"value":"1"}}}}`)
	check(t, validateCreateContainer(&runtimev1.CreateContainerRequest{PodSandboxId: "a", Config: noUser, SandboxConfig: read[runtimev1.PodSandboxConfig](t, goodPod)}, nil),
		"config.linux.security_context.run_as_group: needs a user")
}

func TestValidateExecSync(t *testing.T) {
	check(t, validateExecSync(&runtimev1.ExecSyncRequest{ContainerId: "a", Cmd: []string{"true", ""}, Timeout: 5}))
	check(t, validateExecSync(&runtimev1.ExecSyncRequest{}), "container_id: must not be empty", "cmd: must not be empty")
	check(t, validateExecSync(&runtimev1.ExecSyncRequest{ContainerId: "a", Cmd: []string{"a", "b\x00"}}), "cmd[1]: has a NUL byte")
	check(t, validateExecSync(&runtimev1.ExecSyncRequest{ContainerId: "a", Cmd: []string{"a"}, Timeout: -1}), "timeout: -1 is negative")
	check(t, validateExecSync(&runtimev1.ExecSyncRequest{ContainerId: "a", Cmd: []string{"a"}, Timeout: 1 << 60}), "timeout: 1152921504606846976 seconds are too many")
}

func TestPullRequest(t *testing.T) {
	for _, test := range []struct {
		name, request string
		want          imageservice.PullRequest
		faults        []string
	}{
		{name: "anonymous", request: `{"image":{"image":"busybox"}}`, want: imageservice.PullRequest{Ref: "busybox"}},
		{name: "user and password", request: `{"image":{"image":"r/b"},"auth":{"username":"u","password":"p","serverAddress":"https://r"}}`,
			want: imageservice.PullRequest{Ref: "r/b", Auth: remote.Auth{Username: "u", Password: "p", ServerAddress: "https://r"}}},
		{name: "base64 of both, padded", request: `{"image":{"image":"b"},"auth":{"auth":"dTpwOnEA"}}`, want: imageservice.PullRequest{Ref: "b", Auth: remote.Auth{Auth: "dTpwOnEA"}}},
		{name: "user wins over base64", request: `{"image":{"image":"b"},"auth":{"username":"x","auth":"dTpwOnEA"}}`, want: imageservice.PullRequest{Ref: "b", Auth: remote.Auth{Username: "x", Auth: "dTpwOnEA"}}},
		{name: "tokens", request: `{"image":{"image":"b"},"auth":{"identityToken":"i","registryToken":"r"}}`, want: imageservice.PullRequest{Ref: "b", Auth: remote.Auth{IdentityToken: "i", RegistryToken: "r"}}},
		{name: "no image", request: `{}`, faults: []string{"image.image: must not be empty"}},
		{name: "unknown handler", request: `{"image":{"image":"b","runtimeHandler":"kata"}}`, faults: []string{"image.runtime_handler: "}},
		{name: "not base64", request: `{"image":{"image":"b"},"auth":{"auth":"%"}}`, faults: []string{"auth.auth: is not base64 of user:password"}},
		{name: "no colon in base64", request: `{"image":{"image":"b"},"auth":{"auth":"dQ=="}}`, faults: []string{"auth.auth: is not base64 of user:password"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := pullRequest(read[runtimev1.PullImageRequest](t, test.request), []string{""})
			check(t, err, test.faults...)
			if test.faults == nil && got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// FuzzValidate gives the validation what a client could send: it must not panic, and refuse with errInvalid only.
func FuzzValidate(f *testing.F) {
	for i, text := range []string{goodPod, goodContainer} {
		var m proto.Message = &runtimev1.PodSandboxConfig{}
		if i == 1 {
			m = &runtimev1.ContainerConfig{}
		}
		if err := protojson.Unmarshal([]byte(text), m); err != nil {
			f.Fatal(err)
		}
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		pod, container := &runtimev1.PodSandboxConfig{}, &runtimev1.ContainerConfig{}
		if proto.Unmarshal(raw, pod) != nil {
			pod = nil
		}
		if proto.Unmarshal(raw, container) != nil {
			container = nil
		}
		run, create, pull := &runtimev1.RunPodSandboxRequest{Config: pod}, &runtimev1.CreateContainerRequest{PodSandboxId: "a", Config: container, SandboxConfig: pod}, &runtimev1.PullImageRequest{}
		_, exec := proto.Unmarshal(raw, pull), &runtimev1.ExecSyncRequest{}
		_ = proto.Unmarshal(raw, exec)
		_, pullErr := pullRequest(pull, nil)
		for _, err := range []error{validateRunPod(run, nil), validateCreateContainer(create, nil), validateExecSync(exec), pullErr} {
			if err != nil && !errors.Is(err, errInvalid) {
				t.Errorf("refused with %v", err)
			}
		}
		for _, r := range []any{run, create, pull, exec} {
			if len(subject(r)) > 256 {
				t.Errorf("subject of %d bytes", len(subject(r)))
			}
		}
	})
}
