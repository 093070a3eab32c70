package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/mount"
)

// defaultDevices are those that the OCI runtime specification promises.
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

var deviceLinks = [][2]string{
	{"/proc/self/fd", "fd"},
	{"/proc/self/fd/0", "stdin"},
	{"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"},
	{"/proc/kcore", "core"},
	{"pts/ptmx", "ptmx"},
}

// dev makes the container's /dev: default devices, those of the spec, links, and the places of other mounts.
func (s *start) dev(o mount.Options) (*os.File, error) {
	readonly := o.Attr.Set & unix.MOUNT_ATTR_RDONLY
	o.Attr.Set &^= unix.MOUNT_ATTR_RDONLY
	dir, err := mount.New("tmpfs", "tmpfs", labelled(o, s.c.record.Label))
	if err != nil {
		return nil, err
	}
	if err := s.fillDev(dir); err != nil {
		_ = dir.Close()
		return nil, err
	}
	if readonly != 0 {
		if err := mount.SetAttr(dir, false, unix.MountAttr{Attr_set: readonly}); err != nil {
			_ = dir.Close()
			return nil, fmt.Errorf("make read-only: %w", err)
		}
	}
	return dir, nil
}

func (s *start) fillDev(dir *os.File) error {
	fd := int(dir.Fd())
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", name, err)
		}
		if err := s.chown(dir, name); err != nil {
			return err
		}
	}
	for _, l := range deviceLinks {
		if err := unix.Symlinkat(l[0], fd, l[1]); err != nil {
			return fmt.Errorf("link %s: %w", l[1], err)
		}
	}
	if s.console {
		console, err := unix.Openat(fd, "console", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Errorf("create console: %w", err)
		}
		_ = unix.Close(console)
	}
	if err := s.chown(dir, ""); err != nil {
		return err
	}
	return s.devices(dir)
}

// devices makes the default device nodes and those of the spec that lie below /dev and in no other mount.
func (s *start) devices(dir *os.File) error {
	asked := map[string]bool{}
	uid, gid := s.c.pod.config.UserNS.root()
	owner := mount.Owner{UID: uid, GID: gid}
	for _, d := range s.spec.Linux.Devices {
		rel, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
		if !ok || s.inOtherMount(path.Clean(d.Path)) || s.madeInDev(rel) {
			continue
		}
		asked["/dev/"+rel] = true
		parent, err := mount.MkdirIn(dir, path.Dir(rel), 0o755, owner)
		if err != nil {
			return fmt.Errorf("create device %s: %w", d.Path, err)
		}
		err = s.c.pod.makeNode(parent, path.Base(rel), d)
		_ = parent.Close()
		if err != nil {
			return err
		}
	}
	for _, d := range defaultDevices {
		if !asked[d.Path] {
			if err := s.c.pod.makeNode(dir, path.Base(d.Path), d); err != nil {
				return err
			}
		}
	}
	return nil
}

// madeInDev says whether fillDev has put something at a name that is not for a device: ptmx of the container's own devpts.
func (s *start) madeInDev(name string) bool {
	isLink := func(l [2]string) bool { return l[1] == name }
	return slices.ContainsFunc(deviceLinks, isLink) || s.console && name == "console"
}

func (s *start) inOtherMount(p string) bool {
	for _, m := range s.spec.Mounts {
		if dest := path.Clean("/" + m.Destination); dest != "/dev" && (p == dest || strings.HasPrefix(p, dest+"/")) {
			return true
		}
	}
	return false
}

// makeNode makes one device node. Its owner is an id of the pod's user namespace. Where dir is in an image, something may
// be there already: the same device is taken, anything else, a symbolic link too, is left alone and an error.
func (p *Pod) makeNode(dir *os.File, name string, d specs.LinuxDevice) error {
	kinds := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}
	kind, ok := kinds[d.Type]
	if !ok {
		return fmt.Errorf("device %s: unknown type %q", d.Path, d.Type)
	}
	number := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	if err := unix.Mknodat(int(dir.Fd()), name, kind|0o600, int(number)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create device %s: %w", d.Path, err)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open device %s: %w", d.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat device %s: %w", d.Path, err)
	}
	if st.Mode&unix.S_IFMT != kind || kind != unix.S_IFIFO && st.Rdev != number {
		return fmt.Errorf("create device %s: something else is there", d.Path)
	}
	return p.setNode(fd, d)
}

// setNode gives a node, which fd is a path descriptor of, its mode and owner.
func (p *Pod) setNode(fd int, d specs.LinuxDevice) error {
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode); err != nil {
		return fmt.Errorf("set mode of device %s: %w", d.Path, err)
	}
	var uid, gid uint32
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	uid, gid = p.config.UserNS.uid(uid), p.config.UserNS.gid(gid)
	if uid == 0 && gid == 0 {
		return nil
	}
	if err := unix.Fchownat(fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set owner of device %s: %w", d.Path, err)
	}
	return nil
}
