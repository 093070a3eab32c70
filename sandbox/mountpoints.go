package sandbox

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/store/layer"
)

// defaultPoints are where every container has something mounted, but for what is in these.
var defaultPoints = []layer.MountPoint{{Path: "/proc"}, {Path: "/dev"}, {Path: "/sys"},
	{Path: "/etc/hostname", File: true}, {Path: "/etc/hosts", File: true}, {Path: "/etc/resolv.conf", File: true}}

// mountPoints are where something will be mounted in the container's root, as far as that is known before its spec is made; see reviseRoot.
// Those of which the root must tell the truth until then are left out, that is the users of the image and its volumes.
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

// reviseRoot makes the root anew if devices or plugins have changed what is mounted where it may have mount points: a container would
// see one where nothing is mounted, and a file cannot be mounted on a directory.
func (b *building) reviseRoot(ctx context.Context) error {
	planned := func(p layer.MountPoint) bool {
		was, is := mountOn(b.planned, p.Path), mountOn(b.spec.Mounts, p.Path)
		return was.Type == is.Type && was.Source == is.Source
	}
	points := slices.DeleteFunc(slices.Clone(b.points), func(p layer.MountPoint) bool { return !planned(p) })
	if len(points) == len(b.points) {
		return nil
	}
	b.points = points
	_ = b.root.Close() // of a mount: nothing to lose
	b.root = nil
	if err := b.p.s.config.Images.ReleaseRootfs(ctx, string(b.id)); err != nil {
		return fmt.Errorf("make the root anew: %w", err)
	}
	return b.openRoot(ctx)
}

// mountOn is what is mounted on a path; the zero value is nothing.
func mountOn(mounts []specs.Mount, at string) specs.Mount {
	i := slices.IndexFunc(mounts, func(m specs.Mount) bool { return path.Clean("/"+m.Destination) == at })
	if i < 0 {
		return specs.Mount{}
	}
	return mounts[i]
}
