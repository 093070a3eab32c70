package critest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	ofPod       = cri.NamespaceMode_POD
	ofContainer = cri.NamespaceMode_CONTAINER
	ofNode      = cri.NamespaceMode_NODE
	ofTarget    = cri.NamespaceMode_TARGET
)

func podPIDs(mode cri.NamespaceMode) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode }
}

func pidMode(mode cri.NamespaceMode, target string) func(*cri.ContainerConfig) {
	return security(func(c *cri.LinuxContainerSecurityContext) {
		c.NamespaceOptions = &cri.NamespaceOption{Network: ofNode, Pid: mode, TargetId: target}
	})
}

// Whose processes a container has, for every pair of what the pod and the container ask for.
func TestPIDModes(t *testing.T) {
	d := use(t)
	host := link(t, "pid")
	for _, pod := range []cri.NamespaceMode{ofPod, ofContainer, ofNode} {
		t.Run("pod "+pod.String(), func(t *testing.T) {
			check(t, d)
			p := runPod(t, d, podPIDs(pod))
			ns := func(c *container) string {
				t.Helper()
				got := c.exec(t, "readlink /proc/self/ns/pid")
				first, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.pid(t)))
				if err != nil || first+"\n" != got {
					t.Errorf("an exec is in %s, the first process of its container in %s: %v", got, first, err)
				}
				return got
			}
			start := func(mode cri.NamespaceMode, target string) (*container, string) {
				t.Helper()
				c := p.start(t, idle, pidMode(mode, target))
				c.waitOutput(t, "ready")
				return c, ns(c)
			}
			_, shared := start(ofPod, "")
			if _, again := start(ofPod, ""); again != shared {
				t.Errorf("two containers with the pod's processes are in %s and %s", shared, again)
			}
			if (shared == host) != (pod == ofNode) {
				t.Errorf("a container with the pod's processes is in %s, the host is %s", shared, host)
			}
			own, ownNS := start(ofContainer, "")
			if ownNS == host || ownNS == shared {
				t.Errorf("a container with its own processes is in %s, the host in %s, the pod's in %s", ownNS, host, shared)
			}
			if _, got := start(ofTarget, own.id); got != ownNS {
				t.Errorf("a container with another's processes is in %s instead of %s", got, ownNS)
			}
			if _, got := start(ofNode, ""); got != host {
				t.Errorf("a container with the host's processes is in %s instead of %s", got, host)
			}
		})
	}
}

// The same where the pod has its own users, whose root has no rights over processes outside.
func TestPIDModesInUserNamespace(t *testing.T) {
	d := use(t)
	_, inUserNS := userNamespace(11 << 20)
	p := runPod(t, d, inUserNS, podPIDs(ofContainer))
	start := func(mode cri.NamespaceMode, target string) (*container, string) {
		t.Helper()
		c := p.start(t, idle, security(func(c *cri.LinuxContainerSecurityContext) {
			c.NamespaceOptions = &cri.NamespaceOption{Pid: mode, TargetId: target, UsernsOptions: p.config.Linux.SecurityContext.NamespaceOptions.UsernsOptions}
		}))
		c.waitOutput(t, "ready")
		return c, c.exec(t, "readlink /proc/self/ns/pid")
	}
	own, ownNS := start(ofContainer, "")
	if _, got := start(ofTarget, own.id); got != ownNS {
		t.Errorf("a container with another's processes is in %s instead of %s", got, ownNS)
	}
	_, shared := start(ofPod, "")
	d.restart(t)
	if _, again := start(ofPod, ""); again != shared || shared == ownNS || shared == link(t, "pid") {
		t.Errorf("containers with the pod's processes are in %s and %s, one with its own in %s, the host in %s", shared, again, ownNS, link(t, "pid"))
	}
}

// A container that joins another's processes sees and signals them, and ends with the namespace.
func TestPIDTarget(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	target := p.start(t, idle)
	target.waitOutput(t, "ready")
	c := p.start(t, idle, pidMode(ofTarget, target.id))
	c.waitOutput(t, "ready")
	if got := c.exec(t, "tr '\\0' ' ' </proc/1/cmdline; echo $PPID"); !strings.HasPrefix(got, "sh -c trap") {
		t.Errorf("PID 1 is %q", got)
	}
	target.stop(t, 0)
	if s := c.wait(t); s.GetExitCode() != 137 {
		t.Errorf("exit code %d when the namespace ended", s.GetExitCode())
	}
}

func TestPIDTargetRefused(t *testing.T) {
	d := use(t)
	p, other := runPod(t, d), runPod(t, d)
	created, exited, running, elsewhere := p.create(t, idle), p.start(t, "exit 0"), p.start(t, idle), other.start(t, idle)
	exited.wait(t)
	running.waitOutput(t, "ready")
	elsewhere.waitOutput(t, "ready")
	for name, row := range map[string]struct {
		change func(*cri.ContainerConfig)
		text   string
	}{
		"not started":       {pidMode(ofTarget, created.id), "is not a running one of this pod"},
		"exited":            {pidMode(ofTarget, exited.id), "is not a running one of this pod"},
		"of another pod":    {pidMode(ofTarget, elsewhere.id), "is not a running one of this pod"},
		"unknown":           {pidMode(ofTarget, strings.Repeat("6", 64)), "not found"},
		"none named":        {pidMode(ofTarget, ""), "must be set with pid TARGET"},
		"one without need":  {pidMode(ofContainer, running.id), "must be set with pid TARGET, and only then"},
		"mode that is none": {pidMode(9, ""), "9 is not a known value"},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, d)
			_, err := p.tryCreate(t, containerConfig(idle, row.change))
			refused(t, err, codes.InvalidArgument, "namespace_options.", row.text)
		})
	}
	t.Run("ends before the start", func(t *testing.T) {
		c := p.create(t, idle, pidMode(ofTarget, running.id))
		running.stop(t, 0)
		refused(t, c.tryStart(t), codes.FailedPrecondition, running.id)
		if s := c.status(t); s.GetReason() != "StartError" || s.GetExitCode() != 128 || !strings.Contains(s.GetMessage(), running.id) {
			t.Errorf("reason %q, exit code %d, message %q", s.GetReason(), s.GetExitCode(), s.GetMessage())
		}
	})
}

// Network, ipc and host name are the pod's, whatever a container says of them.
func TestNamespacesOfPod(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	node := security(func(c *cri.LinuxContainerSecurityContext) {
		c.NamespaceOptions = &cri.NamespaceOption{Network: ofNode, Ipc: ofNode, Pid: ofContainer}
	})
	a, b := p.start(t, idle), p.start(t, idle, node)
	for _, ns := range []string{"net", "ipc", "uts"} {
		if x, y := a.exec(t, "readlink /proc/self/ns/"+ns), b.exec(t, "readlink /proc/self/ns/"+ns); x != y || x == link(t, ns) {
			t.Errorf("%s: %s and %s, of the host %s", ns, x, y, link(t, ns))
		}
	}
	for name, change := range map[string]func(*cri.NamespaceOption){
		"network": func(o *cri.NamespaceOption) { o.Network = ofTarget },
		"ipc":     func(o *cri.NamespaceOption) { o.Ipc = ofContainer },
	} {
		o := &cri.NamespaceOption{Pid: ofContainer}
		change(o)
		_, err := p.tryCreate(t, containerConfig(idle, security(func(c *cri.LinuxContainerSecurityContext) { c.NamespaceOptions = o })))
		refused(t, err, codes.InvalidArgument, "namespace_options."+name, "neither POD nor NODE")
	}
}

// With the host's network a user namespace owns no sysfs: /sys is the host's mount.
func TestUserNamespaceHostNetwork(t *testing.T) {
	d := use(t)
	_, inUserNS := userNamespace(6 << 20)
	p := runPod(t, d, inUserNS, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Network = ofNode })
	c := p.start(t, idle)
	c.waitOutput(t, "ready")
	if got := c.exec(t, "readlink /proc/self/ns/net"); got != link(t, "net") {
		t.Errorf("network %s instead of %s", got, link(t, "net"))
	}
	if got := c.exec(t, "tr -s ' ' </proc/self/uid_map; ls -d /sys/class/net/lo; mkdir /sys/x 2>&1 || true; id -u"); got != " 0 6291456 65536\n/sys/class/net/lo\nmkdir: can't create directory '/sys/x': Read-only file system\n0\n" {
		t.Errorf("%q", got)
	}
	if got := c.exec(t, "ip link add x0 type dummy 2>/dev/null || echo refused"); got != "refused\n" {
		t.Errorf("root of a user namespace changes the host's network: %q", got)
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	d := use(t)
	one := func(container, host, length uint32) []*cri.IDMapping {
		return []*cri.IDMapping{{ContainerId: container, HostId: host, Length: length}}
	}
	good := one(0, 7<<20, 65536)
	rows := map[string]struct {
		options     *cri.UserNamespace
		field, text string
	}{
		"CONTAINER":          {&cri.UserNamespace{Mode: ofContainer, Uids: good, Gids: good}, "userns_options.mode", "CONTAINER is neither POD nor NODE"},
		"TARGET":             {&cri.UserNamespace{Mode: ofTarget, Uids: good, Gids: good}, "userns_options.mode", "TARGET is neither POD nor NODE"},
		"unknown":            {&cri.UserNamespace{Mode: 9}, "userns_options.mode", "9 is neither"},
		"NODE with ids":      {&cri.UserNamespace{Mode: ofNode, Uids: good}, "userns_options", "must not have mappings"},
		"no users":           {&cri.UserNamespace{Mode: ofPod, Gids: good}, "userns_options.uids", "exactly one mapping, not 0"},
		"no groups":          {&cri.UserNamespace{Mode: ofPod, Uids: good}, "userns_options.gids", "exactly one mapping, not 0"},
		"two":                {&cri.UserNamespace{Mode: ofPod, Uids: append(one(0, 9, 9), good...), Gids: good}, "userns_options.uids", "exactly one mapping, not 2"},
		"without root":       {&cri.UserNamespace{Mode: ofPod, Uids: good, Gids: one(1, 1<<20, 9)}, "userns_options.gids[0].container_id", "must be 0"},
		"nobody":             {&cri.UserNamespace{Mode: ofPod, Uids: one(0, 1<<20, 0), Gids: good}, "userns_options.uids[0].length", "must not be 0"},
		"beyond the largest": {&cri.UserNamespace{Mode: ofPod, Uids: one(0, 1<<32-10, 65536), Gids: good}, "userns_options.uids[0]", "goes beyond the largest id"},
	}
	p := runPod(t, d)
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			check(t, d)
			_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t, func(c *cri.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = row.options
			})})
			refused(t, err, codes.InvalidArgument, row.field, row.text)
			_, err = p.tryCreate(t, containerConfig(idle, inUserNamespace(row.options)))
			refused(t, err, codes.InvalidArgument, row.field, row.text)
		})
	}
	_, inUserNS := userNamespace(7 << 20)
	mapped := runPod(t, d, inUserNS)
	for name, options := range map[string]*cri.UserNamespace{"another": {Mode: ofPod, Uids: one(0, 8<<20, 65536), Gids: good}, "the host's": {Mode: ofNode}} {
		t.Run(name+" than the pod's", func(t *testing.T) {
			_, err := mapped.tryCreate(t, containerConfig(idle, inUserNamespace(options)))
			refused(t, err, codes.InvalidArgument, "userns_options", "differs from the pod's")
		})
	}
}

func inUserNamespace(options *cri.UserNamespace) func(*cri.ContainerConfig) {
	return security(func(c *cri.LinuxContainerSecurityContext) {
		c.NamespaceOptions = &cri.NamespaceOption{Network: ofNode, Pid: ofContainer, UsernsOptions: options}
	})
}

// Sysctls that the kernel refuses, or that are not the pod's, leave nothing behind. Those of the host are asked for with the
// value that they have, so that a criserver that is wrong does no harm.
func TestSysctlsRefused(t *testing.T) {
	d := use(t)
	ipc := func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Ipc = ofNode }
	for _, row := range []struct {
		name       string
		pod        func(*cri.PodSandboxConfig)
		key, value string
		code       codes.Code
		text       string
	}{
		{"host's network", nil, "net.core.somaxconn", sysctl(t, "net/core/somaxconn"), codes.InvalidArgument, "config.linux.sysctls"},
		{"host's network, as a path", nil, "net/core/somaxconn", sysctl(t, "net/core/somaxconn"), codes.InvalidArgument, "config.linux.sysctls"},
		{"host's ipc", ipc, "kernel.shmmax", sysctl(t, "kernel/shmmax"), codes.InvalidArgument, "config.linux.sysctls"},
		{"host's ipc, semaphores", ipc, "kernel.sem", sysctl(t, "kernel/sem"), codes.InvalidArgument, "config.linux.sysctls"},
		{"host's ipc, queues", ipc, "fs/mqueue/msg_max", sysctl(t, "fs/mqueue/msg_max"), codes.InvalidArgument, "config.linux.sysctls"},
		{"of the node", podNetwork, "vm.overcommit_memory", sysctl(t, "vm/overcommit_memory"), codes.InvalidArgument, "config.linux.sysctls"},
		{"looks like the pod's", podNetwork, "kernel.msgnosuch", "1", codes.InvalidArgument, "linux.sysctls"},
		{"out of the directory", podNetwork, "net.ipv4.././../kernel/panic", sysctl(t, "kernel/panic"), codes.InvalidArgument, "linux.sysctls"},
		{"the same twice", podNetwork, "net/ipv4/ip_forward", "1", codes.InvalidArgument, "are the same"},
		{"a second line", podNetwork, "net.core.somaxconn", "1\n2", codes.InvalidArgument, "is not one line"},
		{"absent", podNetwork, "net.ipv4.nosuch", "1", codes.Unknown, "set sysctl net.ipv4.nosuch to 1: no such file or directory"},
		{"value that is none", podNetwork, "net.ipv4.ip_forward", "perhaps", codes.Unknown, "set sysctl net.ipv4.ip_forward to perhaps: invalid argument"},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t, func(c *cri.PodSandboxConfig) {
				if row.pod != nil {
					row.pod(c)
				}
				c.Linux.Sysctls = map[string]string{row.key: row.value}
				if row.name == "the same twice" {
					c.Linux.Sysctls["net.ipv4.ip_forward"] = "0"
				}
			})})
			refused(t, err, row.code, row.text)
		})
	}
}

// sysctl is what the host has.
func sysctl(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
