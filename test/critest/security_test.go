package critest

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// security changes a container's security context.
func security(change func(*cri.LinuxContainerSecurityContext)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func id(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }

func TestUsers(t *testing.T) {
	d := use(t)
	byName := pullNew(t, d, "byname", ocispec.ImageConfig{User: "bob"})
	byIDs := pullNew(t, d, "byids", ocispec.ImageConfig{User: "1000:50"})
	p := runPod(t, d)
	const whole = "id -u; id -g; id -G; echo $HOME"
	type context = cri.LinuxContainerSecurityContext
	for _, row := range []struct {
		name   string
		image  string
		change func(*context)
		want   string
	}{
		{"nothing said", suite.busybox, func(*context) {}, "0\n0\n0\n/root\n"},
		{"uid with a passwd entry", suite.busybox, func(c *context) { c.RunAsUser = id(1000) }, "1000\n1001\n1001 29 50\n/home/bob\n"},
		{"uid without", suite.busybox, func(c *context) { c.RunAsUser = id(4711) }, "4711\n0\n0\n/\n"},
		{"name", suite.busybox, func(c *context) { c.RunAsUsername = "bob" }, "1000\n1001\n1001 29 50\n/home/bob\n"},
		{"uid and gid", suite.busybox, func(c *context) { c.RunAsUser, c.RunAsGroup = id(1000), id(7) }, "1000\n7\n7 29 50\n/home/bob\n"},
		{"name and gid", suite.busybox, func(c *context) { c.RunAsUsername, c.RunAsGroup = "bob", id(7) }, "1000\n7\n7 29 50\n/home/bob\n"},
		{"supplemental groups", suite.busybox, func(c *context) { c.SupplementalGroups = []int64{1234, 50000} }, "0\n0\n0 1234 50000\n/root\n"},
		{"merged groups", suite.busybox, func(c *context) { c.RunAsUser, c.SupplementalGroups = id(1000), []int64{1234} }, "1000\n1001\n1001 29 50 1234\n/home/bob\n"},
		{"strict groups", suite.busybox, func(c *context) {
			c.RunAsUser, c.SupplementalGroups, c.SupplementalGroupsPolicy = id(1000), []int64{1234}, cri.SupplementalGroupsPolicy_Strict
		}, "1000\n1001\n1001 1234\n/home/bob\n"},
		{"image's user name", byName, func(*context) {}, "1000\n1001\n1001 29 50\n/home/bob\n"},
		{"image's ids", byIDs, func(*context) {}, "1000\n50\n50 29\n/home/bob\n"},
		{"uid over the image's", byName, func(c *context) { c.RunAsUser = id(0) }, "0\n0\n0\n/root\n"},
		{"largest id", suite.busybox, func(c *context) { c.RunAsUser = id(4294967294) }, "4294967294\n0\n0\n/\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, row.want, whole, func(c *cri.ContainerConfig) { c.Image.Image = row.image }, security(row.change))
		})
	}
	c := p.start(t, idle, security(func(c *context) { c.RunAsUser, c.SupplementalGroups = id(1000), []int64{1234} }))
	if u := c.status(t).GetUser().GetLinux(); u.GetUid() != 1000 || u.GetGid() != 1001 || len(u.GetSupplementalGroups()) < 3 {
		t.Errorf("status has the user %v", u)
	}
}

func TestUsersRefused(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	unknown := pullNew(t, d, "unknownuser", ocispec.ImageConfig{User: "nosuch"})
	type context = cri.LinuxContainerSecurityContext
	for _, row := range []struct {
		name, image string
		change      func(*context)
		code        codes.Code
		text        string
	}{
		{"unknown name", suite.busybox, func(c *context) { c.RunAsUsername = "nosuch" }, codes.InvalidArgument, `run_as_username: user "nosuch" is not in /etc/passwd`},
		{"number of nobody", suite.busybox, func(c *context) { c.RunAsUsername = "7777" }, codes.InvalidArgument, `run_as_username: user "7777" is not in /etc/passwd`},
		{"image's unknown name", unknown, func(*context) {}, codes.Unknown, "nosuch"},
		{"group without user", suite.busybox, func(c *context) { c.RunAsGroup = id(5) }, codes.InvalidArgument, "run_as_group"},
		{"uid and name", suite.busybox, func(c *context) { c.RunAsUser, c.RunAsUsername = id(5), "bob" }, codes.InvalidArgument, "run_as_username"},
		{"negative uid", suite.busybox, func(c *context) { c.RunAsUser = id(-1) }, codes.InvalidArgument, "run_as_user"},
		{"negative group", suite.busybox, func(c *context) { c.SupplementalGroups = []int64{-1} }, codes.InvalidArgument, "supplemental_groups[0]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) { c.Image.Image = row.image }, security(row.change)))
			refused(t, err, row.code, row.text)
		})
	}
}

// What /proc/PID/status says of capabilities: 14 of containerd's default, all of this kernel, and so on.
func TestCapabilities(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	all := strings.Fields(hostStatus(t, "CapBnd"))[1]
	add := func(names ...string) *cri.Capability { return &cri.Capability{AddCapabilities: names} }
	drop := func(names ...string) *cri.Capability { return &cri.Capability{DropCapabilities: names} }
	const standard = "00000000a80425fb"
	for _, row := range []struct {
		name      string
		caps      *cri.Capability
		effective string
	}{
		{"default", nil, standard},
		{"add", add("NET_ADMIN"), "00000000a80435fb"},
		{"add in small letters with prefix", add("cap_net_admin"), "00000000a80435fb"},
		{"add all", add("ALL"), all},
		{"drop", drop("CHOWN"), "00000000a80425fa"},
		{"drop all", drop("ALL"), "0000000000000000"},
		{"drop all, add one", &cri.Capability{AddCapabilities: []string{"NET_BIND_SERVICE"}, DropCapabilities: []string{"ALL"}}, "0000000000000400"},
		{"add all, drop one", &cri.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CHOWN"}}, all[:15] + "e"},
	} {
		t.Run(row.name, func(t *testing.T) {
			want := "CapInh:\t0000000000000000\nCapPrm:\t" + row.effective + "\nCapEff:\t" + row.effective + "\nCapBnd:\t" + row.effective + "\nCapAmb:\t0000000000000000\n"
			p.prints(t, want, "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status", security(func(c *cri.LinuxContainerSecurityContext) { c.Capabilities = row.caps }))
		})
	}
	t.Run("ambient", func(t *testing.T) {
		p.prints(t, "CapEff:\t0000000000000400\nCapAmb:\t0000000000000400\n", "grep -E '^Cap(Eff|Amb)' /proc/self/status", security(func(c *cri.LinuxContainerSecurityContext) {
			c.RunAsUser = id(1000)
			c.Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}))
	})
}

// hostStatus is a line of this process' status.
func hostStatus(t *testing.T, key string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, key+":") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatalf("/proc/self/status has no %s", key)
	return ""
}

func TestSeccomp(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	profile := func(kind cri.SecurityProfile_ProfileType, ref string) *cri.SecurityProfile {
		return &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	local := write(t, filepath.Join(t.TempDir(), "profile.json"),
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname","mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`)
	broken := write(t, filepath.Join(t.TempDir(), "broken.json"), `{"defaultAction":`)
	for _, row := range []struct {
		name    string
		profile *cri.SecurityProfile
		want    string
	}{
		{"none", nil, "Seccomp:\t0\n"},
		{"unconfined", profile(cri.SecurityProfile_Unconfined, ""), "Seccomp:\t0\n"},
		{"runtime default", profile(cri.SecurityProfile_RuntimeDefault, ""), "Seccomp:\t2\n"},
		{"local", profile(cri.SecurityProfile_Localhost, local), "Seccomp:\t2\nmkdir: can't create directory '/tmp/d': Operation not permitted\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, row.want, "grep ^Seccomp: /proc/self/status; mkdir /tmp/d 2>&1; exit 0", security(func(c *cri.LinuxContainerSecurityContext) { c.Seccomp = row.profile }))
		})
	}
	t.Run("runtime default refuses a user namespace", func(t *testing.T) {
		p.prints(t, "unshare: unshare(0x10000000): Operation not permitted\n", "! unshare -U true 2>&1", security(func(c *cri.LinuxContainerSecurityContext) {
			c.Seccomp = profile(cri.SecurityProfile_RuntimeDefault, "")
		}))
	})
	t.Run("exec too", func(t *testing.T) {
		c := p.start(t, idle, security(func(c *cri.LinuxContainerSecurityContext) { c.Seccomp = profile(cri.SecurityProfile_Localhost, local) }))
		if got := c.exec(t, "grep ^Seccomp: /proc/self/status; mkdir /tmp/d 2>&1; exit 0"); !strings.HasPrefix(got, "Seccomp:\t2\nmkdir: ") {
			t.Errorf("%q", got)
		}
	})
	for name, ref := range map[string]string{"missing profile": "/no/such/profile.json", "broken profile": broken} {
		t.Run(name, func(t *testing.T) {
			_, err := p.tryCreate(t, containerConfig(idle, security(func(c *cri.LinuxContainerSecurityContext) { c.Seccomp = profile(cri.SecurityProfile_Localhost, ref) })))
			refused(t, err, codes.InvalidArgument, "localhost_ref", ref)
		})
	}
}

// A set-uid program gains nothing with no_new_privs.
func TestNoNewPrivs(t *testing.T) {
	d := use(t)
	text, err := os.ReadFile(registry.BusyboxPath(t))
	if err != nil {
		t.Fatal(err)
	}
	ref := pullNew(t, d, "setuid", ocispec.ImageConfig{}, registry.Layer{Compression: "gzip", Files: []registry.File{
		{Header: tar.Header{Name: "bin/busybox-suid", Mode: 0o4755}, Body: string(text)},
	}})
	p := runPod(t, d)
	for set, want := range map[bool]int{true: 2, false: 0} {
		c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref },
			security(func(c *cri.LinuxContainerSecurityContext) { c.RunAsUser, c.NoNewPrivs = id(1000), set }))
		out := c.exec(t, "busybox-suid su -c true 2>&1 </dev/null; cat /proc/1/status /proc/self/status | grep NoNewPrivs")
		if powerless := strings.Contains(out, "must be suid to work"); powerless != set || strings.Count(out, "NoNewPrivs:\t1") != want {
			t.Errorf("no_new_privs %v: %q", set, out)
		}
	}
}

func TestPaths(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	type context = cri.LinuxContainerSecurityContext
	for _, row := range []struct {
		name, script string
		change       func(*context)
		want         string
	}{
		{"masked file", "wc -c </etc/passwd; cat /proc/uptime | wc -c", func(c *context) { c.MaskedPaths = []string{"/etc/passwd", "/proc/uptime", "/no/such"} }, "0\n0\n"},
		{"masked directory", "ls /etc; touch /etc/x 2>&1", func(c *context) { c.MaskedPaths = []string{"/etc", "/no/such"} }, "touch: /etc/x: Read-only file system\n"},
		{"read-only path", "touch /tmp/x 2>&1; touch /var/x; echo 1 >/proc/sys/vm/drop_caches", func(c *context) { c.ReadonlyPaths = []string{"/tmp", "/proc/sys", "/no/such"} }, "touch: /tmp/x: Read-only file system\nsh: can't create /proc/sys/vm/drop_caches: Read-only file system\n"},
		{"nothing masked", "ls /proc/sys | grep -c kernel", func(*context) {}, "1\n"},
		{"read-only root", "touch /x 2>&1; touch /tmp/x 2>&1; echo >/dev/shm/x && echo shm; echo >/dev/null && echo null", func(c *context) { c.ReadonlyRootfs = true }, "touch: /x: Read-only file system\ntouch: /tmp/x: Read-only file system\nshm\nnull\n"},
		{"writable root", "touch /x && echo written", func(*context) {}, "written\n"},
		{"sysfs is read-only", "mkdir /sys/x 2>&1; mount | grep ' /sys ' | grep -c 'ro,'", func(*context) {}, "mkdir: can't create directory '/sys/x': Read-only file system\n1\n"},
		{"devices", "cd /dev; ls -d full null ptmx pts random shm mqueue stderr stdin stdout tty urandom zero fd 2>&1 | tr '\\n' ' '", func(*context) {}, "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "},
		{"no other device can be opened", "mknod /tmp/d b 254 0 && cat /tmp/d 2>&1", func(*context) {}, "cat: can't open '/tmp/d': Operation not permitted\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, row.want, row.script+"; true", security(row.change))
		})
	}
}

func TestPrivileged(t *testing.T) {
	d := use(t)
	privilegedPod := func(c *cri.PodSandboxConfig) { podNetwork(c); c.Linux.SecurityContext.Privileged = true }
	const script = "ip link add br0 type bridge 2>/dev/null && echo link; touch /sys/fs/cgroup/x 2>/dev/null; mount -t tmpfs x /tmp 2>/dev/null && echo mount; ls /dev | grep -q '^loop-control$\\|^kmsg$' && echo all devices; grep -E '^(CapEff|Seccomp):' /proc/self/status"
	all := strings.Fields(hostStatus(t, "CapBnd"))[1]
	p := runPod(t, d, privilegedPod)
	privileged := security(func(c *cri.LinuxContainerSecurityContext) {
		c.Privileged = true
		c.MaskedPaths, c.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		c.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	})
	p.prints(t, "link\nmount\nall devices\nCapEff:\t"+all+"\nSeccomp:\t0\n", script, privileged)
	p.prints(t, "CapEff:\t00000000a80425fb\nSeccomp:\t0\n", script)
	plain := runPod(t, d, podNetwork)
	_, err := plain.tryCreate(t, containerConfig(idle, privileged))
	refused(t, err, codes.InvalidArgument, "privileged")
}

func TestUserNamespace(t *testing.T) {
	d := use(t)
	mapping := []*cri.IDMapping{{HostId: 1 << 20, ContainerId: 0, Length: 65536}}
	p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: mapping, Gids: mapping}
	})
	p.prints(t, " 0 1048576 65536\n0\n0\n0\nwritten\n", "cat /proc/self/uid_map | tr -s ' '; id -u; stat -c %u /bin/busybox /root; touch /x && echo written")
	c := p.start(t, "", command("sleep", "5432"))
	eventually(t, rpcBound, "the process runs", func() bool { return running(t, "sleep 5432") == 1 })
	if got := c.exec(t, "id -u; cat /proc/1/comm"); got != "0\nsleep\n" {
		t.Errorf("exec: %q", got)
	}
}
