package mount

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bind clones the mount that source (a path descriptor of the caller's mount namespace) lies on, from source
// downwards; with o.RecBind everything mounted below it too. userns is a descriptor of the user namespace whose
// mapping an o.IDMap mount gets.
func Bind(source *os.File, o Options, userns *os.File) (*os.File, error) {
	flags := uint(unix.AT_EMPTY_PATH | unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if o.RecBind {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(source.Fd()), "", flags)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", err)
	}
	f := os.NewFile(uintptr(fd), source.Name())
	err = Change(f, o)
	if err == nil && o.IDMap {
		err = idmap(f, source, o, userns)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// idmap gives f, a detached mount of source, the mapping of userns.
func idmap(f, source *os.File, o Options, userns *os.File) error {
	if userns == nil {
		return errors.New("idmapped mount without a user namespace")
	}
	err := SetAttr(f, o.RecIDMap, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())})
	if errors.Is(err, unix.EINVAL) {
		if fs, unknown := fileSystem(source); unknown == nil {
			return fmt.Errorf("file system %s cannot be mounted idmapped on this kernel, so only pods without a user namespace can have it: %w", fs, err)
		}
	}
	if err != nil {
		return fmt.Errorf("set id mapping of mount: %w", err)
	}
	return nil
}

// Change applies the attributes and propagation of o to a detached mount.
func Change(f *os.File, o Options) error {
	steps := []struct {
		what      string
		recursive bool
		attr      unix.MountAttr
	}{
		{"propagation", o.RecProp || o.RecBind, unix.MountAttr{Propagation: o.Propagation}},
		{"attributes", false, unix.MountAttr{Attr_set: o.Attr.Set, Attr_clr: o.Attr.Clear}},
		{"recursive attributes", true, unix.MountAttr{Attr_set: o.Recursive.Set, Attr_clr: o.Recursive.Clear}},
	}
	for _, s := range steps {
		if s.attr == (unix.MountAttr{}) {
			continue
		}
		if err := SetAttr(f, s.recursive, s.attr); err != nil {
			return fmt.Errorf("set %s of mount: %w", s.what, err)
		}
	}
	return nil
}

// SetAttr is mount_setattr(2) on the mount f itself.
func SetAttr(f *os.File, recursive bool, attr unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(int(f.Fd()), "", flags, &attr)
}

// New makes a file system of the given type and returns a detached mount of it. source is what the mount table shows.
func New(fstype, source string, o Options) (*os.File, error) {
	if o.IDMap {
		return nil, errors.New("only bind mounts can be idmapped")
	}
	fsfd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer func() { _ = unix.Close(fsfd) }()
	if source == "" {
		source = fstype
	}
	if err := unix.FsconfigSetString(fsfd, "source", source); err != nil {
		return nil, fmt.Errorf("%s: set source %q: %w", fstype, source, err)
	}
	for _, d := range o.Data {
		if err := configure(fsfd, d); err != nil {
			return nil, fmt.Errorf("%s: set option %q: %w%s", fstype, d, err, fsLog(fsfd))
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("create %s: %w%s", fstype, err, fsLog(fsfd))
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, int(o.Attr.Set))
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", fstype, err)
	}
	f := os.NewFile(uintptr(fd), source)
	rest := o
	rest.Attr = Attr{}
	if err := Change(f, rest); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func configure(fsfd int, option string) error {
	if key, value, ok := strings.Cut(option, "="); ok {
		return unix.FsconfigSetString(fsfd, key, value)
	}
	return unix.FsconfigSetFlag(fsfd, option)
}

// fsLog returns what the kernel says about a failed configuration, ready to be appended to an error.
func fsLog(fsfd int) string {
	var lines []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	if len(lines) == 0 {
		return ""
	}
	return " (" + strings.Join(lines, "; ") + ")"
}

// OpenSource opens a path of the host for Bind, following symbolic links.
func OpenSource(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenPlain opens a path of the host for Bind if it has no symbolic link; if it has one, the error is ELOOP.
func OpenPlain(path string) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenIn opens a path inside the tree below root as if root were "/": symbolic links and ".." stay inside,
// magic links are refused.
func OpenIn(root *os.File, path string, flags, mode uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// SharedSource reports whether a path lies on a mount with a peer group (shared) or that receives from one
// (slave), by the mount table of the caller.
func SharedSource(f *os.File) (shared, slave bool, err error) {
	optional, _, err := inTable(f)
	for _, o := range optional {
		shared = shared || strings.HasPrefix(o, "shared:")
		slave = slave || strings.HasPrefix(o, "master:")
	}
	return shared, slave, err
}

// fileSystem is the type of the one that a path lies on, by the mount table of the caller.
func fileSystem(f *os.File) (string, error) {
	_, super, err := inTable(f)
	if err != nil {
		return "", err
	}
	return super[0], nil
}

// inTable finds the mount that a path lies on in the mount table of the caller: its optional fields, and what follows them:
// type, source, options.
func inTable(f *os.File) (optional, super []string, err error) {
	id, err := mountID(f)
	if err != nil {
		return nil, nil, err
	}
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		end := slices.Index(fields, "-")
		if fields[0] == id && end >= 6 && end+1 < len(fields) {
			return fields[6:end], fields[end+1:], nil
		}
	}
	return nil, nil, fmt.Errorf("mount %s of %s is not in the mount table", id, f.Name())
}

// IsDir says whether f, which may be a path descriptor, is a directory, without asking a file system that may not answer.
func IsDir(f *os.File) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

func mountID(f *os.File) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return "", &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return fmt.Sprint(st.Mnt_id), nil
}

// How is the struct open_how of openat2(2) for a path that is resolved inside a root, as bytes.
func How(flags, mode uint64) []byte {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&how)), unsafe.Sizeof(how))...)
}
