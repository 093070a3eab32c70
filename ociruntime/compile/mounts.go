package compile

import (
	"encoding/binary"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/ociruntime/program"
)

// Filesystem is one that the child must make itself, because it belongs to one of its namespaces.
type Filesystem struct {
	Type, Source string
	Options      mount.Options
	Label        string // SELinux label of its root directory; "": as it is
}

// Mount is one mount of a container, in the order of attaching.
type Mount struct {
	What        string // "bind /srv/data": begins the error text
	Destination string // absolute, inside the container
	FD          program.FD
	Make        *Filesystem // instead of FD
	Clone       *Clone      // instead of FD
	Place       string      // instead of FD: it is attached already, there in the anteroom
	File        bool        // what to create at Destination if nothing is there: a file, else a directory
}

// Clone is of a mount in the minimal mount namespace, which many containers have.
type Clone struct {
	Of   string
	Attr mount.Attr
}

// Anteroom is a directory of mounts that criserver attaches in the child's mount namespace, on NewRoot, while the child waits.
type Anteroom struct {
	Dir  program.FD
	Sync program.FD // socket: the child writes a byte when it waits, and goes on when it can read one
}

const (
	emptyPath   = uint64(unix.AT_EMPTY_PATH)
	moveFlags   = uint64(unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH)
	cloneFlags  = uint64(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	openHowSize = unix.SizeofOpenHow
)

// tree builds the container's mount tree below the descriptor of its root.
type tree struct {
	b    *program.Builder
	root program.FD
	// Each mount has its destination and the parents of that in turn in these, or a Program would have too many slots for hundreds.
	target, parent program.Slot

	covers string // where EmptyDir and NullFile are
}

// open resolves a path inside the root.
func (t tree) open(what, p string, flags, mode uint64) program.Call {
	return t.b.Call(what, unix.SYS_OPENAT2, t.root, program.String(inRoot(p)), program.Bytes(mount.How(flags, mode)), openHowSize).Again()
}

// inRoot makes a path relative; RESOLVE_IN_ROOT treats both alike.
func inRoot(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

func (t tree) attachAll(mounts []Mount, anteroom *Anteroom) {
	for _, m := range mounts {
		what := m.What + " on " + m.Destination
		switch {
		case m.Make != nil:
			t.attach(what, t.make(what, m.Make), m.Destination, m.File)
		case m.Clone != nil:
			clone := t.clone(what, m.Clone.Of)
			t.setattr(what, clone, false, unix.MountAttr{Attr_set: m.Clone.Attr.Set, Attr_clr: m.Clone.Attr.Clear})
			t.attach(what, clone, m.Destination, m.File)
		case m.Place != "":
			target := t.destination(what, m.Destination, m.File)
			t.b.Call(what, unix.SYS_MOVE_MOUNT, anteroom.Dir, program.String(m.Place), target, program.String(""), unix.MOVE_MOUNT_T_EMPTY_PATH).Means(unix.EINVAL, what+unlike)
		default:
			t.attach(what, m.FD, m.Destination, m.File)
		}
	}
}

// make emits the creation of a file system and returns the slot of its detached mount.
func (t tree) make(what string, f *Filesystem) program.Slot {
	fs := t.b.Call(what+": fsopen", unix.SYS_FSOPEN, program.String(f.Type), unix.FSOPEN_CLOEXEC).Keep()
	t.b.Call(what+": set source", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, program.String("source"), program.String(f.Source), 0)
	for _, d := range f.Options.Data {
		if key, value, ok := strings.Cut(d, "="); ok {
			t.b.Call(what+": set "+d, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, program.String(key), program.String(value), 0)
		} else {
			t.b.Call(what+": set "+d, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, program.String(d), nil, 0)
		}
	}
	t.b.Call(what, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, nil, nil, 0)
	made := t.b.Call(what+": fsmount", unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, f.Options.Attr.Set).Keep()
	if f.Label != "" {
		t.b.Call(what+": enter", unix.SYS_FCHDIR, made)
		t.b.Call(what+": label", unix.SYS_SETXATTR, program.String("."), program.String("security.selinux"), program.String(f.Label), len(f.Label), 0).Tolerate(unix.ENOTSUP, unix.EACCES)
		t.b.Call(what+": leave", unix.SYS_CHDIR, program.String("/"))
	}
	return made
}

// attach moves a detached mount to its destination.
func (t tree) attach(what string, source any, destination string, file bool) {
	target := t.destination(what, destination, file)
	t.b.Call(what, unix.SYS_MOVE_MOUNT, source, program.String(""), target, program.String(""), moveFlags).Means(unix.EINVAL, what+unlike)
}

// unlike is why a detached mount cannot be attached to what it can be opened at.
const unlike = ": both or neither must be a directory"

// destination opens where a mount is to be, which is created if it is missing.
func (t tree) destination(what, p string, file bool) program.Slot {
	there := t.b.NewLabel()
	t.open(what+": open destination", p, unix.O_PATH, 0).In(t.target).Tolerate(unix.ENOENT).ThenTo(there)
	t.create(what, inRoot(p), file)
	t.open(what+": open destination", p, unix.O_PATH, 0).In(t.target)
	t.b.Place(there)
	return t.target
}

// create makes a destination and its parents.
func (t tree) create(what, p string, file bool) {
	parts := strings.Split(p, "/")
	parent := any(t.root)
	for i, part := range parts {
		last := i == len(parts)-1
		if last && file {
			t.open(what+": create file", p, unix.O_CREAT|unix.O_RDONLY, 0o644) // one open for writing would keep the root writable
			return
		}
		t.b.Call(what+": create directory "+part, unix.SYS_MKDIRAT, parent, program.String(part), 0o755).Tolerate(unix.EEXIST)
		if !last {
			t.open(what+": open parent", strings.Join(parts[:i+1], "/"), unix.O_PATH|unix.O_DIRECTORY, 0).In(t.parent)
			parent = t.parent
		}
	}
}

// readonly clones what lies at a path over itself, read-only with everything below; a missing path is no error.
func (t tree) readonly(p string) {
	what, missing := "make "+p+" read-only", t.b.NewLabel()
	target := t.b.NewSlot()
	t.open(what, p, unix.O_PATH, 0).In(target).Tolerate(unix.ENOENT, unix.ENOTDIR).ElseTo(missing)
	clone := t.b.Call(what, unix.SYS_OPEN_TREE, target, program.String(""), cloneFlags|emptyPath|unix.AT_RECURSIVE).Keep()
	t.setattr(what, clone, true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	t.b.Call(what, unix.SYS_MOVE_MOUNT, clone, program.String(""), target, program.String(""), moveFlags)
	t.b.Place(missing)
}

// mask hides a directory behind an empty one and a file behind a null device of our own; a missing path is no error.
func (t tree) mask(p string) {
	what := "mask " + p
	file, end := t.b.NewLabel(), t.b.NewLabel()
	target := t.b.NewSlot()
	t.open(what, p, unix.O_PATH|unix.O_DIRECTORY, 0).In(target).Tolerate(unix.ENOENT, unix.ENOTDIR).ElseTo(file)
	t.cover(what, t.covers+EmptyDir, target).ThenTo(end)
	t.b.Place(file)
	t.open(what, p, unix.O_PATH, 0).In(target).Tolerate(unix.ENOENT, unix.ENOTDIR).ElseTo(end)
	t.cover(what, t.covers+NullFile, target)
	t.b.Place(end)
}

func (t tree) cover(what, with string, target program.Slot) program.Call {
	return t.b.Call(what, unix.SYS_MOVE_MOUNT, t.clone(what, with), program.String(""), target, program.String(""), moveFlags)
}

// clone emits the cloning of what is at a place of the minimal mount namespace.
func (t tree) clone(what, place string) program.Slot {
	return t.b.Call(what, unix.SYS_OPEN_TREE, unix.AT_FDCWD, program.String(place), cloneFlags).Keep()
}

// ownCovers attaches, for this child alone, a directory in which EmptyDir and NullFile are.
func (t *tree) ownCovers(dir program.FD) {
	t.b.Call("attach what masked paths show", unix.SYS_MOVE_MOUNT, dir, program.String(""), unix.AT_FDCWD, program.String(EmptyDir), unix.MOVE_MOUNT_F_EMPTY_PATH)
	t.covers = EmptyDir
}

// setattr emits mount_setattr on the mount behind a descriptor.
func (t tree) setattr(what string, fd any, recursive bool, attr unix.MountAttr) {
	data := make([]byte, 0, unix.MOUNT_ATTR_SIZE_VER0)
	for _, v := range []uint64{attr.Attr_set, attr.Attr_clr, attr.Propagation, attr.Userns_fd} {
		data = binary.NativeEndian.AppendUint64(data, v)
	}
	flags := emptyPath
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	t.b.Call(what, unix.SYS_MOUNT_SETATTR, fd, program.String(""), flags, program.Bytes(data), len(data))
}

// attachRoot attaches what becomes the root of the mount namespace.
func (t tree) attachRoot(what string, root program.FD) {
	t.b.Call(what, unix.SYS_MOVE_MOUNT, root, program.String(""), unix.AT_FDCWD, program.String(NewRoot), unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// pivotTo makes an attached mount the root of the mount namespace.
func (t tree) pivotTo(root program.FD, name string) {
	t.b.Call("enter "+name, unix.SYS_FCHDIR, root)
	t.b.Call("pivot to "+name, unix.SYS_PIVOT_ROOT, program.String("."), program.String("."))
	t.b.Call("detach the old root", unix.SYS_UMOUNT2, program.String("."), unix.MNT_DETACH)
	t.b.Call("enter "+name, unix.SYS_CHDIR, program.String("/"))
}
