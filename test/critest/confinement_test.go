package critest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The forms that USER of an image has, and what a request makes of them.
func TestImageUserForms(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	const whole = "id -u; id -g; id -G; echo $HOME"
	for _, row := range []struct{ user, want, refused string }{
		{user: "", want: "0\n0\n0\n/root\n"},
		{user: "1000", want: "1000\n1001\n1001 29 50\n/home/bob\n"},
		{user: "4711", want: "4711\n0\n0\n/\n"},
		{user: "4711:4712", want: "4711\n4712\n4712\n/\n"},
		{user: "bob:staff", want: "1000\n50\n50 29\n/home/bob\n"},
		{user: "bob:29", want: "1000\n29\n29 50\n/home/bob\n"},
		{user: "1000:staff", want: "1000\n50\n50 29\n/home/bob\n"},
		{user: "bob:", want: "1000\n1001\n1001 29 50\n/home/bob\n"},
		{user: "nosuch", refused: `user "nosuch" is not in /etc/passwd of the image`},
		{user: "bob:nosuch", refused: `group "nosuch" is not in /etc/group of the image`},
		{user: "nosuch:staff", refused: `user "nosuch" is not in /etc/passwd of the image`},
	} {
		t.Run(row.user, func(t *testing.T) {
			ref := pullNew(t, d, "user", ocispec.ImageConfig{User: row.user})
			image := func(c *cri.ContainerConfig) { c.Image.Image = ref }
			if row.refused != "" {
				_, err := p.tryCreate(t, containerConfig(idle, image))
				refused(t, err, codes.Unknown, row.refused)
				return
			}
			p.prints(t, row.want, whole, image)
		})
	}
}

// The user in the status is the one that the processes have, the first and those of execs.
func TestUserInStatus(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	type context = cri.LinuxContainerSecurityContext
	for _, row := range []struct {
		name   string
		change func(*context)
		user   string // of the status
		groups string // that the processes are in, as the kernel sorts them
	}{
		{"root", func(*context) {}, "0 0 [0]", "0"},
		{"merge", func(c *context) { c.RunAsUser, c.RunAsGroup, c.SupplementalGroups = id(1000), id(7), []int64{1234, 29} }, "1000 7 [7 50 29 1234]", "7 29 50 1234"},
		{"strict", func(c *context) {
			c.RunAsUser, c.RunAsGroup, c.SupplementalGroups, c.SupplementalGroupsPolicy = id(1000), id(7), []int64{1234, 29}, cri.SupplementalGroupsPolicy_Strict
		}, "1000 7 [7 1234 29]", "7 29 1234"},
		{"strict without groups", func(c *context) {
			c.RunAsUsername, c.SupplementalGroupsPolicy = "bob", cri.SupplementalGroupsPolicy_Strict
		}, "1000 1001 [1001]", "1001"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, "id -G; "+idle, security(row.change))
			c.waitOutput(t, row.groups+"\nready")
			if got := c.exec(t, "id -G"); got != row.groups+"\n" {
				t.Errorf("an exec is in the groups %q", got)
			}
			u := c.status(t).GetUser().GetLinux()
			if got := fmt.Sprint(u.GetUid(), u.GetGid(), u.GetSupplementalGroups()); got != row.user {
				t.Errorf("status has the user %s instead of %s", got, row.user)
			}
		})
	}
	_, err := p.tryCreate(t, containerConfig(idle, security(func(c *context) { c.SupplementalGroupsPolicy = 9 })))
	refused(t, err, codes.InvalidArgument, "supplemental_groups_policy", "9 is not a known value")
}

// ALL of either list comes before single names, and adding before dropping.
func TestCapabilitiesOrder(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	all := strings.Fields(hostStatus(t, "CapBnd"))[1]
	for _, row := range []struct {
		name      string
		add, drop []string
		want      string
	}{
		{"add and drop all", []string{"ALL"}, []string{"ALL"}, "0000000000000000"},
		{"both, and one of each", []string{"all", "CAP_KILL", "CHOWN"}, []string{"cap_all", "chown"}, "0000000000000020"},
		{"the same name in both", []string{"NET_ADMIN"}, []string{"NET_ADMIN"}, "00000000a80425fb"},
		{"all with prefix", []string{"CAP_ALL"}, nil, all},
		{"mixed case", []string{"Cap_Net_Admin"}, []string{"cHoWn"}, "00000000a80435fa"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.prints(t, "CapEff:\t"+row.want+"\nCapBnd:\t"+row.want+"\n", "grep -E '^Cap(Eff|Bnd)' /proc/self/status", security(func(c *cri.LinuxContainerSecurityContext) {
				c.Capabilities = &cri.Capability{AddCapabilities: row.add, DropCapabilities: row.drop}
			}))
		})
	}
	t.Run("ambient, of an exec too", func(t *testing.T) {
		c := p.start(t, idle, security(func(c *cri.LinuxContainerSecurityContext) {
			c.RunAsUser = id(1000)
			c.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"cap_net_bind_service"}}
		}))
		const want = "CapInh:\t0000000000000400\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000400\nCapBnd:\t0000000000000400\nCapAmb:\t0000000000000400\n"
		if got := c.exec(t, "grep -E '^Cap' /proc/self/status"); got != want {
			t.Errorf("%q", got)
		}
	})
	for list, caps := range map[string]*cri.Capability{
		"add_capabilities[1]":         {AddCapabilities: []string{"KILL", "FLY"}},
		"drop_capabilities[0]":        {DropCapabilities: []string{"CAP_"}},
		"add_ambient_capabilities[0]": {AddAmbientCapabilities: []string{"FLY"}},
	} {
		_, err := p.tryCreate(t, containerConfig(idle, security(func(c *cri.LinuxContainerSecurityContext) { c.Capabilities = caps })))
		refused(t, err, codes.InvalidArgument, list, "is not a capability")
	}
}

// The deprecated field of seccomp counts where the new one is not set.
func TestSeccompDeprecatedField(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	local := write(t, filepath.Join(t.TempDir(), "profile.json"),
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`)
	old := func(path string) func(*cri.ContainerConfig) {
		//lint:ignore SA1019 old clients set it
		return security(func(c *cri.LinuxContainerSecurityContext) { c.SeccompProfilePath = path })
	}
	const script = "grep ^Seccomp: /proc/self/status; mkdir /tmp/d 2>&1; true"
	const free, filtered, denied = "Seccomp:\t0\n", "Seccomp:\t2\n", "Seccomp:\t2\nmkdir: can't create directory '/tmp/d': Operation not permitted\n"
	for _, row := range []struct {
		name   string
		change func(*cri.ContainerConfig)
		want   string
	}{
		{"runtime/default", old("runtime/default"), filtered},
		{"docker/default", old("docker/default"), filtered},
		{"unconfined", old("unconfined"), free},
		{"localhost", old("localhost/" + local), denied},
		{"the new field wins", both(old("localhost/"+local), security(func(c *cri.LinuxContainerSecurityContext) {
			c.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		})), free},
	} {
		t.Run(row.name, func(t *testing.T) { p.prints(t, row.want, script, row.change) })
	}
	for value, text := range map[string]string{"strict": `unknown value "strict"`, "localhost/p.json": "is not an absolute path", "localhost//no/such": "no such file"} {
		_, err := p.tryCreate(t, containerConfig(idle, old(value)))
		refused(t, err, codes.InvalidArgument, "seccomp_profile_path", text)
	}
}

// What the default profile refuses, and how: EPERM, but ENOSYS where a C library has something older to try.
func TestSeccompDefault(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	filtered := func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{}
		appArmor(appArmorUnconfined, "")(c) // whose default profile refuses mounts too
	}
	admin := both(filtered, security(func(c *cri.LinuxContainerSecurityContext) {
		c.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}))
	const mount, hostname = "mount -t tmpfs x /tmp 2>&1; true", "hostname x 2>&1; true"
	p.prints(t, "mount: permission denied (are you root?)\n", mount, filtered)
	p.prints(t, "", mount, admin)
	p.prints(t, "hostname: sethostname: Operation not permitted\n", hostname, filtered)
	p.prints(t, "unshare: unshare(0x10000000): Operation not permitted\n", "unshare -U true 2>&1; true", filtered)
	p.prints(t, "", "unshare -m true 2>&1; true", admin)
}

// Privileged: the masks go, /sys and the cgroups can be written, every device is there and may be used.
func TestPrivilegedPaths(t *testing.T) {
	d := use(t)
	p := runPod(t, d, func(c *cri.PodSandboxConfig) { podNetwork(c); c.Linux.SecurityContext.Privileged = true })
	hidden := func(c *cri.LinuxContainerSecurityContext) {
		c.MaskedPaths, c.ReadonlyPaths = []string{"/proc/uptime", "/sys/firmware"}, []string{"/proc/sys"}
	}
	const script = "wc -c </proc/uptime | sed 's/^[1-9].*/seen/'; grep -oE ' /(sys|sys/fs/cgroup|proc/sys) [a-z0-9]+ r[ow]' /proc/mounts | sort | tr '\\n' ','; (exec 3</dev/kmsg) 2>/dev/null && echo usable; true"
	p.prints(t, "seen\n /sys sysfs rw, /sys/fs/cgroup "+cgroupKind()+" rw,usable\n", script, security(func(c *cri.LinuxContainerSecurityContext) { hidden(c); c.Privileged = true }))
	p.prints(t, "0\n /proc/sys proc ro, /sys sysfs ro, /sys/fs/cgroup "+cgroupKind()+" ro,", script, security(hidden))
}

// A privileged container may do in its user namespace what root may there, and nothing beyond.
func TestPrivilegedInUserNamespace(t *testing.T) {
	d := use(t)
	_, inUserNS := userNamespace(10 << 20)
	p := runPod(t, d, inUserNS, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	const script = "id -u; mount -t tmpfs x /tmp && echo mounted; ip link add br0 type bridge && echo link; test -e /dev/kmsg && echo devices; " +
		"(echo x >/proc/sysrq-trigger) 2>/dev/null || echo no host"
	p.prints(t, "0\nmounted\nlink\ndevices\nno host\n", script, security(func(c *cri.LinuxContainerSecurityContext) { c.Privileged = true }))
}

// cgroupKind is the file system that containers have at /sys/fs/cgroup.
func cgroupKind() string {
	if unifiedHost() {
		return "cgroup2"
	}
	return "tmpfs"
}

// The security context of a pod is pause's, which has no file system, no user and no system call that it would need: what
// cannot be meant is refused all the same.
func TestPodSecurityContext(t *testing.T) {
	d := use(t)
	type context = cri.LinuxSandboxSecurityContext
	pod := func(change func(*context)) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { change(c.Linux.SecurityContext) }
	}
	p := runPod(t, d, pod(func(c *context) {
		c.RunAsUser, c.RunAsGroup, c.SupplementalGroups, c.ReadonlyRootfs = id(1000), id(1000), []int64{5}, true
		c.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}))
	p.prints(t, "0\nwritten\n", "id -u; echo >/x && echo written") // none of it is inherited
	for _, row := range []struct {
		name   string
		change func(*context)
		field  string
	}{
		{"group without user", func(c *context) { c.RunAsGroup = id(5) }, "run_as_group"},
		{"user", func(c *context) { c.RunAsUser = id(-1) }, "run_as_user"},
		{"groups", func(c *context) { c.SupplementalGroups = []int64{1 << 32} }, "supplemental_groups[0]"},
		{"policy", func(c *context) { c.SupplementalGroupsPolicy = 3 }, "supplemental_groups_policy"},
		{"seccomp without file", func(c *context) { c.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost} }, "seccomp.localhost_ref"},
		{"seccomp with a relative one", func(c *context) {
			c.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "x"}
		}, "seccomp.localhost_ref"},
		{"seccomp of another kind", func(c *context) { c.Seccomp = &cri.SecurityProfile{ProfileType: 7} }, "seccomp.profile_type"},
		{"AppArmor without name", func(c *context) { c.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost} }, "apparmor.localhost_ref"},
		{"SELinux level", func(c *context) { c.SelinuxOptions = &cri.SELinuxOption{Level: "s0 c1"} }, "selinux_options.level"},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t, pod(row.change))})
			refused(t, err, codes.InvalidArgument, "config.linux.security_context."+row.field)
		})
	}
}

// Stop signals of images and requests, by name and number, and the effective one in the status.
func TestStopSignals(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	for _, row := range []struct {
		image string
		asked cri.Signal
		want  cri.Signal
		trap  string // as the shell knows it
	}{
		{"", 0, cri.Signal_SIGNAL_SIGTERM, "TERM"},
		{"SIGQUIT", 0, cri.Signal_SIGNAL_SIGQUIT, "QUIT"},
		{"quit", 0, cri.Signal_SIGNAL_SIGQUIT, "QUIT"},
		{"10", 0, cri.Signal_SIGNAL_SIGUSR1, "USR1"},
		{"SIGRTMIN+3", 0, cri.Signal_SIGNAL_SIGRTMINPLUS3, "37"},
		{"RTMAX-2", 0, cri.Signal_SIGNAL_SIGRTMAXMINUS2, "62"},
		{"37", 0, cri.Signal_SIGNAL_SIGRTMINPLUS3, "37"},
		{"SIGRTMIN", 0, cri.Signal_SIGNAL_SIGRTMIN, "34"},
		{"64", 0, cri.Signal_SIGNAL_SIGRTMAX, "64"},
		{"SIGQUIT", cri.Signal_SIGNAL_SIGUSR2, cri.Signal_SIGNAL_SIGUSR2, "USR2"},
		{"", cri.Signal_SIGNAL_SIGRTMINPLUS15, cri.Signal_SIGNAL_SIGRTMINPLUS15, "49"},
		{"", cri.Signal_SIGNAL_SIGRTMAXMINUS14, cri.Signal_SIGNAL_SIGRTMAXMINUS14, "50"},
	} {
		t.Run(row.image+" "+row.asked.String(), func(t *testing.T) {
			image := suite.busybox
			if row.image != "" {
				image = pullNew(t, d, "signal", ocispec.ImageConfig{StopSignal: row.image})
			}
			c := p.start(t, "trap 'exit 3' "+row.trap+"; echo ready; while :; do sleep 1000 & wait $!; done", func(c *cri.ContainerConfig) {
				c.Image.Image, c.StopSignal = image, row.asked
			})
			c.waitOutput(t, "ready")
			if got := c.status(t).GetStopSignal(); got != row.want {
				t.Errorf("status has %s instead of %s", got, row.want)
			}
			c.stop(t, never)
			if s := c.status(t); s.GetExitCode() != 3 {
				t.Errorf("exit code %d", s.GetExitCode())
			}
		})
	}
	bad := pullNew(t, d, "badsignal", ocispec.ImageConfig{StopSignal: "SIGNONE"})
	_, err := p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) { c.Image.Image = bad }))
	refused(t, err, codes.Unknown, `image config: StopSignal: "SIGNONE" is not a signal`)
	_, err = p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) { c.StopSignal = 200 }))
	refused(t, err, codes.InvalidArgument, "config.stop_signal", "200")
	p.prints(t, "ran\n", "echo ran", func(c *cri.ContainerConfig) { c.Image.Image, c.StopSignal = bad, cri.Signal_SIGNAL_SIGINT })
}
