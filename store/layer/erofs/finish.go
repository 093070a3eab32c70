package erofs

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// Summary says what an image holds.
type Summary struct {
	Inodes    int64
	MetaBytes int64 // length of the metadata file
	DataBytes int64 // length of the data device, holes counted
}

// image is the work of Finish.
type image struct {
	*Writer
	super
	order []uint32 // inodes as they follow in the image
	end   int64    // of the inodes, in bytes
	extra uint32   // blocks after them
	sort  []uint32
}

// Finish writes the metadata. uuid names the file system. The devices are not synced.
func (w *Writer) Finish(uuid [16]byte) (Summary, error) {
	if w.ended {
		return Summary{}, errFinished
	}
	w.ended = true
	defer w.data.stop()
	blocks, err := w.data.finish()
	if err != nil {
		return Summary{}, err
	}
	im := &image{Writer: w, super: super{uuid: uuid, dataBlocks: blocks, root: firstInode / nidUnit}}
	im.pickEpoch()
	if err := im.layout(); err != nil {
		return Summary{}, err
	}
	if err := im.emit(); err != nil {
		return Summary{}, fmt.Errorf("write layer metadata: %w", err)
	}
	return Summary{
		Inodes:    int64(im.super.inodes),
		MetaBytes: int64(im.metaBlocks) << blockBits,
		DataBytes: int64(blocks) << blockBits,
	}, nil
}

// pickEpoch finds the mtime that most inodes have, if more than half have one: Boyer and Moore's majority vote.
func (im *image) pickEpoch() {
	votes := 0
	for n := uint32(rootInode); n < im.tree.inodes.n; n++ {
		i := im.tree.inodes.at(n)
		switch {
		case i.nlink == 0:
		case votes == 0:
			im.epoch, im.epochNsec, votes = i.mtime, i.nsec, 1
		case i.mtime == im.epoch && i.nsec == im.epochNsec:
			votes++
		default:
			votes--
		}
	}
}

// layout gives every inode its place: a directory, then its files, then the directories in it.
func (im *image) layout() error {
	im.end = firstInode
	im.order = make([]uint32, 0, im.live)
	todo := []uint32{rootInode}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		dir := im.tree.inodes.at(n)
		if dir.opaque {
			dir.xattrs = im.xattrs.with(dir.xattrs, opaqueXattr)
		}
		if dir.hiding {
			dir.xattrs = im.xattrs.with(dir.xattrs, hidingXattr)
		}
		im.sortChildren(dir)
		im.place(n)
		for c := dir.data; c != 0; {
			d := im.dirents.at(c - 1)
			c = d.next
			i := im.tree.inodes.at(d.inode)
			if i.dir() {
				todo = append(todo, d.inode)
			} else if i.nid == 0 {
				im.place(d.inode)
			}
		}
	}
	im.super.inodes = uint64(len(im.order))
	blocks := alignUp(im.end, blockSize)>>blockBits + int64(im.extra)
	if blocks > maxBlocks {
		return fmt.Errorf("metadata needs %d blocks of 4 KiB, an image holds %d", blocks, int64(maxBlocks))
	}
	im.metaBlocks = uint32(blocks)
	return nil
}

// sortChildren links the names of dir in byte order, drops removed ones, and sets its size and its number of links.
func (im *image) sortChildren(dir *inode) {
	im.sort = im.sort[:0]
	for c := dir.data; c != 0; {
		d := im.dirents.at(c - 1)
		if d.inode != noInode {
			im.sort = append(im.sort, c)
		}
		c = d.next
	}
	slices.SortFunc(im.sort, func(a, b uint32) int {
		return bytes.Compare(im.nameOf(im.dirents.at(a-1)), im.nameOf(im.dirents.at(b-1)))
	})
	dir.data, dir.nlink = 0, 2
	for _, c := range slices.Backward(im.sort) {
		d := im.dirents.at(c - 1)
		d.next, dir.data = dir.data, c
		if im.tree.inodes.at(d.inode).dir() {
			dir.nlink++
		}
	}
	p := packer{}
	im.eachName(dir, noInode, func(name []byte, _ uint32) { p.add(len(name)) })
	dir.size = uint64(p.size())
}

// eachName calls f for the names of dir in byte order, "." and ".." among them.
func (im *image) eachName(dir *inode, self uint32, f func(name []byte, ino uint32)) {
	dots := [...]struct {
		name string
		ino  uint32
	}{{".", self}, {"..", dir.parent}}
	next := 0
	for c := dir.data; c != 0; {
		d := im.dirents.at(c - 1)
		name := im.nameOf(d)
		for next < len(dots) && cmp.Less(dots[next].name, string(name)) {
			f([]byte(dots[next].name), dots[next].ino)
			next++
		}
		f(name, d.inode)
		c = d.next
	}
	for ; next < len(dots); next++ {
		f([]byte(dots[next].name), dots[next].ino)
	}
}

// packer counts how names fall into blocks.
type packer struct {
	full int64 // finished blocks
	used int   // bytes of the last one
}

// add says whether the name began a new block.
func (p *packer) add(name int) (fresh bool) {
	n := direntSize + name
	if p.used+n > blockSize {
		p.full++
		p.used, fresh = 0, true
	}
	p.used += n
	return fresh
}

func (p *packer) size() int64 { return p.full<<blockBits + int64(p.used) }
