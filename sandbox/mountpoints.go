package sandbox

import (
	"path"
	"slices"
	"strings"

	"github.com/criserver/criserver/store/layer"
)

// defaultPoints are where every container has something mounted, but for what is in these.
var defaultPoints = []layer.MountPoint{{Path: "/proc"}, {Path: "/dev"}, {Path: "/sys"},
	{Path: "/etc/hostname", File: true}, {Path: "/etc/hosts", File: true}, {Path: "/etc/resolv.conf", File: true}}

// mountPoints are where something will be mounted in the container's root, as far as that is known before its spec is made: those of plugins
// are not, and those of which the root must tell the truth until then are left out, that is the users of the image and its volumes.
func (b *building) mountPoints() []layer.MountPoint {
	points := slices.Clone(defaultPoints)
	for i, m := range b.config.Mounts {
		at := path.Clean("/" + m.ContainerPath)
		points = slices.DeleteFunc(points, func(p layer.MountPoint) bool { return p.Path == at })
		if at != "/" && m.HostPath != "" { // else of an image
			points = append(points, layer.MountPoint{Path: at, File: b.files[i]})
		}
	}
	truth := append(b.volumePaths(), "/etc/passwd", "/etc/group")
	points = slices.DeleteFunc(points, func(p layer.MountPoint) bool {
		return slices.ContainsFunc(truth, func(t string) bool { return p.Path == t || strings.HasPrefix(p.Path, t+"/") })
	})
	slices.SortFunc(points, func(a, b layer.MountPoint) int { return strings.Compare(a.Path, b.Path) })
	var outermost []layer.MountPoint
	for _, p := range points {
		if !slices.ContainsFunc(outermost, func(above layer.MountPoint) bool { return strings.HasPrefix(p.Path, above.Path+"/") }) {
			outermost = append(outermost, p)
		}
	}
	return outermost
}
