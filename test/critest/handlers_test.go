package critest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reload has the daemon go on with more in its configuration, until the test ends. It returns what the daemon has logged of it.
func (d *daemon) reload(t *testing.T, more string) string {
	t.Helper()
	before, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.rewrite(t, string(before)) })
	return d.rewrite(t, string(before)+more)
}

func (d *daemon) rewrite(t *testing.T, config string) string {
	t.Helper()
	write(t, d.config(), config)
	from, err := d.log.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	var text string
	eventually(t, rpcBound, "criserver has read its configuration again", func() bool {
		whole, err := os.ReadFile(d.log.Name())
		if err != nil {
			t.Fatal(err)
		}
		text = string(whole[from.Size():])
		return strings.Contains(text, "configuration reloaded") || strings.Contains(text, "configuration not reloaded")
	})
	return text
}

// unifiedHost says whether cgroup v2 stands alone here.
func unifiedHost() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// restart replaces the daemon as an upgrade does.
func (d *daemon) restart(t *testing.T) {
	t.Helper()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
}

// runPodOf makes a pod of a runtime handler.
func runPodOf(t testing.TB, d *daemon, handler string, change ...func(*cri.PodSandboxConfig)) *pod {
	t.Helper()
	config := podConfig(t, change...)
	r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("RunPodSandbox with handler %q: %v", handler, err)
	}
	p := &pod{d: d, id: r.GetPodSandboxId(), config: config, logs: config.GetLogDirectory()}
	t.Cleanup(func() { p.remove(t) })
	return p
}

func TestHandlersInStatus(t *testing.T) {
	d := use(t)
	names := func() (all []string) {
		s, err := d.runtime.Status(bounded(t), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		first := s.GetRuntimeHandlers()[0].GetFeatures()
		for _, h := range s.GetRuntimeHandlers() {
			all = append(all, h.GetName())
			if f := h.GetFeatures(); f.GetRecursiveReadOnlyMounts() != first.GetRecursiveReadOnlyMounts() || f.GetUserNamespaces() != first.GetUserNamespaces() {
				t.Errorf("handler %q has the features %v, the first one %v: the kernel is the same", h.GetName(), f, first)
			}
		}
		return all
	}
	if got := names(); !slices.Equal(got, []string{"", "default"}) {
		t.Errorf("without configuration there are the handlers %q", got)
	}
	d.reload(t, "[handlers.slow]\n[handlers.fast]\n")
	if got := names(); !slices.Equal(got, []string{"", "default", "fast", "slow"}) {
		t.Errorf("there are the handlers %q", got)
	}
	for _, name := range []string{"", "default", "slow"} {
		p := runPodOf(t, d, name)
		if got := p.status(t).GetRuntimeHandler(); got != name {
			t.Errorf("the handler of a pod is %q instead of %q", got, name)
		}
	}
	_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t), RuntimeHandler: "fas"})
	refused(t, err, codes.InvalidArgument, "runtime_handler", `"fas"`)
}

// What a handler gives, and what images and requests make of it.
func TestHandlerGives(t *testing.T) {
	d := use(t)
	profile := write(t, filepath.Join(t.TempDir(), "default.json"),
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`)
	d.reload(t, fmt.Sprintf(`[handlers.rich]
capabilities = ["chown", "CAP_KILL"]
ulimits = ["nofile=100:200", "core=0"]
env = ["A=handler", "B=handler", "C=handler"]
unprivileged_ports = false
unprivileged_icmp = false
pids_limit = 50
seccomp_unset = "runtime/default"
seccomp_default = %q
shm_size = "1Mi"
device_ownership_from_security_context = true
[handlers.local]
seccomp_unset = "localhost/%s"
`, profile, profile))
	image := pullNew(t, d, "handlers", ocispec.ImageConfig{Env: []string{"B=image", "C=image"}})
	rich := runPodOf(t, d, "rich", podNetwork)
	plain := runPod(t, d, podNetwork)
	type context = cri.LinuxContainerSecurityContext
	type config = cri.ContainerConfig
	kind := func(k cri.SecurityProfile_ProfileType) func(*config) {
		return security(func(c *context) { c.Seccomp = &cri.SecurityProfile{ProfileType: k} })
	}
	const mkdir = "mkdir /tmp/d 2>&1; true"
	const denied = "mkdir: can't create directory '/tmp/d': Operation not permitted\n"
	for _, row := range []struct {
		name, script string
		change       func(*config)
		rich, plain  string
	}{
		{"capabilities", "grep CapEff /proc/self/status", nil, "CapEff:\t0000000000000021\n", "CapEff:\t00000000a80425fb\n"},
		{"capabilities added and dropped", "grep CapEff /proc/self/status", security(func(c *context) {
			c.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN"}}
		}), "CapEff:\t0000000000001020\n", "CapEff:\t00000000a80435fa\n"},
		{"limits", "ulimit -n; ulimit -Hn; ulimit -c", nil, "100\n200\n0\n", "1024\n" + ownLimits(t)},
		{"environment", "echo $A $B $C", func(c *config) {
			c.Image.Image, c.Envs = image, []*cri.KeyValue{{Key: "C", Value: []byte("request")}}
		}, "handler image request\n", "image request\n"},
		{"sysctls", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range", nil, "1024\n1\t0\n", "0\n0\t2147483647\n"},
		{"shm", "df -k /dev/shm | awk 'END { print $2 }'", nil, "1024\n", "65536\n"},
		{"seccomp, none named", mkdir, nil, denied, ""},
		{"seccomp, default", mkdir, kind(cri.SecurityProfile_RuntimeDefault), denied, ""},
		{"seccomp, unconfined", mkdir, kind(cri.SecurityProfile_Unconfined), "", ""},
		{"device of root", "stat -c %u:%g /dev/extra", device("/dev/zero", "/dev/extra"), "0:0\n", "0:0\n"},
		{"device of a user", "stat -c %u:%g /dev/extra", both(device("/dev/zero", "/dev/extra"), security(func(c *context) { c.RunAsUser, c.RunAsGroup = id(1000), id(7) })), "1000:7\n", "0:0\n"},
		{"device of a user without group", "stat -c %u:%g /dev/extra", both(device("/dev/zero", "/dev/extra"), security(func(c *context) { c.RunAsUser = id(1000) })), "1000:0\n", "0:0\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.change == nil {
				row.change = func(*config) {}
			}
			rich.prints(t, row.rich, row.script, row.change)
			plain.prints(t, row.plain, row.script, row.change)
		})
	}
	t.Run("seccomp, a file for containers that name none", func(t *testing.T) {
		p := runPodOf(t, d, "local")
		p.prints(t, denied, mkdir)
		p.prints(t, "", mkdir, kind(cri.SecurityProfile_RuntimeDefault))
	})
	t.Run("sysctls that the pod sets", func(t *testing.T) {
		set := func(c *cri.PodSandboxConfig) {
			podNetwork(c)
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "net/ipv4/ping_group_range": "1 2"}
		}
		for _, name := range []string{"rich", "default"} {
			runPodOf(t, d, name, set).prints(t, "80\n1\t2\n", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range")
		}
	})
	t.Run("pids", func(t *testing.T) {
		for _, row := range []struct {
			p    *pod
			want string
		}{{rich, "50"}, {plain, "max"}} {
			c := row.p.start(t, idle)
			if got := c.cgroupFile(t, "pids.max", "pids.max"); got != row.want {
				t.Errorf("pids.max is %s instead of %s", got, row.want)
			}
		}
	})
}

// ownLimits is what ulimit -Hn and -c print in a container without configured limits: the default, or what criserver may give
// if that is less, and what it inherits.
func ownLimits(t *testing.T) string {
	t.Helper()
	var files, core unix.Rlimit
	if err := errors.Join(unix.Getrlimit(unix.RLIMIT_NOFILE, &files), unix.Getrlimit(unix.RLIMIT_CORE, &core)); err != nil {
		t.Fatal(err)
	}
	most := uint64(524288)
	if caps := strings.Fields(hostStatus(t, "CapEff"))[1]; !has(t, caps, unix.CAP_SYS_RESOURCE) {
		most = min(most, files.Max)
	}
	if core.Cur == unix.RLIM_INFINITY {
		return fmt.Sprintf("%d\nunlimited\n", most)
	}
	return fmt.Sprintf("%d\n%d\n", most, core.Cur/512)
}

// has says whether a set of /proc/PID/status has a capability.
func has(t *testing.T, set string, capability int) bool {
	t.Helper()
	bits, err := strconv.ParseUint(set, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return bits&(1<<capability) != 0
}

func device(host, inside string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Devices = append(c.Devices, &cri.Device{HostPath: host, ContainerPath: inside, Permissions: "rwm"})
	}
}

func both(a, b func(*cri.ContainerConfig)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { a(c); b(c) }
}

// A limit that nobody can give becomes the largest that there is, with a warning; a user namespace takes the same handler.
func TestHandlerLimitsBeyondTheHost(t *testing.T) {
	d := use(t)
	text := d.reload(t, "[handlers.greedy]\nulimits = ['nofile=100:unlimited', 'nproc=200:unlimited', 'core=unlimited']\n")
	if !strings.Contains(text, "lower limits than configured") || !strings.Contains(text, "handler=greedy") {
		t.Errorf("no warning: %s", text)
	}
	_, inUserNS := userNamespace(9 << 20)
	for name, pod := range map[string]func(*cri.PodSandboxConfig){"host's users": podNetwork, "own users": inUserNS} {
		t.Run(name, func(t *testing.T) {
			runPodOf(t, d, "greedy", pod).prints(t, "100\nlimited\n", "ulimit -n; test $(ulimit -Hn) -ge 1024 && echo limited")
		})
	}
}

// What privileged containers get of the host's devices.
func TestHandlerPrivilegedDevices(t *testing.T) {
	d := use(t)
	d.reload(t, "[handlers.allowed]\nprivileged_devices = 'allowed'\n[handlers.none]\nprivileged_devices = 'none'\n")
	// /dev/kmsg is a character device that no container has; opening it takes CAP_SYSLOG and a rule.
	const script = "test -e /dev/kmsg && echo there; mknod /tmp/k c 1 11 && (exec 3</tmp/k) 2>/dev/null && echo usable; grep CapEff /proc/self/status"
	all := "CapEff:\t" + strings.Fields(hostStatus(t, "CapBnd"))[1] + "\n"
	for handler, want := range map[string]string{"": "there\nusable\n" + all, "allowed": "usable\n" + all, "none": all} {
		t.Run(handler, func(t *testing.T) {
			p := runPodOf(t, d, handler, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
			privileged := security(func(c *cri.LinuxContainerSecurityContext) { c.Privileged = true })
			p.prints(t, want, script, privileged)
			p.prints(t, "usable\n", "(exec 3</dev/mine) && echo usable", privileged, device("/dev/kmsg", "/dev/mine"))
		})
	}
}

// CRI-O's annotations count where the handler allows them, under either name.
func TestHandlerAnnotations(t *testing.T) {
	d := use(t)
	d.reload(t, `[handlers.rich]
allowed_annotations = ["umask.crio.io", "io.kubernetes.cri-o.ShmSize", "devices.crio.io", "unified-cgroup.crio.io"]
annotation_devices = ["/dev/zero"]
`)
	annotated := func(of map[string]string) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.Annotations = of }
	}
	const shm, umask, devices = "df -k /dev/shm | awk 'END { print $2 }'", "umask; touch /x; stat -c %a /x", "ls /dev | grep -c extra; head -c 3 /dev/extra 2>/dev/null | wc -c"
	for _, row := range []struct {
		name, script string
		annotations  map[string]string
		want, plain  string
	}{
		{"shm size", shm, map[string]string{"shm-size.crio.io": "2Mi"}, "2048\n", "65536\n"},
		{"shm size, old name", shm, map[string]string{"io.kubernetes.cri-o.ShmSize": "3Mi"}, "3072\n", "65536\n"},
		{"shm size, both names", shm, map[string]string{"shm-size.crio.io": "2Mi", "io.kubernetes.cri-o.ShmSize": "3Mi"}, "2048\n", "65536\n"},
		{"umask", umask, map[string]string{"umask.crio.io": "0077"}, "0077\n600\n", "0022\n644\n"},
		{"umask, old name", umask, map[string]string{"io.kubernetes.cri-o.umask": "027"}, "0027\n640\n", "0022\n644\n"},
		{"devices", devices, map[string]string{"devices.crio.io": "/dev/zero:/dev/extra:rw, /dev/zero:/dev/extra2"}, "2\n3\n", "0\n0\n"},
		{"devices, old name", devices, map[string]string{"io.kubernetes.cri-o.Devices": "/dev/zero:/dev/extra"}, "1\n3\n", "0\n0\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			runPodOf(t, d, "rich", annotated(row.annotations)).prints(t, row.want, row.script)
			runPodOf(t, d, "default", annotated(row.annotations)).prints(t, row.plain, row.script)
		})
	}
	t.Run("umask of an exec", func(t *testing.T) {
		c := runPodOf(t, d, "rich", annotated(map[string]string{"umask.crio.io": "077"})).start(t, idle)
		if got := c.exec(t, "umask"); got != "0077\n" {
			t.Errorf("%q", got)
		}
	})
	_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{RuntimeHandler: "rich", Config: podConfig(t, annotated(map[string]string{"shm-size.crio.io": "much"}))})
	refused(t, err, codes.InvalidArgument, `annotations["shm-size.crio.io"]`, `"much" is not a size`)
	for key, row := range map[string]struct{ value, text string }{
		"umask.crio.io":               {"1000", "is not an octal number"},
		"devices.crio.io":             {"/dev/null", `device "/dev/null" is not one that pods may ask for`},
		"io.kubernetes.cri-o.Devices": {"/dev/zero:/dev/x:rwm:y", "is not of the form"},
	} {
		p := runPodOf(t, d, "rich", annotated(map[string]string{key: row.value}))
		_, err := p.tryCreate(t, containerConfig(idle))
		refused(t, err, codes.InvalidArgument, fmt.Sprintf("annotations[%q]", key), row.text)
	}
}

// unified-cgroup.crio.io names a container and its files; on v1 there is none of them.
func TestHandlerUnifiedAnnotation(t *testing.T) {
	d := use(t)
	d.reload(t, "[handlers.rich]\nallowed_annotations = ['unified-cgroup.crio.io']\n")
	p := runPodOf(t, d, "rich", func(c *cri.PodSandboxConfig) {
		c.Annotations = map[string]string{"io.kubernetes.cri-o.UnifiedCgroup.high": "memory.high=67108864;pids.max=99", "unified-cgroup.crio.io/bad": "memory/high=1"}
	})
	named := func(name string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Metadata.Name = name }
	}
	if !unifiedHost() {
		_, err := p.tryCreate(t, containerConfig(idle, named("high")))
		refused(t, err, codes.InvalidArgument, `annotations["io.kubernetes.cri-o.UnifiedCgroup.high"]`, "this host has no cgroup v2")
		return
	}
	_, err := p.tryCreate(t, containerConfig(idle, named("bad")))
	refused(t, err, codes.InvalidArgument, `annotations["unified-cgroup.crio.io/bad"]`, `"memory/high=1"`)
	if got := p.start(t, idle, named("high")).cgroupFile(t, "memory.high", "memory.high"); got != "67108864" {
		t.Errorf("memory.high is %q", got)
	}
	if got := p.start(t, idle, named("other")).cgroupFile(t, "memory.high", "memory.high"); got != "max" {
		t.Errorf("memory.high of another container is %q", got)
	}
}

// A container may make groups in its own where the handler says so, which v1 does not bear.
func TestHandlerCgroupWritable(t *testing.T) {
	d := use(t)
	text := d.reload(t, "[handlers.rich]\ncgroup_writable = true\n[handlers.asked]\nallowed_annotations = ['cgroup2-mount-hierarchy-rw.crio.io']\n")
	if warned := strings.Contains(text, "that needs cgroup v2\" handler=rich"); warned == unifiedHost() {
		t.Errorf("warned of it: %v", warned)
	}
	want := map[bool]string{true: "made\n", false: ""}
	const script = "mkdir /sys/fs/cgroup/mine /sys/fs/cgroup/pids/mine 2>/dev/null; test -e /sys/fs/cgroup/mine -o -e /sys/fs/cgroup/pids/mine && echo made; true"
	asks := func(c *cri.PodSandboxConfig) {
		c.Annotations = map[string]string{"io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw": "true"}
	}
	runPodOf(t, d, "rich").prints(t, want[unifiedHost()], script)
	runPodOf(t, d, "asked", asks).prints(t, want[unifiedHost()], script)
	runPodOf(t, d, "asked").prints(t, "", script)
	runPodOf(t, d, "default", asks).prints(t, "", script)
}

// A pod keeps what its handler said when it was made: after a reload, after a restart, and when the handler is gone.
func TestHandlerStaysWithPod(t *testing.T) {
	d := use(t)
	before, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	d.reload(t, "[handlers.fast]\nenv = ['SPEED=first']\n")
	first := runPodOf(t, d, "fast")
	d.rewrite(t, string(before)+"[handlers.fast]\nenv = ['SPEED=second']\n")
	second := runPodOf(t, d, "fast")
	look := func() {
		t.Helper()
		first.prints(t, "first\n", "echo $SPEED")
		second.prints(t, "second\n", "echo $SPEED")
	}
	look()
	d.rewrite(t, string(before))
	look()
	_, err = d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t), RuntimeHandler: "fast"})
	refused(t, err, codes.InvalidArgument, `"fast"`)
	d.restart(t)
	look()
	if got := first.status(t).GetRuntimeHandler(); got != "fast" {
		t.Errorf("handler %q", got)
	}
}

// A configuration that is not right changes nothing; what needs a restart is named, and not shown as if it counted.
func TestReload(t *testing.T) {
	d := use(t)
	before, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	effective := func() (c struct {
		Root      string
		Container struct{ LogLineMax int }
		Handlers  map[string]struct{ PidsLimit int64 }
	}) {
		s, err := d.runtime.Status(bounded(t), &cri.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(s.GetInfo()["config"]), &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	if text := d.reload(t, "[handlers.broken]\npids_limit = -1\nshm_size = 'x'\n"); !strings.Contains(text, "handlers.broken.pids_limit") || !strings.Contains(text, "handlers.broken.shm_size") {
		t.Errorf("the faults are not named: %s", text)
	}
	if _, there := effective().Handlers["broken"]; there {
		t.Error("a handler of a broken configuration is there")
	}
	changed := strings.Replace(string(before), "root = ", "root = '/no/such/root' # ", 1) + "[handlers.default]\npids_limit = 60\n"
	changed = strings.Replace(changed, "[container]\n", "[container]\nlog_line_max = 256\n", 1)
	changed = strings.Replace(changed, "[images]\n", fmt.Sprintf("[images]\npinned = [%q]\n", suite.busybox), 1)
	text := d.rewrite(t, changed)
	eventually(t, rpcBound, "the key that needs a restart is named", func() bool {
		whole, err := os.ReadFile(d.log.Name())
		return err == nil && strings.Contains(string(whole), "needs a restart of criserver\" key=root")
	})
	if !strings.Contains(text, "container.log_line_max") || !strings.Contains(text, "handlers") {
		t.Errorf("what has changed is not named: %s", text)
	}
	if c := effective(); c.Root != d.root() || c.Container.LogLineMax != 256 || c.Handlers["default"].PidsLimit != 60 {
		t.Errorf("in force is said to be %+v", c)
	}
	if s, err := d.images.ImageStatus(bounded(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: suite.busybox}}); err != nil || !s.GetImage().GetPinned() {
		t.Errorf("the image that was pinned meanwhile: %v, error %v", s.GetImage(), err)
	}
	c := runPod(t, d).start(t, "head -c 300 /dev/zero | tr '\\0' x; echo")
	c.wait(t)
	eventually(t, settleBound, "the line is split", func() bool { l := readLog(t, c.log()); return len(l) == 2 && len(l[0].text) == 256 })
}
