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
}

const (
	minimalInit = "/usr/lib/vm/init"
	systemdInit = "/lib/systemd/systemd"
)

// systemdParams make systemd start what the command needs, and nothing else.
var systemdParams = []string{"systemd.unit=vm.target", "systemd.show_status=0"}

var flavours = map[string]flavour{
	"minimal": {
		about:  "Linux of trixie, cgroup v2, no systemd, AppArmor",
		kernel: kernelOf("trixie"), root: rootOf("apparmor"), init: minimalInit,
		params: []string{"apparmor=1", "security=apparmor"}, driver: "cgroupfs",
	},
	"systemd": {
		about:  "Linux of trixie, cgroup v2, systemd, AppArmor",
		kernel: kernelOf("trixie"), root: rootOf("apparmor"), init: systemdInit,
		params: append([]string{"apparmor=1", "security=apparmor"}, systemdParams...), driver: "systemd",
	},
	"linux61": {
		about:  "Linux 6.1 of bookworm, which mounts no EROFS files; cgroup v2, no systemd, AppArmor",
		kernel: kernelOf("bookworm"), root: rootOf("apparmor"), init: minimalInit,
		params: []string{"apparmor=1", "security=apparmor"}, driver: "cgroupfs",
	},
}
