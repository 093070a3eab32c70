package specgen

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// devices adds those of the request, or all of the host for a privileged container, and the rules of the device cgroup.
func (g *generator) devices() error {
	read := g.Host.Devices
	if read == nil {
		read = HostDevices
	}
	if g.privileged {
		found, err := read("/dev")
		if err != nil {
			return fmt.Errorf("find the host's devices: %w", err)
		}
		g.spec.Linux.Devices = slices.DeleteFunc(found, func(d specs.LinuxDevice) bool { return ownDevice(d.Path) })
		g.spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}}
	} else {
		g.spec.Linux.Resources = &specs.LinuxResources{Devices: defaultDeviceRules()}
	}
	for i, d := range g.Container.GetDevices() {
		if err := g.device(indexed("devices", i), d, read); err != nil {
			return err
		}
	}
	return nil
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
		linux.Devices = slices.DeleteFunc(linux.Devices, func(have specs.LinuxDevice) bool { return have.Path == one.Path })
		linux.Devices = append(linux.Devices, one)
		if !g.privileged {
			linux.Resources.Devices = append(linux.Resources.Devices, deviceRule(one.Type, one.Major, one.Minor, access))
		}
	}
	return nil
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
