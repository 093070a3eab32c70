package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// The layout of include erofs_fs.h, as far as it is used. All numbers are little-endian.
const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xe0f5e1e2
	slotSize    = 128 // of a device table entry
	slotOffset  = superOffset + superSize

	compatChecksum    = 0x1
	compatMtime       = 0x2
	incompatChunked   = 0x4
	incompatDevTable  = 0x8
	nidUnit           = 32
	firstInode        = blockSize // the root's; nid 0 must not exist, as readdir gives it as inode number
	compactSize       = 32
	extendedSize      = 64
	extendedBit       = 1
	layoutPlain       = 0
	layoutInline      = 2
	layoutChunk       = 4
	chunkIndexes      = 0x20
	chunkIndexSize    = 8
	maxChunkBits      = 31
	dataDevice        = 1
	direntSize        = 12
	xattrHeaderSize   = 12
	xattrEntryHeader  = 4
	maxBlocks         = 1<<32 - 2 // addresses have 32 bits, the last one means a hole
	maxCompactNlink   = 1<<16 - 1
	modeFmt           = 0o170000
	modeDir           = 0o040000
	modeReg           = 0o100000
	modeLink          = 0o120000
	modeChar          = 0o020000
	modeBlock         = 0o060000
	modeFifo          = 0o010000
	xattrIndexUser    = 1
	xattrIndexAccess  = 2
	xattrIndexDefault = 3
	xattrIndexTrusted = 4
	xattrIndexSecure  = 6
)

// fileTypes are the d_type bytes of directory entries.
var fileTypes = map[uint16]byte{modeReg: 1, modeDir: 2, modeChar: 3, modeBlock: 4, modeFifo: 5, modeLink: 7}

var le = binary.LittleEndian

type super struct {
	inodes     uint64
	metaBlocks uint32
	dataBlocks uint32
	epoch      int64 // mtime of compact inodes
	epochNsec  uint32
	uuid       [16]byte
	root       uint16
}

// block gives block 0.
func (s *super) block() []byte {
	b := make([]byte, blockSize)
	p := b[superOffset:]
	le.PutUint32(p[0:], superMagic)
	le.PutUint32(p[8:], compatChecksum|compatMtime)
	p[12] = blockBits
	le.PutUint16(p[14:], s.root)
	le.PutUint64(p[16:], s.inodes)
	le.PutUint64(p[24:], uint64(s.epoch))
	le.PutUint32(p[32:], s.epochNsec)
	le.PutUint32(p[36:], s.metaBlocks)
	copy(p[48:64], s.uuid[:])
	le.PutUint32(p[80:], incompatChunked|incompatDevTable)
	le.PutUint16(p[86:], 1)                   // extra devices
	le.PutUint16(p[88:], slotOffset/slotSize) // where their table is
	le.PutUint32(b[slotOffset+64:], s.dataBlocks)
	le.PutUint32(p[4:], ^crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// deviceNumber encodes major and minor as the kernel's new_encode_dev.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func alignUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
