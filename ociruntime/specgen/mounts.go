package specgen

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// mounts joins the default mounts, those of the image's volumes and those of the request. Of several on one
// destination the last of the request wins; parents come first.
func (g *generator) mounts() error {
	asked := make([]specs.Mount, 0, len(g.Container.GetMounts()))
	for i, m := range g.Container.GetMounts() {
		translated, err := g.mount(i, m)
		if err != nil {
			return err
		}
		asked = put(asked, translated)
	}
	volumes := make([]specs.Mount, 0, len(g.Volumes))
	for _, v := range g.Volumes {
		volumes = append(volumes, bind(v.GetContainerPath(), v.GetHostPath(), "rw"))
	}
	all := slices.Concat(without(g.defaultMounts(), append(volumes, asked...)), without(volumes, asked), asked)
	slices.SortStableFunc(all, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	g.spec.Mounts = all
	return nil
}

// put replaces a mount on the same destination.
func put(mounts []specs.Mount, m specs.Mount) []specs.Mount {
	mounts = slices.DeleteFunc(mounts, func(have specs.Mount) bool { return have.Destination == m.Destination })
	return append(mounts, m)
}

// without leaves out what winners cover: the same destination, and everything below /dev and /sys.
func without(mounts, winners []specs.Mount) []specs.Mount {
	return slices.DeleteFunc(mounts, func(m specs.Mount) bool {
		return slices.ContainsFunc(winners, func(w specs.Mount) bool {
			whole := w.Destination == "/dev" || w.Destination == "/sys"
			return w.Destination == m.Destination || whole && strings.HasPrefix(m.Destination, w.Destination+"/")
		})
	})
}

func depth(p string) int { return strings.Count(p, "/") }

func (g *generator) defaultMounts() []specs.Mount {
	hardened := []string{"nosuid", "noexec", "nodev"}
	access := "ro"
	if g.privileged {
		access = "rw"
	}
	cgroups := "ro"
	if g.cgroupWritable() {
		cgroups = "rw"
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: hardened},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: hardened},
		g.sysfs(access),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroups}},
	}
	files := "rw"
	if g.spec.Root.Readonly {
		files = "ro"
	}
	for _, f := range []struct{ destination, source, access string }{
		{"/etc/hostname", g.Files.Hostname, files},
		{"/etc/hosts", g.Files.Hosts, files},
		{"/etc/resolv.conf", g.Files.ResolvConf, files},
		{"/dev/shm", g.Files.Shm, "rw"},
	} {
		if f.source != "" {
			mounts = append(mounts, bind(f.destination, f.source, "nosuid", "nodev", "noexec", f.access))
		}
	}
	return mounts
}

// sysfs belongs to a network namespace: a user namespace that does not own the host's must show the host's mount.
func (g *generator) sysfs(access string) specs.Mount {
	if len(g.spec.Linux.UIDMappings) > 0 && podNamespaces(g.Pod).GetNetwork() == runtimev1.NamespaceMode_NODE {
		return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev", access}}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
}

func bind(destination, source string, options ...string) specs.Mount {
	return specs.Mount{Destination: path.Clean(destination), Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)}
}

// mount translates one mount of the request.
func (g *generator) mount(i int, m *runtimev1.Mount) (specs.Mount, error) {
	field := indexed("mounts", i)
	source, ofImage := g.ImageVolumes[i]
	if !ofImage {
		source = m.GetHostPath()
	}
	destination := path.Clean(m.GetContainerPath())
	switch {
	case !isAbsolute(m.GetContainerPath()):
		return specs.Mount{}, invalid(field+".container_path", "%q is not an absolute path", m.GetContainerPath())
	case destination == "/":
		return specs.Mount{}, invalid(field+".container_path", "must not be the root directory")
	case ofImage && !m.GetReadonly():
		return specs.Mount{}, invalid(field+".readonly", "must be true where an image is mounted")
	case ofImage && m.GetPropagation() != runtimev1.MountPropagation_PROPAGATION_PRIVATE:
		return specs.Mount{}, invalid(field+".propagation", "must be PRIVATE where an image is mounted")
	case !isAbsolute(source):
		return specs.Mount{}, invalid(field+".host_path", "%q is not an absolute path", source)
	}
	out := specs.Mount{Destination: destination, Type: "bind", Source: source, Options: []string{"rbind"}}
	propagation, err := g.propagation(field, m)
	if err != nil {
		return out, err
	}
	access, err := g.access(field, m)
	if err != nil {
		return out, err
	}
	out.Options = append(out.Options, propagation, access)
	for i, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return out, invalid(indexed(field+".mount_options", i), "%q is not one of noexec, nodev, nosuid", o)
		}
		out.Options = append(out.Options, o)
	}
	if err := g.idMapped(field, m, &out); err != nil {
		return out, err
	}
	if ofImage { // whose files are mapped already, each layer for itself
		out.UIDMappings, out.GIDMappings = nil, nil
	}
	return out, nil
}

// propagation also makes the root's fit: mounts travel through it.
func (g *generator) propagation(field string, m *runtimev1.Mount) (string, error) {
	root := &g.spec.Linux.RootfsPropagation
	switch p := m.GetPropagation(); p {
	case runtimev1.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimev1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if *root == "" {
			*root = "rslave"
		}
		return "rslave", nil
	case runtimev1.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		*root = "rshared"
		return "rshared", nil
	default:
		return "", invalid(field+".propagation", "unknown value %d", p)
	}
}

func (g *generator) access(field string, m *runtimev1.Mount) (string, error) {
	field += ".recursive_read_only"
	switch {
	case !m.GetRecursiveReadOnly() && m.GetReadonly():
		return "ro", nil
	case !m.GetRecursiveReadOnly():
		return "rw", nil
	case !m.GetReadonly():
		return "", invalid(field, "needs readonly")
	case m.GetPropagation() != runtimev1.MountPropagation_PROPAGATION_PRIVATE:
		return "", invalid(field, "needs propagation PRIVATE")
	case !g.Host.RecursiveReadOnly: // clients look for the sentinel's text at the beginning
		return "", fmt.Errorf("%w: %w", crierrors.ErrRROUnsupported, invalid(field, "the kernel has no recursive read-only mounts"))
	}
	return "rro", nil
}

// idMapped: the kernel maps through the pod's user namespace, so a mount's mappings must be the pod's.
func (g *generator) idMapped(field string, m *runtimev1.Mount, out *specs.Mount) error {
	uids, err := mappings(field+".uidMappings", m.GetUidMappings())
	if err != nil {
		return err
	}
	gids, err := mappings(field+".gidMappings", m.GetGidMappings())
	if err != nil {
		return err
	}
	if len(uids)+len(gids) == 0 {
		return nil
	}
	if !slices.Equal(uids, g.spec.Linux.UIDMappings) {
		return invalid(field+".uidMappings", "differ from those of the pod's user namespace")
	}
	if !slices.Equal(gids, g.spec.Linux.GIDMappings) {
		return invalid(field+".gidMappings", "differ from those of the pod's user namespace")
	}
	out.UIDMappings, out.GIDMappings = uids, gids
	return nil
}
