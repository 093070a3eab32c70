package critest

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox/nri/nritest"
)

// adjusting connects a plugin that asks the same of every container.
func adjusting(t *testing.T, d *daemon, a *api.ContainerAdjustment) *nritest.Plugin {
	t.Helper()
	return plugged(t, d, &nritest.Plugin{Adjust: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		return a, nil
	}})
}

func onLinux(l *api.LinuxContainerAdjustment) *api.ContainerAdjustment {
	return &api.ContainerAdjustment{Linux: l}
}

// has compares limits of memory and processor time with the container's cgroup files.
func (c *container) has(t *testing.T, memory, quota int64) {
	t.Helper()
	limitFile{"memory.limit_in_bytes", "memory.max", strconv.FormatInt(memory, 10), strconv.FormatInt(memory, 10)}.check(t, c)
	limitFile{"cpu.cfs_quota_us", "cpu.max", strconv.FormatInt(quota, 10), strconv.FormatInt(quota, 10) + " 100000"}.check(t, c)
}

// What plugins ask is seen inside the container.
func TestNRIAdjustments(t *testing.T) {
	d := use(t)
	host := t.TempDir()
	write(t, filepath.Join(host, "file"), "from a plugin\n")
	describe(t, d, "nri.yaml", "cdiVersion: \"0.6.0\"\nkind: critest.io/nri\ndevices: [{name: x, containerEdits: {env: [\"CDI=yes\"]}}]\n")
	for _, row := range []struct {
		name         string
		asked        *api.ContainerAdjustment
		script, want string
	}{
		{"environment", &api.ContainerAdjustment{Env: []*api.KeyValue{{Key: "NEW", Value: "1"}, {Key: "-OLD"}}}, "echo $NEW $OLD", "1\n"},
		{"arguments", &api.ContainerAdjustment{Args: []string{"echo", "something else"}}, "echo this", "something else\n"},
		{"mount", &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/of/plugin", Source: host, Type: "bind", Options: []string{"rbind", "ro"}}}},
			"cat /of/plugin/file; touch /of/plugin/x 2>&1 | grep -c Read-only", "from a plugin\n1\n"},
		{"mount taken away", &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "-/of/pod"}}}, "ls -d /of 2>&1 | grep -c 'No such'", "1\n"},
		{"file instead of a directory", &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/of/pod", Source: filepath.Join(host, "file"), Type: "bind", Options: []string{"bind"}}}},
			"cat /of/pod", "from a plugin\n"},
		{"device", onLinux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/other-null", Type: "c", Major: 1, Minor: 3}}}),
			"echo x >/dev/other-null && stat -c '%t %T' /dev/other-null", "1 3\n"},
		{"CDI device", &api.ContainerAdjustment{CDIDevices: []*api.CDIDevice{{Name: "critest.io/nri=x"}}}, "echo $CDI", "yes\n"},
		{"limit of descriptors", &api.ContainerAdjustment{Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 88}}}, "ulimit -n; ulimit -Hn", "77\n88\n"},
		{"oom score", onLinux(&api.LinuxContainerAdjustment{OomScoreAdj: api.Int(543)}), "cat /proc/self/oom_score_adj", "543\n"},
		{"sysctl", onLinux(&api.LinuxContainerAdjustment{Sysctl: map[string]string{"net.ipv4.ip_default_ttl": "77"}}), "cat /proc/sys/net/ipv4/ip_default_ttl", "77\n"},
		{"scheduler", onLinux(&api.LinuxContainerAdjustment{Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 7}}),
			"cut -d' ' -f19,41 /proc/self/stat", "7 3\n"},
		{"I/O priority", onLinux(&api.LinuxContainerAdjustment{IoPriority: &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 6}}), "ionice -p $$", "best-effort: prio 6\n"},
		{"memory policy", onLinux(&api.LinuxContainerAdjustment{MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "0"}}),
			"grep -c bind:0 /proc/self/numa_maps >/dev/null && echo bound", "bound\n"},
		{"seccomp", onLinux(&api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW",
			Syscalls: []*api.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: api.UInt32(uint32(16))}}}}),
			"mkdir /x 2>&1 | grep -o busy", "busy\n"},
		{"host's cgroup namespace", onLinux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "-cgroup"}}}),
			"grep -c ':/$' /proc/self/cgroup | grep -v '^0' || echo host", "host\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			adjusting(t, d, row.asked)
			runPod(t, d, podNetwork).prints(t, row.want, row.script, func(c *cri.ContainerConfig) {
				c.Envs = []*cri.KeyValue{{Key: "OLD", Value: []byte("here")}}
				c.Mounts = []*cri.Mount{{ContainerPath: "/of/pod", HostPath: host}}
			})
		})
	}
	for _, row := range []struct {
		name  string
		asked *api.ContainerAdjustment
		text  string
	}{
		{"cgroup", onLinux(&api.LinuxContainerAdjustment{CgroupsPath: "/elsewhere"}), "linux.cgroups_path"},
		{"pod's namespace", onLinux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "network", Path: "/proc/1/ns/net"}}}), "linux.namespaces: network"},
		{"node's sysctl", onLinux(&api.LinuxContainerAdjustment{Sysctl: map[string]string{"kernel.panic": "1"}}), "linux.sysctl"},
		{"network device", onLinux(&api.LinuxContainerAdjustment{NetDevices: map[string]*api.LinuxNetDevice{"lo": {Name: "x"}}}), "linux.netDevices"},
		{"resource director", onLinux(&api.LinuxContainerAdjustment{Rdt: &api.LinuxRdt{ClosId: api.String("gold")}}), "linux.intelRdt"},
		{"class of block I/O", onLinux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{BlockioClass: api.String("gold")}}), "linux.resources.blockio_class"},
		{"I/O priority", onLinux(&api.LinuxContainerAdjustment{IoPriority: &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_RT, Priority: 9}}), "process.ioPriority"},
		{"memory policy", onLinux(&api.LinuxContainerAdjustment{MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "x"}}), "linux.memoryPolicy.nodes"},
		{"CDI device", &api.ContainerAdjustment{CDIDevices: []*api.CDIDevice{{Name: "critest.io/nri=none"}}}, "CDI_devices"},
	} {
		t.Run(row.name+" refused", func(t *testing.T) {
			check(t, d)
			told := adjusting(t, d, row.asked)
			p := runPod(t, d)
			_, err := p.tryCreate(t, containerConfig(idle))
			refused(t, err, codes.Unknown, row.text)
			wantTold(t, told, told.Last(t, "CreateContainer").Container.Id, "CreateContainer StopContainer RemoveContainer")
		})
	}
}

func TestNRIResources(t *testing.T) {
	d := use(t)
	t.Run("adjusted", func(t *testing.T) {
		check(t, d)
		adjusting(t, d, onLinux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Limit: api.Int64(int64(64 << 20))},
			Cpu: &api.LinuxCPU{Quota: api.Int64(int64(30000)), Period: api.UInt64(uint64(100000))}, Pids: &api.LinuxPids{Limit: 55}}}))
		c := runPod(t, d).start(t, idle)
		c.has(t, 64<<20, 30000)
	})
	t.Run("of another container, in the answer and unasked", func(t *testing.T) {
		check(t, d)
		first := ""
		told := plugged(t, d, &nritest.Plugin{Adjust: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			if first == "" {
				return nil, nil
			}
			return nil, []*api.ContainerUpdate{update(first, 40<<20, 20000)}
		}})
		p := runPod(t, d)
		c := p.start(t, idle, limited(64<<20, 50000))
		first = c.id
		p.create(t, idle)
		c.has(t, 40<<20, 20000)
		failed, err := told.UpdateContainers(update(c.id, 48<<20, 25000))
		if err != nil || len(failed) > 0 {
			t.Errorf("failed %v, error %v", failed, err)
		}
		c.has(t, 48<<20, 25000)
		ignored := update(strings.Repeat("0", 64), 1<<20, 1000)
		ignored.IgnoreFailure = true
		rdt := update(c.id, 0, 0)
		rdt.Linux.Resources.RdtClass = api.String("gold")
		failed, err = told.UpdateContainers(update(strings.Repeat("1", 64), 1<<20, 1000), ignored, rdt)
		if err != nil || len(failed) != 2 || failed[0].ContainerId != strings.Repeat("1", 64) || failed[1].ContainerId != c.id {
			t.Errorf("failed %v, error %v", failed, err)
		}
		c.has(t, 48<<20, 25000)
	})
	t.Run("of an update", func(t *testing.T) {
		check(t, d)
		told := plugged(t, d, &nritest.Plugin{Update: func(c *api.Container, asked *api.LinuxResources) []*api.ContainerUpdate {
			return []*api.ContainerUpdate{update(c.Id, asked.Memory.Limit.Value/2, 0)}
		}})
		p := runPod(t, d)
		c := p.start(t, idle, limited(64<<20, 50000))
		c.update(t, &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 40000})
		c.has(t, 48<<20, 40000)
		if _, err := d.runtime.UpdatePodSandboxResources(bounded(t), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id,
			Resources: &cri.LinuxContainerResources{CpuShares: 512}}); err != nil {
			t.Fatal(err)
		}
		if shares := told.Last(t, "PostUpdatePodSandbox").Pod.Linux.PodResources.Cpu.Shares.Value; shares != 512 {
			t.Errorf("shares of the pod: %d", shares)
		}
		if limit := told.Last(t, "PostUpdateContainer").Container.Linux.Resources.Memory.Limit.Value; limit != 48<<20 {
			t.Errorf("limit after the update: %d", limit)
		}
		p.remove(t)
		wantTold(t, told, c.id, strings.ReplaceAll(toldOfContainer, " StopContainer", " UpdateContainer PostUpdateContainer StopContainer"))
		wantTold(t, told, p.id, strings.ReplaceAll(toldOfPod, " Stop", " UpdatePodSandbox PostUpdatePodSandbox Stop"))
	})
}

// update asks for limits of memory and processor time; 0: unchanged.
func update(id string, memory, quota int64) *api.ContainerUpdate {
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	if memory != 0 {
		u.SetLinuxMemoryLimit(memory)
	}
	if quota != 0 {
		u.SetLinuxCPUQuota(quota)
	}
	if u.Linux == nil {
		u.Linux = &api.LinuxContainerUpdate{Resources: &api.LinuxResources{}}
	}
	return u
}

func limited(memory, quota int64) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Linux = &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: memory, CpuQuota: quota, CpuPeriod: 100000}}
	}
}
