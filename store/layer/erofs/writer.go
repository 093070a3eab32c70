package erofs

import (
	"fmt"
	"io"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// Writer builds one image. Not safe for concurrent use. It ends with Finish or Abort.
type Writer struct {
	*tree
	meta    Device
	data    *dataWriter
	xattrs  xattrSets
	counted int // sets of xattrs that were added to what is kept
	ended   bool

	lastPath string // a directory and its inode, valid until something is replaced
	lastDir  uint32
}

// NewWriter begins an image in meta and data, which are empty and stay the caller's.
func NewWriter(meta, data Device, l tarstream.Limits) *Writer {
	return &Writer{tree: newTree(l), meta: meta, data: newDataWriter(data), lastDir: rootInode}
}

// Unpack adds all entries of r.
func (w *Writer) Unpack(r *tarstream.Reader) error { return r.Each(w.Add) }

// Add takes the next entry; content is that of a Regular. After an error only Abort is of use.
func (w *Writer) Add(e *tarstream.Entry, content io.Reader) error {
	if w.ended {
		return errFinished
	}
	if e.Kind == tarstream.Opaque {
		dir, err := w.dir(e, e.Path)
		if err != nil {
			return err
		}
		w.inodes.at(dir).opaque = true
		return nil
	}
	if e.Path == "" {
		return w.setDir(w.inodes.at(rootInode), e)
	}
	parent, name := tarstream.Split(e.Path)
	dir, err := w.dir(e, parent)
	if err != nil {
		return err
	}
	switch e.Kind {
	case tarstream.Whiteout:
		return w.addWhiteout(e, dir, name)
	case tarstream.Hardlink:
		return w.addLink(e, dir, name)
	case tarstream.Dir:
		return w.addDir(e, dir, name)
	}
	return w.addFile(e, dir, name, content)
}

// dir finds or makes the directory path.
func (w *Writer) dir(e *tarstream.Entry, path string) (uint32, error) {
	if path == w.lastPath {
		return w.lastDir, nil
	}
	dir, _, err := tarstream.Walk(w.tree, w.limits, e.Name, path, true)
	if err == nil {
		w.lastPath, w.lastDir = path, dir
	}
	return dir, err
}

// current gives the name's dirent if it is something now.
func (w *Writer) current(dir uint32, name string) *dirent {
	if d := w.lookup(dir, name); d != nil && d.inode != noInode {
		return d
	}
	return nil
}

// replace frees the name for a new inode.
func (w *Writer) replace(dir uint32, name string) {
	if d := w.current(dir, name); d != nil {
		w.unbind(d)
		w.lastPath, w.lastDir = "", rootInode
	}
}

func (w *Writer) add(e *tarstream.Entry, dir uint32, name string, i inode) error {
	i.uid, i.gid = e.UID, e.GID
	i.mtime, i.nsec = e.ModTime.Unix(), uint32(e.ModTime.Nanosecond())
	if i.mode&modeFmt == modeLink {
		i.mode = modeLink | 0o777 // as Linux shows every link
	} else {
		i.mode |= uint16(e.Perm)
	}
	var err error
	if i.xattrs, err = w.attributes(e); err != nil {
		return err
	}
	ino, err := w.create(e.Name, i)
	if err != nil {
		return err
	}
	return w.bind(dir, name, ino)
}

// attributes gives the number of e's set of extended attributes.
func (w *Writer) attributes(e *tarstream.Entry) (uint32, error) {
	n := w.xattrs.intern(e.Xattrs)
	if int(n) <= w.counted {
		return n, nil
	}
	w.counted = int(n)
	return n, w.kept.Add(w.limits, e.Name, len(w.xattrs.get(n)))
}

func (w *Writer) addWhiteout(e *tarstream.Entry, dir uint32, name string) error {
	if d := w.current(dir, name); d != nil {
		if i := w.inodes.at(d.inode); i.dir() {
			i.opaque = true
		}
		return nil
	}
	ino, err := w.create(e.Name, inode{mode: modeChar})
	if err != nil {
		return err
	}
	w.inodes.at(dir).hiding = true
	return w.bind(dir, name, ino)
}

func (w *Writer) addLink(e *tarstream.Entry, dir uint32, name string) error {
	missing := tarstream.Invalidf(e.Name, "hard link to %s, which is no file of this layer", tarstream.Quote(e.Target))
	target, err := w.target(e)
	if err != nil {
		return err
	}
	if d := w.current(dir, name); d != nil && target != noInode && d.inode == target {
		return nil
	}
	w.replace(dir, name)
	if target != noInode && w.inodes.at(target).nlink == 0 { // it was what the link replaces, or below it
		target = noInode
	}
	if target == noInode {
		return missing
	}
	return w.bind(dir, name, target)
}

// target gives the inode that a hard link names, or noInode if there is none that can be linked.
func (w *Writer) target(e *tarstream.Entry) (uint32, error) {
	parent, name := tarstream.Split(e.Target)
	dir, ok, err := tarstream.Walk(w.tree, w.limits, e.Name, parent, false)
	if err != nil || !ok {
		return noInode, err
	}
	d := w.current(dir, name)
	if d == nil {
		return noInode, nil
	}
	if i := w.inodes.at(d.inode); i.dir() || i.whiteout() {
		return noInode, nil
	}
	return d.inode, nil
}

func (w *Writer) addDir(e *tarstream.Entry, dir uint32, name string) error {
	i := inode{mode: modeDir, parent: dir}
	if d := w.current(dir, name); d != nil {
		old := w.inodes.at(d.inode)
		if old.dir() {
			return w.setDir(old, e)
		}
		i.opaque = old.whiteout()
	}
	w.replace(dir, name)
	return w.add(e, dir, name, i)
}

// setDir gives a directory that is there already what a later entry says; it keeps its content.
func (w *Writer) setDir(i *inode, e *tarstream.Entry) (err error) {
	i.mode = modeDir | uint16(e.Perm)
	i.uid, i.gid = e.UID, e.GID
	i.mtime, i.nsec = e.ModTime.Unix(), uint32(e.ModTime.Nanosecond())
	i.xattrs, err = w.attributes(e)
	return err
}

func (w *Writer) addFile(e *tarstream.Entry, dir uint32, name string, content io.Reader) error {
	i := inode{}
	switch e.Kind {
	case tarstream.Regular:
		i.mode, i.size = modeReg, uint64(e.Size)
		if e.Size > 0 {
			block, err := w.data.append(content, e.Size)
			if err != nil {
				return fmt.Errorf("entry %s: %w", tarstream.Quote(e.Name), err)
			}
			i.data = block
			e.Kept.Offset = int64(block) << blockBits
		}
	case tarstream.Symlink:
		if err := w.kept.Add(w.limits, e.Name, len(e.Target)); err != nil {
			return err
		}
		i.mode, i.size, i.data = modeLink, uint64(len(e.Target)), w.names.put(e.Target)
	case tarstream.Char:
		i.mode, i.size = modeChar, uint64(deviceNumber(e.Major, e.Minor))
	case tarstream.Block:
		i.mode, i.size = modeBlock, uint64(deviceNumber(e.Major, e.Minor))
	case tarstream.Fifo:
		i.mode = modeFifo
	default:
		return tarstream.Invalidf(e.Name, "kind %d is not known", e.Kind)
	}
	w.replace(dir, name)
	return w.add(e, dir, name, i)
}

// Abort ends the work without an image. It is harmless after Finish.
func (w *Writer) Abort() {
	w.ended = true
	w.data.stop()
}
