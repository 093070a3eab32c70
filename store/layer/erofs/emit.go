package erofs

import "io"

// shape is how an inode lies in the image.
type shape struct {
	compact bool
	layout  uint16
	head    int64 // inode and extended attributes
	length  int64 // head and what follows inline
	blocks  int64 // blocks after all inodes
}

func (im *image) shape(i *inode) (s shape) {
	s.compact = i.mtime == im.epoch && i.nsec == im.epochNsec && i.uid < 1<<16 && i.gid < 1<<16 &&
		i.nlink <= maxCompactNlink && i.size < 1<<32
	s.head = extendedSize
	if s.compact {
		s.head = compactSize
	}
	s.head += int64(len(im.xattrs.get(i.xattrs)))
	s.length = s.head
	switch i.mode & modeFmt {
	case modeReg:
		if i.size > 0 {
			s.layout = layoutChunk
			s.length = alignUp(s.head, chunkIndexSize) + chunkIndexSize
		}
	case modeDir, modeLink:
		tail := int64(i.size % blockSize)
		s.blocks = int64(i.size / blockSize)
		switch {
		case tail == 0:
		case s.head+tail <= blockSize:
			s.layout, s.length = layoutInline, s.head+tail
		default:
			s.blocks++
		}
	}
	return s
}

// place appends inode n to the order. What fits into a block does not cross the border of one.
func (im *image) place(n uint32) {
	i := im.tree.inodes.at(n)
	s := im.shape(i)
	at := alignUp(im.end, nidUnit)
	if at%blockSize+s.length > blockSize {
		at = alignUp(at, blockSize)
	}
	i.nid = uint32(at / nidUnit)
	im.end = at + s.length
	im.extra += uint32(s.blocks)
	im.order = append(im.order, n)
}

// emit writes what layout planned: inodes in one sequence, blocks in another, block 0 at the end.
func (im *image) emit() error {
	inodes := &sequence{dev: im.meta, off: firstInode}
	blocks := &sequence{dev: im.meta, off: alignUp(im.end, blockSize)}
	for _, n := range im.order {
		i := im.tree.inodes.at(n)
		s := im.shape(i)
		inodes.pad(int64(i.nid) * nidUnit)
		im.emitInode(inodes, i, s, n, uint32(blocks.at()>>blockBits))
		switch i.mode & modeFmt {
		case modeDir:
			im.emitDir(inodes, blocks, n, s)
		case modeLink:
			out := blocks
			if s.layout == layoutInline {
				out = inodes
			}
			out.write(im.names.get(i.data, int(i.size)))
			blocks.pad(alignUp(blocks.at(), blockSize))
		case modeReg:
			if s.layout == layoutChunk {
				inodes.pad(alignUp(inodes.at(), chunkIndexSize))
				inodes.write(le.AppendUint32([]byte{0, 0, dataDevice, 0}, i.data))
			}
		}
	}
	inodes.pad(alignUp(inodes.at(), blockSize))
	for _, s := range []*sequence{inodes, blocks} {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if _, err := im.meta.WriteAt(im.block(), 0); err != nil {
		return err
	}
	return im.meta.Truncate(int64(im.metaBlocks) << blockBits)
}

// emitInode writes the inode and its extended attributes; next is the first free block after the inodes.
func (im *image) emitInode(out *sequence, i *inode, s shape, n, next uint32) {
	body := im.xattrs.get(i.xattrs)
	var b [extendedSize]byte
	format := s.layout << 1
	var u uint32
	size := i.size
	switch i.mode & modeFmt {
	case modeReg:
		if s.layout == layoutChunk {
			u = chunkIndexes | chunkBits(i.size)
		}
	case modeChar, modeBlock:
		u, size = uint32(i.size), 0
	case modeDir, modeLink:
		if s.blocks > 0 {
			u = next
		}
	}
	le.PutUint16(b[2:], xattrCount(body))
	le.PutUint16(b[4:], i.mode)
	le.PutUint32(b[16:], u)
	le.PutUint32(b[20:], n)
	if s.compact {
		le.PutUint16(b[0:], format)
		le.PutUint16(b[6:], uint16(i.nlink))
		le.PutUint32(b[8:], uint32(size))
		le.PutUint16(b[24:], uint16(i.uid))
		le.PutUint16(b[26:], uint16(i.gid))
		out.write(b[:compactSize])
	} else {
		le.PutUint16(b[0:], format|extendedBit)
		le.PutUint64(b[8:], size)
		le.PutUint32(b[24:], i.uid)
		le.PutUint32(b[28:], i.gid)
		le.PutUint64(b[32:], uint64(i.mtime))
		le.PutUint32(b[40:], i.nsec)
		le.PutUint32(b[44:], i.nlink)
		out.write(b[:])
	}
	out.write([]byte(body))
}

// chunkBits is the smallest chunk, as a power of two of blocks, that holds size bytes.
func chunkBits(size uint64) (bits uint32) {
	for bits < maxChunkBits && blockSize<<bits < size {
		bits++
	}
	return bits
}

// emitDir writes the names of directory n: full blocks to blocks, the rest after the inode if the shape says so.
func (im *image) emitDir(inodes, blocks *sequence, n uint32, s shape) {
	var pending []named
	p := packer{}
	dir := im.tree.inodes.at(n)
	im.eachName(dir, n, func(name []byte, ino uint32) {
		if p.add(len(name)) {
			emitNames(blocks, pending)
			blocks.pad(alignUp(blocks.at(), blockSize))
			pending = pending[:0]
		}
		i := im.tree.inodes.at(ino)
		pending = append(pending, named{name, i.nid, fileTypes[i.mode&modeFmt]})
	})
	out := blocks
	if s.layout == layoutInline {
		out = inodes
	}
	emitNames(out, pending)
	blocks.pad(alignUp(blocks.at(), blockSize))
}

type named struct {
	name []byte
	nid  uint32
	kind byte
}

// emitNames writes one directory block without its padding: fixed parts, then names.
func emitNames(out *sequence, names []named) {
	off := len(names) * direntSize
	for _, d := range names {
		var b [direntSize]byte
		le.PutUint64(b[0:], uint64(d.nid))
		le.PutUint16(b[8:], uint16(off))
		b[10] = d.kind
		out.write(b[:])
		off += len(d.name)
	}
	for _, d := range names {
		out.write(d.name)
	}
}

// sequence writes ascending parts of a file through a buffer, in whole blocks. The first error stays.
type sequence struct {
	dev io.WriterAt
	off int64 // of buf, at the border of a block
	buf []byte
	err error
}

const sequenceBuffer = 256 << 10

func (s *sequence) at() int64 { return s.off + int64(len(s.buf)) }

func (s *sequence) write(p []byte) {
	s.buf = append(s.buf, p...)
	if len(s.buf) >= sequenceBuffer {
		_ = s.flush() // kept in err
	}
}

// pad writes zeros up to offset to.
func (s *sequence) pad(to int64) {
	if n := to - s.at(); n > 0 {
		s.write(make([]byte, n))
	}
}

// flush writes the whole blocks; a sequence ends with one.
func (s *sequence) flush() error {
	n := len(s.buf) &^ (blockSize - 1)
	if s.err == nil && n > 0 {
		_, s.err = s.dev.WriteAt(s.buf[:n], s.off)
	}
	s.off += int64(n)
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	return s.err
}
