package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/compile"
	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/ociruntime/program"
)

// mounts makes everything that the spec mounts, in its order. What belongs to one of the container's
// namespaces is left to the child.
func (s *start) mounts(ctx context.Context) ([]compile.Mount, error) {
	var all []compile.Mount
	for i, m := range s.spec.Mounts {
		made, ready := s.ahead[i]
		if !ready {
			var err error
			if made, err = s.mount(ctx, m); err != nil {
				return nil, fmt.Errorf("mount %s on %s: %w", describe(m), m.Destination, err)
			}
		}
		all = append(all, made...)
	}
	return all, nil
}

func describe(m specs.Mount) string {
	if m.Type == "bind" || m.Type == "" {
		return m.Source
	}
	return m.Type
}

func (s *start) mount(ctx context.Context, m specs.Mount) ([]compile.Mount, error) {
	o := mount.ParseOptions(m.Options)
	dest := path.Clean("/" + m.Destination)
	if dest == "/" {
		return nil, errors.New("destination is the root")
	}
	one := compile.Mount{What: "mount " + describe(m), Destination: dest}
	var f *os.File
	var err error
	switch {
	case o.Bind || m.Type == "bind":
		return s.bind(ctx, m, o, one)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return s.cgroups(dest, o)
	case m.Type == "proc" || m.Type == "sysfs" || m.Type == "mqueue":
		one.Make = &compile.Filesystem{Type: m.Type, Source: m.Source, Options: o}
		if m.Type == "mqueue" { // the one of the ipc namespace, which takes no option
			one.Make.Label = s.c.pod.config.MountLabel
		}
		return []compile.Mount{one}, nil
	case m.Type == "devpts":
		if f, err = s.openDevpts(s.devptsOptions(m.Options)); err == nil {
			one.FD = s.give(f)
		}
		return []compile.Mount{one}, err
	case m.Type == "tmpfs" && dest == "/dev":
		f, err = s.dev(o)
	default:
		f, err = s.filesystem(m, o)
	}
	if err != nil {
		return nil, err
	}
	one.FD = s.own(f)
	return []compile.Mount{one}, nil
}

// remounts says whether somebody may get at the container's mounts who can remount what is below them. With CAP_SYS_ADMIN that
// makes a file system writable for all who have it mounted, so that there must be none that other pods have too. Whoever has it in a
// pid namespace that the container joins can enter the container's mount namespace.
func (s *start) remounts() bool {
	if s.c.pod.config.UserNS != nil {
		return false // its root has nothing to say about file systems that were made outside
	}
	if s.c.record.SharedPID || s.c.record.TargetPID != "" {
		return true
	}
	caps := s.c.processSpec().Capabilities
	return caps != nil && slices.Contains(slices.Concat(caps.Bounding, caps.Permitted, caps.Effective, caps.Inheritable, caps.Ambient), "CAP_SYS_ADMIN")
}

// ownCovers makes what masked paths show for a container that must not have that of all others, nil for one that may.
func (s *start) ownCovers() (*program.FD, error) {
	if len(s.spec.Linux.MaskedPaths) == 0 || !s.remounts() {
		return nil, nil
	}
	o := mount.Options{Attr: mount.Attr{Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}, Data: []string{"mode=755", "size=4k", "nr_inodes=3"}}
	dir, err := mount.New("tmpfs", "tmpfs", labelled(o, s.c.pod.runtime.config.SharedLabel))
	if err != nil {
		return nil, err
	}
	fd := s.own(dir)
	if err := makeCovers(dir); err != nil {
		return nil, err
	}
	if err := mount.SetAttr(dir, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return nil, fmt.Errorf("make read-only: %w", err)
	}
	return &fd, nil
}

// filesystem makes any other file system; in a user namespace a tmpfs belongs to its root.
func (s *start) filesystem(m specs.Mount, o mount.Options) (*os.File, error) {
	f, err := mount.New(m.Type, m.Source, labelled(o, s.c.record.Label))
	if err != nil || m.Type != "tmpfs" {
		return f, err
	}
	if err := s.chown(f, ""); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// labelled adds the SELinux label of all files to the options of a file system that can have one, unless they name one.
func labelled(o mount.Options, label string) mount.Options {
	if label == "" || slices.ContainsFunc(o.Data, func(d string) bool { return strings.Contains(d, "context=") }) {
		return o
	}
	o.Data = append(slices.Clone(o.Data), "context="+label)
	return o
}

// chown gives name below dir ("" is dir itself) to the root of the pod's user namespace.
func (s *start) chown(dir *os.File, name string) error {
	uid, gid := s.c.pod.config.UserNS.root()
	if uid == 0 && gid == 0 {
		return nil
	}
	if err := unix.Fchownat(int(dir.Fd()), name, int(uid), int(gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown %q to %d:%d: %w", name, uid, gid, err)
	}
	return nil
}

// devptsOptions replaces the group of terminals by the one that the kernel expects: the host's number.
func (s *start) devptsOptions(options []string) mount.Options {
	mapped := slices.Clone(options)
	for i, o := range mapped {
		if o == "gid=5" {
			mapped[i] = fmt.Sprintf("gid=%d", s.c.pod.config.UserNS.gid(ttyGroup))
		}
	}
	return mount.ParseOptions(mapped)
}

// bind clones a volume. It is opened now, not at Create, because a detached clone receives no later host mount: what is to
// receive them is cloned while the child waits.
func (s *start) bind(ctx context.Context, m specs.Mount, o mount.Options, one compile.Mount) ([]compile.Mount, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(s.trees, func(t Tree) bool { return t.Source == m.Source }); i >= 0 {
		return s.tree(s.trees[i].File, o, one)
	}
	source, err := s.source(ctx, m.Source)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	dir, err := mount.IsDir(source)
	if err != nil {
		return nil, err
	}
	one.File = !dir
	if err := checkPropagation(source, o); err != nil {
		return nil, err
	}
	var userns *os.File
	if o.IDMap || len(m.UIDMappings) > 0 {
		if s.c.pod.config.UserNS == nil {
			return nil, errors.New("id mapping of a mount needs a pod with a user namespace")
		}
		o.IDMap = true
		if userns, err = s.c.pod.namespace("user"); err != nil {
			return nil, err
		}
		defer userns.Close()
	}
	if o.RecBind && (o.Propagation == unix.MS_SHARED || o.Propagation == unix.MS_SLAVE) {
		one.Place, err = s.later(&volume{source: source, userns: userns, options: o, what: one.What + " on " + one.Destination}, one.File)
		return []compile.Mount{one}, err
	}
	clone, err := s.clone(source, m.Source, o, userns)
	if err != nil {
		return nil, err
	}
	one.FD = s.own(clone)
	return []compile.Mount{one}, nil
}

// tree attaches a mount that was made for this container alone.
func (s *start) tree(f *os.File, o mount.Options, one compile.Mount) ([]compile.Mount, error) {
	if o.Propagation == unix.MS_SHARED || o.Propagation == unix.MS_SLAVE {
		return nil, errors.New("nobody could mount anything there that would propagate")
	}
	dir, err := mount.IsDir(f)
	if err != nil {
		return nil, err
	}
	if err := mount.Change(f, o); err != nil {
		return nil, err
	}
	one.File, one.FD = !dir, s.give(f)
	return []compile.Mount{one}, nil
}

// isShm says whether a path to be bound means the pod's /dev/shm, which is no path of the host: pause keeps it.
func (s *start) isShm(p string) bool { return p == s.c.pod.path(ShmName) }

func (s *start) clone(source *os.File, p string, o mount.Options, userns *os.File) (*os.File, error) {
	if s.isShm(p) {
		return s.c.pod.bindShm(o, userns)
	}
	return mount.Bind(source, o, userns)
}

// source opens what is to be bound.
func (s *start) source(ctx context.Context, p string) (*os.File, error) {
	if !s.isShm(p) {
		return s.c.pod.openSource(ctx, p)
	}
	if s.c.pod.shm == nil {
		return nil, errors.New("the pod has no /dev/shm of its own")
	}
	return dup(s.c.pod.shm)
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("dup: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// checkPropagation refuses what could not work: mounts only travel between members of a peer group.
func checkPropagation(source *os.File, o mount.Options) error {
	if o.Propagation != unix.MS_SHARED && o.Propagation != unix.MS_SLAVE {
		return nil
	}
	shared, slave, err := mount.SharedSource(source)
	switch {
	case err != nil:
		return err
	case o.Propagation == unix.MS_SHARED && !shared:
		return fmt.Errorf("path %s is mounted, but it is not a shared mount", source.Name())
	case o.Propagation == unix.MS_SLAVE && !shared && !slave:
		return fmt.Errorf("path %s is mounted, but it is not a shared or slave mount", source.Name())
	}
	return nil
}

// prepareRoot makes what must be there before the mounts: the working directory and device nodes outside /dev.
func (p *Pod) prepareRoot(spec *specs.Spec, root *os.File) error {
	uid, gid := p.config.UserNS.root()
	owner := mount.Owner{UID: uid, GID: gid}
	if cwd := path.Clean("/" + spec.Process.Cwd); cwd != "/" && !below(spec.Mounts, cwd) {
		if f, err := mount.OpenIn(root, cwd, unix.O_PATH, 0); err == nil {
			_ = f.Close()
		} else if errors.Is(err, unix.ENOENT) {
			d, err := mount.MkdirIn(root, cwd, 0o755, owner)
			if err != nil {
				return fmt.Errorf("create working directory %s: %w", cwd, err)
			}
			_ = d.Close()
		}
	}
	for i, m := range spec.Mounts {
		dest := path.Clean("/" + m.Destination)
		if below(spec.Mounts[:i], dest) {
			continue // in what is mounted there
		}
		if err := mount.Undangle(root, dest, func() bool { return bindsFile(m) }, owner); err != nil {
			return fmt.Errorf("create mount point %s: %w", dest, err)
		}
	}
	for _, d := range spec.Linux.Devices {
		if below(spec.Mounts, d.Path) {
			continue // in a file system that the start makes
		}
		dir, err := mount.MkdirIn(root, path.Dir(d.Path), 0o755, owner)
		if err != nil {
			return fmt.Errorf("create device %s: %w", d.Path, err)
		}
		err = p.makeNode(dir, path.Base(d.Path), d)
		_ = dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// bindsFile says whether a mount is one of a file.
func bindsFile(m specs.Mount) bool {
	info, err := os.Stat(m.Source)
	return m.Type == "bind" && err == nil && !info.IsDir()
}

// below reports whether a mount covers a path.
func below(mounts []specs.Mount, p string) bool {
	for _, m := range mounts {
		if dest := path.Clean("/" + m.Destination); p == dest || strings.HasPrefix(p, dest+"/") {
			return true
		}
	}
	return false
}
