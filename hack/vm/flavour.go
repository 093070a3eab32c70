package main

// flavour is a kind of guest.
type flavour struct {
	name   string // its key in flavours
	about  string
	kernel recipe
	root   recipe
	init   string   // process 1
	params []string // of the kernel
	driver string   // cgroup driver that criserver is told to use
	disk   int64    // bytes of a disk of its own, which outlives resets; 0: none
}

const (
	minimalInit = "/usr/lib/vm/init"
	systemdInit = "/lib/systemd/systemd"
)

// systemdParams make systemd start what the command needs, and nothing else.
var systemdParams = []string{"systemd.unit=vm.target", "systemd.show_status=0"}

var selinuxRoot = rootOf("trixie", "selinux", "selinux-policy-default", "policycoreutils", "selinux-utils")

var flavours = map[string]flavour{
	"minimal": {
		about:  "Linux of trixie, cgroup v2, no systemd, AppArmor",
		kernel: kernelOf("trixie"), root: rootOf("bookworm", "apparmor", "apparmor"), init: minimalInit,
		params: []string{"apparmor=1", "security=apparmor"}, driver: "cgroupfs",
	},
	"systemd": {
		about:  "Linux of trixie, cgroup v2, systemd, AppArmor",
		kernel: kernelOf("trixie"), root: rootOf("bookworm", "apparmor", "apparmor"), init: systemdInit,
		params: append([]string{"apparmor=1", "security=apparmor"}, systemdParams...), driver: "systemd",
	},
	"hybrid": {
		about:  "Linux 6.1 of bookworm, cgroup v1 with a cgroup2 beside it, systemd, AppArmor",
		kernel: kernelOf("bookworm"), root: rootOf("bookworm", "apparmor", "apparmor"), init: systemdInit,
		params: append([]string{"apparmor=1", "security=apparmor", "systemd.unified_cgroup_hierarchy=0"}, systemdParams...), driver: "systemd",
	},
	"v1": {
		about:  "Linux 6.1 of bookworm, cgroup v1 alone, systemd, AppArmor",
		kernel: kernelOf("bookworm"), root: rootOf("bookworm", "apparmor", "apparmor"), init: systemdInit,
		params: append([]string{"apparmor=1", "security=apparmor", "systemd.unified_cgroup_hierarchy=0", "systemd.legacy_systemd_cgroup_controller=1"}, systemdParams...),
		driver: "systemd",
	},
	"selinux": {
		about:  "Linux of trixie, cgroup v2, systemd, SELinux with Debian's policy, permissive",
		kernel: kernelOf("trixie"), root: selinuxRoot, init: systemdInit,
		params: append([]string{"security=selinux", "enforcing=0"}, systemdParams...), driver: "systemd",
	},
	"selinux-enforcing": {
		about:  "Linux of trixie, cgroup v2, systemd, SELinux with Debian's policy, enforcing",
		kernel: kernelOf("trixie"), root: selinuxRoot, init: systemdInit,
		params: append([]string{"security=selinux", "enforcing=1"}, systemdParams...), driver: "systemd",
	},
	"reset": {
		about:  "as minimal, with a disk that outlives resets without warning",
		kernel: kernelOf("trixie"), root: rootOf("bookworm", "apparmor", "apparmor"), init: minimalInit,
		params: []string{"apparmor=1", "security=apparmor"}, driver: "cgroupfs", disk: 1 << 30,
	},
	"linux61": {
		about:  "Linux 6.1 of bookworm, which mounts no EROFS files; cgroup v2, no systemd, AppArmor",
		kernel: kernelOf("bookworm"), root: rootOf("bookworm", "apparmor", "apparmor"), init: minimalInit,
		params: []string{"apparmor=1", "security=apparmor"}, driver: "cgroupfs",
	},
}
