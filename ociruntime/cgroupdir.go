package ociruntime

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/mount"
)

// hierarchyPlace is one name below /sys/fs/cgroup of containers on a host with v1 hierarchies.
type hierarchyPlace struct {
	name       string
	controller string // whose hierarchy is mounted there
	link       string // name of the controller that this one is mounted together with; "": it is a directory
}

func hierarchyPlaces(hierarchies []cgroup.Hierarchy) []hierarchyPlace {
	points := map[string]string{} // controller -> mount point
	for _, h := range hierarchies {
		for _, c := range h.Controllers {
			points[c] = h.MountPoint
		}
		if h.Unified {
			points[""] = h.MountPoint
		}
	}
	var places []hierarchyPlace
	dirs := map[string]string{} // mount point -> name
	for _, c := range slices.Sorted(maps.Keys(points)) {
		p := hierarchyPlace{name: hierarchyName(c), controller: c, link: dirs[points[c]]}
		if p.link == "" {
			dirs[points[c]] = p.name
		}
		places = append(places, p)
	}
	return places
}

// hierarchyName is the usual name of a mount point below /sys/fs/cgroup.
func hierarchyName(controller string) string {
	if controller == "" {
		return "unified"
	}
	return strings.TrimPrefix(controller, "name=")
}

// newCgroupDir makes the directory of the hierarchies, for a container or for all.
func newCgroupDir(places []hierarchyPlace, label string) (*os.File, error) {
	options := mount.ParseOptions([]string{"nosuid", "nodev", "noexec", "mode=755", "size=64k"})
	dir, err := mount.New("tmpfs", "tmpfs", labelled(options, label))
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		if p.link != "" {
			err = unix.Symlinkat(p.link, int(dir.Fd()), p.name)
		} else {
			err = unix.Mkdirat(int(dir.Fd()), p.name, 0o755)
		}
		if err != nil {
			_ = dir.Close()
			return nil, fmt.Errorf("make the place of %s: %w", p.name, err)
		}
	}
	return dir, nil
}

// cgroups shows the container its leaf: the one hierarchy of v2, or a directory with every v1 hierarchy.
func (s *start) cgroups(dest string, o mount.Options) ([]compile.Mount, error) {
	r := s.c.pod.runtime
	if r.Unified() {
		return s.cgroup2(dest, o)
	}
	dir, err := s.cgroupDir(o)
	if err != nil {
		return nil, err
	}
	dir.What, dir.Destination = "mount tmpfs", dest
	all := []compile.Mount{dir}
	paths := s.c.group.Paths()
	for _, p := range r.places {
		if p.link != "" {
			continue
		}
		clone, err := bindCgroup(paths[p.controller], o.Attr)
		if err != nil {
			return nil, err
		}
		all = append(all, compile.Mount{What: "mount cgroup " + p.name, Destination: dest + "/" + p.name, FD: s.own(clone)})
	}
	return all, nil
}

// cgroupDir is the one of all containers where it is as good as one of its own.
func (s *start) cgroupDir(o mount.Options) (compile.Mount, error) {
	pod, label := s.c.pod, s.c.record.Label
	readonly := o.Attr.Set&unix.MOUNT_ATTR_RDONLY != 0
	if pod.native && readonly && label == "" && pod.config.UserNS == nil && !s.remounts() {
		return compile.Mount{Clone: &compile.Clone{Of: compile.CgroupDir, Attr: o.Attr}}, nil
	}
	dir, err := newCgroupDir(pod.runtime.places, label)
	if err != nil {
		return compile.Mount{}, err
	}
	fd := s.own(dir)
	if err := s.chown(dir, ""); err != nil {
		return compile.Mount{}, err
	}
	if err := mount.SetAttr(dir, false, unix.MountAttr{Attr_set: o.Attr.Set, Attr_clr: o.Attr.Clear}); err != nil {
		return compile.Mount{}, fmt.Errorf("set attributes: %w", err)
	}
	return compile.Mount{FD: fd}, nil
}

// cgroup2 is made by the child in its cgroup namespace. Without one that would change the options of the host's cgroup2,
// so that the host's mount is cloned.
func (s *start) cgroup2(dest string, o mount.Options) ([]compile.Mount, error) {
	one := compile.Mount{What: "mount cgroup2", Destination: dest}
	if hasNamespace(s.spec.Linux, specs.CgroupNamespace) {
		one.Make = &compile.Filesystem{Type: "cgroup2", Source: "cgroup", Options: mount.Options{Attr: o.Attr}}
		return []compile.Mount{one}, nil
	}
	clone, err := bindCgroup(s.c.pod.runtime.config.Cgroups.List()[0].MountPoint, o.Attr)
	if err != nil {
		return nil, err
	}
	one.FD = s.own(clone)
	return []compile.Mount{one}, nil
}

// bindCgroup clones a directory of a cgroup hierarchy.
func bindCgroup(hostPath string, attr mount.Attr) (*os.File, error) {
	source, err := mount.OpenSource(hostPath)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	clone, err := mount.Bind(source, mount.Options{Attr: attr}, nil)
	if err != nil {
		return nil, fmt.Errorf("bind %s: %w", hostPath, err)
	}
	return clone, nil
}
