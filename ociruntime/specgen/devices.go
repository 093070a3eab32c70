package specgen

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// devices adds those of the request and of annotations, for a privileged container also what its handler says, and the
// rules of the device cgroup.
func (g *generator) devices() error {
	read := g.Host.Devices
	if read == nil {
		read = HostDevices
	}
	g.spec.Linux.Resources = &specs.LinuxResources{Devices: defaultDeviceRules()}
	if g.anyDevice() {
		g.spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}
	}
	if g.privileged && g.Handler.PrivilegedDevices == PrivilegedHost {
		found, err := read("/dev")
		if err != nil {
			return fmt.Errorf("find the host's devices: %w", err)
		}
		g.spec.Linux.Devices = slices.DeleteFunc(found, func(d specs.LinuxDevice) bool { return ownDevice(d.Path) })
	}
	annotated, err := g.devicesAnnotation()
	if err != nil {
		return err
	}
	for _, d := range annotated {
		if err := g.device(d.field, d.Device, read); err != nil {
			return err
		}
	}
	for i, d := range g.Container.GetDevices() {
		if err := g.device(indexed("devices", i), d, read); err != nil {
			return err
		}
	}
	return nil
}

// anyDevice says whether the container may use every device that it can name.
func (g *generator) anyDevice() bool {
	return g.privileged && g.Handler.PrivilegedDevices != PrivilegedNone
}

// ownDevice names what every container has of its own.
func ownDevice(p string) bool {
	return slices.Contains([]string{"/dev/console", "/dev/ptmx", "/dev/tty", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}, p)
}

func (g *generator) device(field string, d *runtimev1.Device, read func(string) ([]specs.LinuxDevice, error)) error {
	from, to, access := d.GetHostPath(), d.GetContainerPath(), d.GetPermissions()
	if to == "" {
		to = from
	}
	if access == "" {
		access = "rwm"
	}
	switch {
	case !isAbsolute(from):
		return invalid(field+".host_path", "%q is not an absolute path", from)
	case !isAbsolute(to) || slices.Contains(strings.Split(to, "/"), ".."):
		return invalid(field+".container_path", "%q is not an absolute path", to)
	case strings.Trim(access, "rwm") != "":
		return invalid(field+".permissions", "%q is not made of r, w and m", access)
	}
	found, err := read(from)
	if err != nil {
		return because(field+".host_path", err)
	}
	linux := g.spec.Linux
	for _, one := range found {
		// Those of a directory keep their places below it.
		one.Path = path.Join(to, strings.TrimPrefix(one.Path, path.Clean(from)))
		g.own(&one)
		linux.Devices = slices.DeleteFunc(linux.Devices, func(have specs.LinuxDevice) bool { return have.Path == one.Path })
		linux.Devices = append(linux.Devices, one)
		if !g.anyDevice() {
			linux.Resources.Devices = append(linux.Resources.Devices, deviceRule(one.Type, one.Major, one.Minor, access))
		}
	}
	return nil
}

// own gives a device that is asked for to the container's user and group, as far as the request names them.
func (g *generator) own(d *specs.LinuxDevice) {
	if !g.Handler.DeviceOwnership {
		return
	}
	if uid := g.security.GetRunAsUser(); uid != nil {
		d.UID = new(uint32(uid.GetValue()))
	}
	if gid := g.security.GetRunAsGroup(); gid != nil {
		d.GID = new(uint32(gid.GetValue()))
	}
}

func deviceRule(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	rule := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Access: access}
	if minor >= 0 {
		rule.Minor = &minor
	}
	return rule
}

// defaultDeviceRules let every container make nodes and use the devices that it has: null, zero, full, random, urandom,
// tty, console, ptmx and its terminals.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, -1}} {
		rules = append(rules, deviceRule("c", d[0], d[1], "rwm"))
	}
	return rules
}
