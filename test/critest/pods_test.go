package critest

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodLife(t *testing.T) {
	for name, network := range map[string]func(*cri.PodSandboxConfig){"host network": func(*cri.PodSandboxConfig) {}, "pod network": podNetwork} {
		t.Run(name, func(t *testing.T) {
			d := use(t)
			p := runPod(t, d, network)
			if s := p.status(t).GetState(); s != cri.PodSandboxState_SANDBOX_READY {
				t.Errorf("after RunPodSandbox: %s", s)
			}
			c := p.start(t, idle)
			p.stop(t)
			if s := p.status(t).GetState(); s != cri.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("after StopPodSandbox: %s", s)
			}
			if s := c.status(t); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetFinishedAt() == 0 {
				t.Errorf("container of a stopped pod: %s, finished at %d", s.GetState(), s.GetFinishedAt())
			}
			_, err := p.tryCreate(t, containerConfig("true"))
			refused(t, err, codes.FailedPrecondition, p.id)
			p.remove(t)
			_, err = d.runtime.PodSandboxStatus(bounded(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
			refused(t, err, codes.NotFound, p.id)
			_, err = d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id})
			refused(t, err, codes.NotFound, c.id)
		})
	}
}

func TestPodAttributes(t *testing.T) {
	d := use(t)
	labels := map[string]string{"a": "1", "empty": "", "unicode": "ä€"}
	annotations := map[string]string{"example.org/x": "line one\nline two"}
	p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) {
		c.Metadata = &cri.PodSandboxMetadata{Name: "name", Namespace: "namespace", Uid: "uid", Attempt: 7}
		c.Labels, c.Annotations = labels, annotations
		c.LogDirectory = filepath.Join(c.LogDirectory, "made", "by", "criserver")
	})
	s := p.status(t)
	if m := s.GetMetadata(); m.GetName() != "name" || m.GetNamespace() != "namespace" || m.GetUid() != "uid" || m.GetAttempt() != 7 {
		t.Errorf("metadata %v", m)
	}
	if s.GetId() != p.id || len(p.id) != 64 || s.GetCreatedAt() == 0 {
		t.Errorf("id %q, created at %d", s.GetId(), s.GetCreatedAt())
	}
	same(t, "labels", s.GetLabels(), labels)
	same(t, "annotations", s.GetAnnotations(), annotations)
	if o := s.GetLinux().GetNamespaces().GetOptions(); o.GetNetwork() != cri.NamespaceMode_POD || o.GetPid() != cri.NamespaceMode_CONTAINER {
		t.Errorf("namespaces %v", o)
	}
	if _, err := os.Stat(p.logs); err != nil {
		t.Errorf("log directory: %v", err)
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pause(t))); err != nil || string(comm) != "pause\n" {
		t.Errorf("the pod's process is %q: %v", comm, err)
	}
}

// pause is the pid of the pod's pause, as the verbose status has it.
func (p *pod) pause(t *testing.T) int {
	t.Helper()
	r, err := p.d.runtime.PodSandboxStatus(bounded(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return infoPid(t, r.GetInfo())
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s %q instead of %q", what, got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q is %q instead of %q", what, k, got[k], v)
		}
	}
}

func TestPodFilters(t *testing.T) {
	d := use(t)
	label := func(v string) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.Labels = map[string]string{"suite": "filters", "which": v} }
	}
	a, b, stopped := runPod(t, d, label("a")), runPod(t, d, label("b")), runPod(t, d, label("a"))
	stopped.stop(t)
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	notReady := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}
	for _, row := range []struct {
		name   string
		filter *cri.PodSandboxFilter
		want   []*pod
	}{
		{"none", nil, []*pod{a, b, stopped}},
		{"empty", &cri.PodSandboxFilter{}, []*pod{a, b, stopped}},
		{"id", &cri.PodSandboxFilter{Id: a.id}, []*pod{a}},
		{"begin of an id", &cri.PodSandboxFilter{Id: a.id[:20]}, []*pod{a}},
		{"unknown id", &cri.PodSandboxFilter{Id: strings.Repeat("0", 64)}, nil},
		{"ready", &cri.PodSandboxFilter{State: ready}, []*pod{a, b}},
		{"not ready", &cri.PodSandboxFilter{State: notReady}, []*pod{stopped}},
		{"label", &cri.PodSandboxFilter{LabelSelector: map[string]string{"which": "a"}}, []*pod{a, stopped}},
		{"two labels", &cri.PodSandboxFilter{LabelSelector: map[string]string{"which": "b", "suite": "filters"}}, []*pod{b}},
		{"label and state", &cri.PodSandboxFilter{State: ready, LabelSelector: map[string]string{"which": "a"}}, []*pod{a}},
		{"id and another's label", &cri.PodSandboxFilter{Id: a.id, LabelSelector: map[string]string{"which": "b"}}, nil},
		{"no such label", &cri.PodSandboxFilter{LabelSelector: map[string]string{"which": "c"}}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := d.runtime.ListPodSandbox(bounded(t), &cri.ListPodSandboxRequest{Filter: row.filter})
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, p := range row.want {
				want = append(want, p.id)
			}
			listed(t, r.GetItems(), want)
		})
	}
}

// listed wants a list to have the items with these ids, in any order.
func listed[T interface{ GetId() string }](t *testing.T, items []T, want []string) {
	t.Helper()
	var got []string
	for _, item := range items {
		got = append(got, item.GetId())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("listed %q instead of %q", got, want)
	}
}

func TestPodIdempotence(t *testing.T) {
	d := use(t)
	unknown := strings.Repeat("0", 64)
	p := runPod(t, d, podNetwork)
	for _, row := range []struct {
		name string
		do   func() error
	}{
		{"stop unknown pod", func() error {
			_, err := d.runtime.StopPodSandbox(bounded(t), &cri.StopPodSandboxRequest{PodSandboxId: unknown})
			return err
		}},
		{"remove unknown pod", func() error {
			_, err := d.runtime.RemovePodSandbox(bounded(t), &cri.RemovePodSandboxRequest{PodSandboxId: unknown})
			return err
		}},
		{"stop unknown container", func() error {
			_, err := d.runtime.StopContainer(bounded(t), &cri.StopContainerRequest{ContainerId: unknown})
			return err
		}},
		{"remove unknown container", func() error {
			_, err := d.runtime.RemoveContainer(bounded(t), &cri.RemoveContainerRequest{ContainerId: unknown})
			return err
		}},
		{"stop", func() error { p.stop(t); return nil }},
		{"stop again", func() error { p.stop(t); return nil }},
		{"remove", func() error { p.remove(t); return nil }},
		{"remove again", func() error { p.remove(t); return nil }},
	} {
		if err := row.do(); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// A retry with the same identity gets the running pod; another request under it is another pod, and the first is undone.
func TestPodSameIdentity(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil || r.GetPodSandboxId() != p.id {
		t.Errorf("the same again: %s instead of %s: %v", r.GetPodSandboxId(), p.id, err)
	}
	p.remove(t)
	again := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Metadata = p.config.Metadata })
	if again.id == p.id {
		t.Errorf("a removed pod's id %s is used again", p.id)
	}
}

func TestPodRemovedWithoutStop(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	p.start(t, idle)
	p.create(t, idle)
	if _, err := d.runtime.RemovePodSandbox(bounded(t), &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Error(err)
	}
}

func TestPodShares(t *testing.T) {
	d := use(t)
	for _, row := range []struct {
		name   string
		change func(*cri.PodSandboxConfig)
		script string // of a container in the pod
		want   string
	}{
		{"hostname", func(c *cri.PodSandboxConfig) { podNetwork(c); c.Hostname = "myhost" }, `hostname; cat /etc/hostname; echo $HOSTNAME`, "myhost\nmyhost\nmyhost\n"},
		{"sysctls", func(c *cri.PodSandboxConfig) {
			podNetwork(c)
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 30000", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "13", "net/ipv4/ip_forward": "1"}
		}, `cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max /proc/sys/net/ipv4/ip_forward`, "20000\t30000\n1\n13\n1\n"},
		{"unprivileged ports", podNetwork, `cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range`, "0\n0\t2147483647\n"},
		{"dns", func(c *cri.PodSandboxConfig) {
			c.DnsConfig = &cri.DNSConfig{Servers: []string{"10.10.10.10", "fd00::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:8", "edns0"}}
		}, `cat /etc/resolv.conf`, "search a.example b.example\nnameserver 10.10.10.10\nnameserver fd00::1\noptions ndots:8 edns0\n"},
		{"own pid namespace", nil, `echo $$`, "1\n"},
		{"loopback", podNetwork, `ip -o link show lo | grep -c LOWER_UP; ping -c1 -W2 127.0.0.1 >/dev/null && echo v4; ping -c1 -W2 ::1 >/dev/null && echo v6`, "1\nv4\nv6\n"},
		{"host's ipc", func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
		}, `readlink /proc/self/ns/ipc`, link(t, "ipc")},
		{"host's network", nil, `readlink /proc/self/ns/net`, link(t, "net")},
		{"host's pids", func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
		}, `readlink /proc/self/ns/pid`, link(t, "pid")},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			p := runPod(t, d, func(c *cri.PodSandboxConfig) {
				if row.change != nil {
					row.change(c)
				}
			})
			p.prints(t, row.want, row.script)
		})
	}
}

func link(t *testing.T, kind string) string {
	t.Helper()
	to, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return to + "\n"
}

// Containers of a pod have /dev/shm, System V IPC, network and host name in common, but not files and processes.
func TestPodContainersTogether(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	a, b := p.start(t, idle), p.start(t, idle)
	a.exec(t, "echo shared >/dev/shm/x; echo private >/tmp/x; ipcs >/dev/null; nc -ll -p 7000 -e echo served >/dev/null 2>&1 &")
	if got := b.exec(t, "cat /dev/shm/x"); got != "shared\n" {
		t.Errorf("/dev/shm/x has %q", got)
	}
	if got := b.exec(t, "stat -f -c %T /dev/shm; df -m /dev/shm | tail -1 | awk '{print $2}'; stat -c %a /dev/shm"); got != "tmpfs\n64\n1777\n" {
		t.Errorf("/dev/shm is %q", got)
	}
	if got := b.exec(t, "ls /tmp"); got != "" {
		t.Errorf("/tmp of one container shows in another: %q", got)
	}
	eventually(t, rpcBound, "one container reaches the other on localhost", func() bool {
		r, err := b.tryExec(t, execBound, "nc", "127.0.0.1", "7000")
		return err == nil && string(r.GetStdout()) == "served\n"
	})
	for _, ns := range []string{"net", "ipc", "uts"} {
		if x, y := a.exec(t, "readlink /proc/self/ns/"+ns), b.exec(t, "readlink /proc/self/ns/"+ns); x != y || x == link(t, ns) {
			t.Errorf("%s namespaces are %s and %s, of the host %s", ns, x, y, link(t, ns))
		}
	}
	for _, ns := range []string{"mnt", "pid"} {
		if x, y := a.exec(t, "readlink /proc/self/ns/"+ns), b.exec(t, "readlink /proc/self/ns/"+ns); x == y {
			t.Errorf("both containers are in the %s namespace %s", ns, x)
		}
	}
}

// With a shared pid namespace its PID 1 reaps what loses its parent, and outlives every container.
func TestPodSharedPIDs(t *testing.T) {
	d := use(t)
	p := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	a, b := p.start(t, idle), p.start(t, "", command("sleep", "4321"))
	if got := a.exec(t, "tr '\\0' ' ' </proc/1/cmdline"); !strings.Contains(got, "pause") {
		t.Errorf("PID 1 is %q", got)
	}
	eventually(t, rpcBound, "one container sees the other's processes", func() bool {
		return strings.Contains(a.exec(t, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"), "sleep 4321")
	})
	a.exec(t, "for i in 1 2 3 4 5; do (sleep 0.01 &) ; done")
	eventually(t, rpcBound, "orphans are reaped", func() bool {
		return a.exec(t, "ps -o stat,args | grep -c '^Z' || true") == "0\n"
	})
	b.exec(t, "(sleep 4322 & sleep 4323 &) >/dev/null 2>&1")
	eventually(t, rpcBound, "the exec's children run", func() bool { return running(t, "sleep 4322")+running(t, "sleep 4323") == 2 })
	b.stop(t, 0)
	if n := running(t, "sleep 4321") + running(t, "sleep 4322") + running(t, "sleep 4323"); n != 0 {
		t.Errorf("%d processes of a stopped container are left", n)
	}
	if s := a.status(t).GetState(); s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container is %s", s)
	}
}

func TestPodCgroupParent(t *testing.T) {
	d := use(t)
	points, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ parent, is string }
	rows := map[string]row{"given": {suite.cgroups, suite.cgroups}, "not there yet": {suite.cgroups + "/deep/er", suite.cgroups + "/deep/er"}, "none": {"", ""}}
	if suite.driver == driverSystemd {
		rows = map[string]row{"given with its path": {suite.cgroups, suite.cgroups}, "given": {filepath.Base(suite.cgroups), suite.cgroups}, "none": {"", "/system.slice"}}
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			check(t, d)
			p := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = row.parent })
			c := p.start(t, idle)
			var leaves []string
			for _, point := range points {
				leaves = append(leaves, filepath.Join(p.cgroup(point, row.is), p.id), filepath.Join(p.cgroup(point, row.is), c.id))
			}
			for _, leaf := range leaves {
				if _, err := os.Stat(leaf); err != nil {
					t.Error(err)
				}
			}
			p.remove(t)
			for _, leaf := range leaves { // not all are where the oracle looks
				if _, err := os.Stat(leaf); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is left: %v", leaf, err)
				}
			}
		})
	}
}

func TestPodIPs(t *testing.T) {
	d := use(t)
	if n := runPod(t, d).status(t).GetNetwork(); n.GetIp() != "" || len(n.GetAdditionalIps()) != 0 {
		t.Errorf("a pod on the host network has the address %v", n)
	}
	n := runPod(t, d, podNetwork).status(t).GetNetwork()
	first, err := netip.ParseAddr(n.GetIp())
	if err != nil || !first.Is4() {
		t.Errorf("ip is %q: %v", n.GetIp(), err)
	}
	if len(n.GetAdditionalIps()) != 1 || !strings.Contains(n.GetAdditionalIps()[0].GetIp(), ":") {
		t.Errorf("additional ips are %v", n.GetAdditionalIps())
	}
}
