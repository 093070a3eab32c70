package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is what a directory holds, immutable. Its nodes have numbers that no other file of the recording has; 0 is the
// directory itself.
type tree struct{ nodes map[int]*node }

// node is one inode.
type node struct {
	mode, uid, gid uint32
	rdev           uint64
	mtime          unix.Timespec
	xattrs         map[string]string
	data           string         // of a file; the target of a symbolic link
	names          map[string]int // of a directory
}

func (n *node) kind() uint32 { return n.mode & unix.S_IFMT }

func (n *node) equal(o *node) bool {
	return n == o || n.mode == o.mode && n.uid == o.uid && n.gid == o.gid && n.rdev == o.rdev && n.mtime == o.mtime && n.data == o.data &&
		maps.Equal(n.names, o.names) && maps.Equal(n.xattrs, o.xattrs)
}

func (t *tree) equal(o *tree) bool {
	return maps.EqualFunc(t.nodes, o.nodes, func(a, b *node) bool { return a.equal(b) })
}

// with is t with another node.
func (t *tree) with(id int, n *node) *tree {
	nodes := maps.Clone(t.nodes)
	nodes[id] = n
	return &tree{nodes}
}

// treeReader reads a directory again and again.
type treeReader struct {
	ids  map[uint64]int // of the inodes that were there the last time
	next int
	last *tree
}

func (r *treeReader) read(dir string) (*tree, error) {
	t, seen := &tree{map[int]*node{}}, map[uint64]int{}
	_, err := r.add(t, seen, dir)
	if err == nil {
		r.ids, r.last = seen, t
	}
	return t, err
}

func (r *treeReader) add(t *tree, seen map[uint64]int, path string) (int, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	if id, ok := seen[st.Ino]; ok { // by another name
		return id, nil
	}
	id, known := r.ids[st.Ino] // else the number may be that of a file that is gone
	if !known {
		id = r.next
		r.next++
	}
	seen[st.Ino] = id
	n, err := readNode(path, &st)
	if err != nil {
		return 0, err
	}
	if n.kind() == unix.S_IFDIR {
		entries, err := os.ReadDir(path)
		if err != nil {
			return 0, err
		}
		n.names = map[string]int{}
		for _, e := range entries {
			if n.names[e.Name()], err = r.add(t, seen, filepath.Join(path, e.Name())); err != nil {
				return 0, err
			}
		}
	}
	if known && r.last.nodes[id].equal(n) {
		n = r.last.nodes[id]
	}
	t.nodes[id] = n
	return id, nil
}

func readNode(path string, st *unix.Stat_t) (*node, error) {
	n := &node{mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: st.Rdev, mtime: st.Mtim}
	var err error
	var data []byte
	switch n.kind() {
	case unix.S_IFREG:
		data, err = os.ReadFile(path)
		n.data = string(data)
	case unix.S_IFLNK:
		n.data, err = os.Readlink(path)
	}
	if err != nil {
		return nil, err
	}
	var names [4096]byte
	length, err := unix.Llistxattr(path, names[:])
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return nil, fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	for name := range strings.SplitSeq(string(names[:max(length, 0)]), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		var value [4096]byte
		size, err := unix.Lgetxattr(path, name, value[:])
		if err != nil {
			return nil, fmt.Errorf("read xattr %s of %s: %w", name, path, err)
		}
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[name] = string(value[:size])
	}
	return n, nil
}

// write makes the directory hold t. It exists and is empty.
func (t *tree) write(dir string) error { return t.writeNode(0, dir, map[int]string{}) }

func (t *tree) writeNode(id int, path string, written map[int]string) error {
	n := t.nodes[id]
	if first, ok := written[id]; ok && n.kind() != unix.S_IFDIR {
		return os.Link(first, path)
	}
	written[id] = path
	if err := n.create(path); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		if err := t.writeNode(n.names[name], filepath.Join(path, name), written); err != nil {
			return err
		}
	}
	return n.setAttributes(path)
}

func (n *node) create(path string) (err error) {
	switch n.kind() {
	case unix.S_IFDIR:
		if err = os.Mkdir(path, 0o700); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	case unix.S_IFREG:
		err = os.WriteFile(path, []byte(n.data), 0o600)
	case unix.S_IFLNK:
		err = os.Symlink(n.data, path)
	default:
		err = unix.Mknod(path, n.mode, int(n.rdev))
	}
	return err
}

func (n *node) setAttributes(path string) error {
	errs := []error{unix.Lchown(path, int(n.uid), int(n.gid))}
	if n.kind() != unix.S_IFLNK {
		errs = append(errs, unix.Chmod(path, n.mode&0o7777))
	}
	for name, value := range n.xattrs {
		errs = append(errs, unix.Lsetxattr(path, name, []byte(value), 0))
	}
	errs = append(errs, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{n.mtime, n.mtime}, unix.AT_SYMLINK_NOFOLLOW))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("set attributes of %s: %w", path, err)
	}
	return nil
}
