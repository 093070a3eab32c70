package cri

import (
	"path"
	"strconv"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

func validateCreateContainer(r *runtimev1.CreateContainerRequest, handlers []string) error {
	var f faults
	f.required("pod_sandbox_id", r.GetPodSandboxId())
	if r.GetSandboxConfig() == nil {
		f.add("sandbox_config", "must not be empty")
	} else {
		f.podMetadata("sandbox_config.metadata", r.GetSandboxConfig().GetMetadata())
		f.logDirectory("sandbox_config.log_directory", r.GetSandboxConfig().GetLogDirectory())
	}
	c := r.GetConfig()
	if c == nil {
		f.add("config", "must not be empty")
		return f.err()
	}
	if c.GetMetadata() == nil {
		f.add("config.metadata", "must not be empty")
	} else {
		f.name("config.metadata.name", c.GetMetadata().GetName())
	}
	f.image("config.image", c.GetImage(), handlers)
	f.process("config", c)
	for i, m := range c.GetMounts() {
		f.mount(index("config.mounts", i), m, handlers)
	}
	for i, d := range c.GetDevices() {
		f.device(index("config.devices", i), d)
	}
	for i, d := range c.GetCDIDevices() {
		if !parser.IsQualifiedName(d.GetName()) {
			f.add(index("config.CDI_devices", i)+".name", "%q is not of the form vendor.com/class=name", d.GetName())
		}
	}
	if c.GetLogPath() != "" {
		f.inside("config.log_path", c.GetLogPath())
	}
	f.containerSecurity("config.linux.security_context", c.GetLinux().GetSecurityContext())
	f.resources("config.linux.resources", c.GetLinux().GetResources())
	return f.err()
}

// process reports what cannot be given to execve.
func (f *faults) process(field string, c *runtimev1.ContainerConfig) {
	for i, s := range c.GetCommand() {
		f.noNUL(index(field+".command", i), s)
	}
	for i, s := range c.GetArgs() {
		f.noNUL(index(field+".args", i), s)
	}
	if c.GetWorkingDir() != "" {
		f.absolute(field+".working_dir", c.GetWorkingDir())
	}
	for i, e := range c.GetEnvs() {
		if key := e.GetKey(); key == "" || strings.ContainsAny(key, "=\x00") {
			f.add(index(field+".envs", i)+".key", "%q is not the name of a variable", key)
		}
		f.noNUL(index(field+".envs", i)+".value", string(e.GetValue()))
	}
	f.in(field+".stop_signal", int32(c.GetStopSignal()), runtimev1.Signal_name)
}

func (f *faults) mount(field string, m *runtimev1.Mount, handlers []string) {
	f.absolute(field+".container_path", m.GetContainerPath())
	if m.GetContainerPath() != "" && path.Clean(m.GetContainerPath()) == "/" {
		f.add(field+".container_path", "must not be the root directory")
	}
	f.in(field+".propagation", int32(m.GetPropagation()), runtimev1.MountPropagation_name)
	if m.GetImage().GetImage() != "" {
		f.imageMount(field, m, handlers)
	} else {
		f.absolute(field+".host_path", m.GetHostPath())
		if m.GetImageSubPath() != "" {
			f.add(field+".image_sub_path", "needs an image")
		}
	}
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			f.add(field+".recursive_read_only", "needs readonly")
		}
		if m.GetPropagation() != runtimev1.MountPropagation_PROPAGATION_PRIVATE {
			f.add(field+".recursive_read_only", "needs propagation PRIVATE")
		}
	}
	if (len(m.GetUidMappings()) == 0) != (len(m.GetGidMappings()) == 0) {
		f.add(field+".gidMappings", "must be given together with uidMappings")
	}
	f.mappings(field+".uidMappings", m.GetUidMappings())
	f.mappings(field+".gidMappings", m.GetGidMappings())
	for i, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			f.add(index(field+".mount_options", i), "%q is not one of noexec, nodev, nosuid", o)
		}
	}
}

func (f *faults) imageMount(field string, m *runtimev1.Mount, handlers []string) {
	f.image(field+".image", m.GetImage(), handlers)
	if m.GetHostPath() != "" {
		f.add(field+".host_path", "must be empty where an image is mounted")
	}
	if !m.GetReadonly() {
		f.add(field+".readonly", "must be true where an image is mounted")
	}
	if m.GetPropagation() != runtimev1.MountPropagation_PROPAGATION_PRIVATE {
		f.add(field+".propagation", "must be PRIVATE where an image is mounted")
	}
	f.inside(field+".image_sub_path", m.GetImageSubPath())
}

func (f *faults) device(field string, d *runtimev1.Device) {
	f.absolute(field+".host_path", d.GetHostPath())
	if d.GetContainerPath() != "" {
		f.absolute(field+".container_path", d.GetContainerPath())
		f.noDotDot(field+".container_path", d.GetContainerPath())
	}
	if strings.Trim(d.GetPermissions(), "rwm") != "" || len(d.GetPermissions()) > 3 {
		f.add(field+".permissions", "%q is not made of r, w and m", d.GetPermissions())
	}
}

func (f *faults) containerSecurity(field string, sc *runtimev1.LinuxContainerSecurityContext) {
	f.namespaces(field+".namespace_options", sc.GetNamespaceOptions())
	f.user(field, sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetRunAsUsername())
	f.groups(field, sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
	f.capabilities(field+".capabilities", sc.GetCapabilities())
	f.seccomp(field+".seccomp", sc.GetSeccomp())
	f.profile(field+".apparmor", sc.GetApparmor())
	f.selinux(field+".selinux_options", sc.GetSelinuxOptions())
	for i, p := range sc.GetMaskedPaths() {
		f.absolute(index(field+".masked_paths", i), p)
	}
	for i, p := range sc.GetReadonlyPaths() {
		f.absolute(index(field+".readonly_paths", i), p)
	}
}

// resources reports limits that no kernel takes. Zero means "not set" throughout.
func (f *faults) resources(field string, r *runtimev1.LinuxContainerResources) {
	if p := r.GetCpuPeriod(); p != 0 && (p < 1000 || p > 1000000) {
		f.add(field+".cpu_period", "%d is not between 1000 and 1000000 microseconds", p)
	}
	if q := r.GetCpuQuota(); q < -1 || q > 0 && q < 1000 {
		f.add(field+".cpu_quota", "%d is neither -1 nor at least 1000 microseconds", q)
	}
	if r.GetCpuShares() < 0 {
		f.add(field+".cpu_shares", "%d is negative", r.GetCpuShares())
	}
	memory, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if memory < -1 {
		f.add(field+".memory_limit_in_bytes", "%d is negative", memory)
	}
	if swap < -1 || swap > 0 && swap < memory {
		f.add(field+".memory_swap_limit_in_bytes", "%d is neither -1 nor at least the memory limit of %d", swap, memory)
	}
	if o := r.GetOomScoreAdj(); o < -1000 || o > 1000 {
		f.add(field+".oom_score_adj", "%d is not between -1000 and 1000", o)
	}
	f.cpuset(field+".cpuset_cpus", r.GetCpusetCpus())
	f.cpuset(field+".cpuset_mems", r.GetCpusetMems())
	for i, h := range r.GetHugepageLimits() {
		f.word(index(field+".hugepage_limits", i)+".page_size", h.GetPageSize())
	}
	for key, value := range r.GetUnified() {
		if strings.Contains(key, "/") || !strings.Contains(strings.Trim(key, "."), ".") {
			f.add(field+".unified", "%q is not the name of a cgroup file", key)
		}
		f.noNUL(field+".unified."+key, value)
	}
}

// cpuset reports what is not a list such as "0-3,7".
func (f *faults) cpuset(field, list string) {
	if list == "" {
		return
	}
	for part := range strings.SplitSeq(list, ",") {
		low, high, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(low, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || b < a {
			f.add(field, "%q is not a list such as 0-3,7", list)
			return
		}
	}
}

func validateExecSync(r *runtimev1.ExecSyncRequest) error {
	var f faults
	f.required("container_id", r.GetContainerId())
	f.command(r.GetCmd())
	f.seconds("timeout", r.GetTimeout())
	if r.GetTimeout() < 0 {
		f.add("timeout", "%d is negative", r.GetTimeout())
	}
	return f.err()
}

// command reports what cannot be executed.
func (f *faults) command(cmd []string) {
	if len(cmd) == 0 || cmd[0] == "" {
		f.add("cmd", "must not be empty")
	}
	for i, s := range cmd {
		f.noNUL(index("cmd", i), s)
	}
}

// seconds reports what is too long for a duration.
func (f *faults) seconds(field string, s int64) {
	if s > maxSeconds {
		f.add(field, "%d seconds are too many", s)
	}
}

// maxSeconds is ten years: above it nobody means what they say, and a time.Duration overflows not far from there.
const maxSeconds = 10 * 365 * 24 * 3600

// validateID is for the requests that hold an id and nothing else to check.
func validateID(field, id string) error {
	var f faults
	f.required(field, id)
	return f.err()
}
