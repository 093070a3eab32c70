package sums

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// BlockSize is how much one checksum covers, in bytes.
const BlockSize = 4096

// entrySize is the length of a checksum in a file.
const entrySize = 4

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroBlock  = crc32.Checksum(make([]byte, BlockSize), castagnoli)
)

func ofBlock(p []byte) uint32 { return crc32.Checksum(p, castagnoli) ^ zeroBlock }

// Update adds p to the checksum of a whole file, which begins as 0.
func Update(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }

// Device is a new, empty file.
type Device interface {
	io.WriterAt
	Truncate(size int64) error
}

// Recorder passes blocks on to a file and keeps their checksums. Not safe for concurrent use.
type Recorder struct {
	dev   Device
	out   io.WriterAt
	after *Recorder // whose checksums come before these in out; nil: none do
	size  int64     // of dev
	buf   []byte
}

// NewRecorder keeps checksums of dev in out, behind those of after, which has its size before the first write here.
func NewRecorder(dev Device, out io.WriterAt, after *Recorder) *Recorder {
	return &Recorder{dev: dev, out: out, after: after}
}

// WriteAt takes whole blocks only.
func (r *Recorder) WriteAt(p []byte, off int64) (int, error) {
	if off%BlockSize != 0 || len(p)%BlockSize != 0 {
		return 0, fmt.Errorf("keep checksums: %d bytes at %d are not whole blocks", len(p), off)
	}
	r.buf = r.buf[:0]
	for at := 0; at < len(p); at += BlockSize {
		r.buf = binary.LittleEndian.AppendUint32(r.buf, ofBlock(p[at:at+BlockSize]))
	}
	if _, err := r.out.WriteAt(r.buf, r.base()+off/BlockSize*entrySize); err != nil {
		return 0, fmt.Errorf("keep checksums: %w", err)
	}
	return r.dev.WriteAt(p, off)
}

// Truncate gives the file its size, a whole number of blocks.
func (r *Recorder) Truncate(size int64) error {
	r.size = size
	return r.dev.Truncate(size)
}

// Blocks is the size of the file in blocks.
func (r *Recorder) Blocks() int64 { return r.size / BlockSize }

// End is where the checksums of the file end.
func (r *Recorder) End() int64 { return r.base() + r.Blocks()*entrySize }

func (r *Recorder) base() int64 {
	if r.after == nil {
		return 0
	}
	return r.after.End()
}
