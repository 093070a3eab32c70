package erofs

import (
	"hash/maphash"

	"github.com/criserver/criserver/store/layer/tarstream"
)

const (
	noInode   = 0
	rootInode = 1
)

// inode is the state of one inode until Finish.
type inode struct {
	size   uint64 // bytes; of a device its number; of a directory set by layout
	mtime  int64
	nsec   uint32
	uid    uint32
	gid    uint32
	nlink  uint32 // names; 0 is an inode that was replaced
	data   uint32 // regular: first block. symlink: address of the target. directory: newest dirent + 1
	xattrs uint32 // number of the set + 1
	parent uint32 // of a directory
	nid    uint32 // place in the image in units of 32 bytes, set by layout
	mode   uint16
	opaque bool
	hiding bool // a directory that has, or had, whiteouts
}

func (i *inode) dir() bool      { return i.mode&modeFmt == modeDir }
func (i *inode) whiteout() bool { return i.mode&modeFmt == modeChar && i.size == 0 }

// dirent is a name. It stays when the name is removed, with inode noInode, and is found again if the name returns.
type dirent struct {
	parent uint32
	name   uint32 // address
	inode  uint32
	next   uint32 // sibling + 1
	len    uint8
}

// tree is the layer so far.
type tree struct {
	limits  tarstream.Limits
	names   arena
	kept    tarstream.Kept
	inodes  slab[inode]
	dirents slab[dirent]
	index   table
	live    int
}

func newTree(l tarstream.Limits) *tree {
	t := &tree{limits: l}
	t.index.seed = maphash.MakeSeed()
	t.index.slots = make([]uint32, 1024)
	t.inodes.add() // noInode
	t.inodes.add()
	*t.inodes.at(rootInode) = inode{mode: modeDir | 0o755, nlink: 1, parent: rootInode}
	t.live = 1
	return t
}

func (t *tree) nameOf(d *dirent) []byte { return t.names.get(d.name, int(d.len)) }

// slot finds where the dirent of name is or would be.
func (t *tree) slot(parent uint32, name []byte) (slot uint32, found bool) {
	mask := uint32(len(t.index.slots) - 1)
	for i := t.index.hash(parent, name) & mask; ; i = (i + 1) & mask {
		n := t.index.slots[i]
		if n == 0 {
			return i, false
		}
		if d := t.dirents.at(n - 1); d.parent == parent && string(t.nameOf(d)) == string(name) {
			return i, true
		}
	}
}

// lookup gives the dirent of name, or nil if there never was one.
func (t *tree) lookup(parent uint32, name string) *dirent {
	if slot, ok := t.slot(parent, []byte(name)); ok {
		return t.dirents.at(t.index.slots[slot] - 1)
	}
	return nil
}

// bind lets name in parent be the inode; whatever it was before must have been unbound.
func (t *tree) bind(parent uint32, name string, ino uint32) error {
	slot, found := t.slot(parent, []byte(name))
	if found {
		t.dirents.at(t.index.slots[slot] - 1).inode = ino
		t.inodes.at(ino).nlink++
		return nil
	}
	if err := t.kept.Add(t.limits, name, len(name)); err != nil {
		return err
	}
	n := t.dirents.add()
	dir := t.inodes.at(parent)
	*t.dirents.at(n) = dirent{parent: parent, name: t.names.put(name), len: uint8(len(name)), inode: ino, next: dir.data}
	dir.data = n + 1
	t.index.slots[slot] = n + 1
	t.inodes.at(ino).nlink++
	if t.index.used++; t.index.used*4 > len(t.index.slots)*3 {
		t.grow()
	}
	return nil
}

func (t *tree) grow() {
	old := t.index.slots
	t.index.slots = make([]uint32, 2*len(old))
	mask := uint32(len(t.index.slots) - 1)
	for _, n := range old {
		if n == 0 {
			continue
		}
		d := t.dirents.at(n - 1)
		i := t.index.hash(d.parent, t.nameOf(d)) & mask
		for t.index.slots[i] != 0 {
			i = (i + 1) & mask
		}
		t.index.slots[i] = n
	}
}

// unbind takes the name away, with all that is below it if it is a directory.
func (t *tree) unbind(d *dirent) {
	doomed := []uint32{d.inode}
	d.inode = noInode
	for len(doomed) > 0 {
		ino := t.inodes.at(doomed[len(doomed)-1])
		doomed = doomed[:len(doomed)-1]
		if ino.nlink--; ino.nlink > 0 {
			continue
		}
		t.live--
		if !ino.dir() {
			continue
		}
		for n := ino.data; n != 0; {
			child := t.dirents.at(n - 1)
			if child.inode != noInode {
				doomed = append(doomed, child.inode)
				child.inode = noInode
			}
			n = child.next
		}
	}
}

// create makes a new inode for entry without a name.
func (t *tree) create(entry string, i inode) (uint32, error) {
	if t.inodes.n-1 > uint32(t.limits.Entries) {
		return 0, tarstream.Invalidf(entry, "more than the limit of %d entries, implied directories counted", t.limits.Entries)
	}
	n := t.inodes.add()
	*t.inodes.at(n) = i
	t.live++
	return n, nil
}

// Root, Parent, Lookup and Mkdir make a tree a tarstream.Tree of inode numbers.

func (t *tree) Root() uint32             { return rootInode }
func (t *tree) Parent(dir uint32) uint32 { return t.inodes.at(dir).parent }

func (t *tree) Lookup(dir uint32, name string) (f tarstream.Found[uint32], err error) {
	d := t.lookup(dir, name)
	if d == nil || d.inode == noInode {
		return f, nil
	}
	switch i := t.inodes.at(d.inode); {
	case i.dir():
		f.Kind, f.Dir = tarstream.Dir, d.inode
	case i.mode&modeFmt == modeLink:
		f.Kind, f.Target = tarstream.Symlink, string(t.names.get(i.data, int(i.size)))
	case !i.whiteout():
		f.Kind = tarstream.Regular
	}
	return f, nil
}

func (t *tree) Mkdir(dir uint32, name string) (uint32, error) {
	i := inode{mode: modeDir | 0o755, parent: dir}
	if d := t.lookup(dir, name); d != nil && d.inode != noInode { // a whiteout, or Lookup would have found it
		i.opaque = true
		t.unbind(d)
	}
	ino, err := t.create(name, i)
	if err != nil {
		return 0, err
	}
	return ino, t.bind(dir, name, ino)
}
