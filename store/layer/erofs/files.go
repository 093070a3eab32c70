package erofs

import (
	"errors"
	"fmt"
	"io"
)

var errDamaged = errors.New("the metadata is not what a Writer writes")

// Files calls visit for each name of a regular file with its contents' place in the data device, in blocks. meta is the
// metadata of an image from here, size its length. Files without contents are left out. visit ends it with an error.
func Files(meta io.ReaderAt, size int64, visit func(path string, first, blocks int64) error) error {
	r := &imageReader{meta: meta, size: size}
	super := make([]byte, superSize)
	if err := r.read(super, superOffset); err != nil {
		return err
	}
	type dir struct {
		path string
		nid  uint64
	}
	todo := []dir{{"", uint64(le.Uint16(super[14:]))}}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if r.dirs++; r.dirs*extendedSize/2 > size { // more than there can be: it goes in circles
			return errDamaged
		}
		err := r.names(d.nid, func(name string, nid uint64, kind byte) error {
			path := d.path + "/" + name
			if d.path == "" {
				path = name
			}
			switch kind {
			case fileTypes[modeDir]:
				todo = append(todo, dir{path, nid})
			case fileTypes[modeReg]:
				first, blocks, err := r.place(nid)
				if err == nil && blocks > 0 {
					err = visit(path, first, blocks)
				}
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// imageReader reads metadata, and not past its end.
type imageReader struct {
	meta io.ReaderAt
	size int64
	dirs int64
}

func (r *imageReader) read(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > r.size {
		return errDamaged
	}
	if _, err := r.meta.ReadAt(p, off); err != nil {
		return fmt.Errorf("read layer metadata: %w", err)
	}
	return nil
}

// diskInode is what is wanted of an inode in the image.
type diskInode struct {
	layout uint16
	size   uint64
	u      uint32
	inline int64 // where what follows the inode and its attributes is
}

func (r *imageReader) inode(nid uint64) (i diskInode, err error) {
	if nid > uint64(r.size)/nidUnit {
		return i, errDamaged
	}
	off := int64(nid) * nidUnit
	var b [compactSize]byte
	if err := r.read(b[:], off); err != nil {
		return i, err
	}
	format := le.Uint16(b[0:])
	i = diskInode{layout: format >> 1 & 7, size: uint64(le.Uint32(b[8:])), u: le.Uint32(b[16:]), inline: off + compactSize}
	if format&extendedBit != 0 {
		i.size, i.inline = le.Uint64(b[8:]), off+extendedSize
	}
	if n := int64(le.Uint16(b[2:])); n > 0 {
		i.inline += xattrHeaderSize + (n-1)*xattrEntryHeader
	}
	return i, nil
}

// place is where the contents of a regular file lie.
func (r *imageReader) place(nid uint64) (first, blocks int64, err error) {
	i, err := r.inode(nid)
	if err != nil || i.size == 0 {
		return 0, 0, err
	}
	var index [chunkIndexSize]byte
	if err := r.read(index[:], alignUp(i.inline, chunkIndexSize)); err != nil {
		return 0, 0, err
	}
	return int64(le.Uint32(index[4:])), int64((i.size + blockSize - 1) / blockSize), nil
}

// names gives the names of a directory but "." and "..".
func (r *imageReader) names(nid uint64, f func(name string, nid uint64, kind byte) error) error {
	i, err := r.inode(nid)
	if err != nil {
		return err
	}
	if i.size > uint64(r.size) {
		return errDamaged
	}
	var buf [blockSize]byte
	for done := int64(0); done < int64(i.size); done += blockSize {
		block := buf[:min(blockSize, int64(i.size)-done)]
		off := int64(i.u)<<blockBits + done
		if i.layout == layoutInline && len(block) < blockSize {
			off = i.inline
		}
		if err := r.read(block, off); err != nil {
			return err
		}
		if err := eachDirent(block, f); err != nil {
			return err
		}
	}
	return nil
}

// eachDirent takes one block of a directory apart.
func eachDirent(block []byte, f func(name string, nid uint64, kind byte) error) error {
	if len(block) < direntSize {
		return errDamaged
	}
	first := int(le.Uint16(block[8:]))
	if first < direntSize || first%direntSize != 0 || first > len(block) {
		return errDamaged
	}
	for at := 0; at < first; at += direntSize {
		start, end := int(le.Uint16(block[at+8:])), len(block)
		if at+direntSize < first {
			end = int(le.Uint16(block[at+direntSize+8:]))
		}
		if start > end || end > len(block) {
			return errDamaged
		}
		name := block[start:end]
		for at+direntSize == first && len(name) > 0 && name[len(name)-1] == 0 { // padding of the block
			name = name[:len(name)-1]
		}
		if s := string(name); s != "." && s != ".." {
			if err := f(s, le.Uint64(block[at:]), block[at+10]); err != nil {
				return err
			}
		}
	}
	return nil
}
