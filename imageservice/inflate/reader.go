package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// Errors of streams. One that ends too early is io.ErrUnexpectedEOF.
var (
	ErrHeader   = errors.New("gzip: invalid header")
	ErrChecksum = errors.New("gzip: invalid checksum")
	errCorrupt  = errors.New("gzip: invalid compressed data")
)

// Sizes in bytes.
const (
	inputSize  = 64 << 10
	padding    = 1 << 10 // zeros behind the input, more than the longest header of a block
	windowSize = 32 << 10
	outputSize = 128 << 10 // of a buffer, besides the window before it
	maxMatch   = 258
	slop       = maxMatch + 16 // a step of decoding writes less
)

// outputLimit is where a buffer counts as full.
const outputLimit = windowSize + outputSize

var le = binary.LittleEndian

// Reader gives what a gzip stream holds.
type Reader struct {
	src io.Reader
	err error // final

	in   []byte // input; what is from pos to end was not used
	pos  int
	end  int
	eof  bool   // nothing comes behind end, and zeros are there
	bits uint64 // that were taken from in and not used, the next one lowest; above n there may be more of them
	n    uint   // how many bits there are

	out   []byte
	o     int    // end of what was decoded
	given int    // end of what Read has given
	begin int    // where matches may reach back to: the member's begin, as far as it is in out
	crc   uint32 // of the member
	size  uint32

	block  blockKind
	final  bool // it is the member's last block
	stored int  // bytes left of a stored block
	fixed  bool // the tables are those of fixed codes
	codes  tables
}

// blockKind is the kind of block that is being read.
type blockKind uint8

const (
	noBlock blockKind = iota
	storedBlock
	codedBlock
)

// NewReader reads the first header. The error is io.EOF if the stream is empty.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{src: src, in: make([]byte, inputSize+padding), out: make([]byte, outputLimit+slop)}
	if err := r.header(); err != nil {
		return nil, err
	}
	return r, nil
}

// Read gives the next bytes of the content.
func (r *Reader) Read(p []byte) (int, error) {
	for r.given == r.o {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.produce()
	}
	n := copy(p, r.out[r.given:r.o])
	r.given += n
	return n, nil
}

// produce decodes until the buffer is full or the member ends.
func (r *Reader) produce() error {
	if r.o >= outputLimit {
		shift := r.o - windowSize
		copy(r.out, r.out[shift:r.o])
		r.begin = max(0, r.begin-shift)
		r.o, r.given = windowSize, windowSize
	}
	from := r.o
	ended, err := r.blocks()
	r.crc = crc32.Update(r.crc, crc32.IEEETable, r.out[from:r.o])
	r.size += uint32(r.o - from)
	if !ended || err != nil {
		return err
	}
	if err := r.trailer(); err != nil {
		return err
	}
	return r.header()
}

// blocks decodes blocks until the buffer is full or the member's last one has ended.
func (r *Reader) blocks() (ended bool, err error) {
	for err == nil && r.o < outputLimit {
		switch r.block {
		case noBlock:
			if r.final {
				return true, nil
			}
			err = r.beginBlock()
		case storedBlock:
			err = r.copyStored()
		case codedBlock:
			if err = r.fill(); err == nil {
				err = r.decode()
			}
		}
		if r.eof && r.pos-int(r.n>>3) > r.end { // more was used than there is; what it looked like does not matter
			err = io.ErrUnexpectedEOF
		}
	}
	return false, err
}

// fill sees to it that there is input for the header of a block.
func (r *Reader) fill() error {
	if r.end-r.pos >= padding || r.eof {
		return nil
	}
	r.pos -= int(r.n >> 3) // what was taken and not used is not to be lost
	r.n &= 7
	r.end = copy(r.in, r.in[r.pos:r.end])
	r.pos = 0
	for r.end < padding {
		n, err := r.src.Read(r.in[r.end:inputSize])
		r.end += n
		if err == io.EOF {
			r.eof = true
			clear(r.in[r.end : r.end+padding])
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// avail is where what can be read ends, zeros included.
func (r *Reader) avail() int {
	if r.eof {
		return r.end + padding
	}
	return r.end
}

// take gives the next k bits, at most 16. It is for a few in a row after fill.
func (r *Reader) take(k uint) uint {
	if r.n < 16 {
		r.bits |= le.Uint64(r.in[r.pos:]) << r.n
		r.pos += int((63 - r.n) >> 3)
		r.n |= 56
	}
	v := uint(r.bits) & (1<<k - 1)
	r.bits >>= k
	r.n -= k
	return v
}

// align drops the rest of a byte, and gives whole ones back.
func (r *Reader) align() {
	r.pos -= int(r.n >> 3)
	r.bits, r.n = 0, 0
}

func (r *Reader) beginBlock() error {
	if err := r.fill(); err != nil {
		return err
	}
	r.final = r.take(1) == 1
	switch r.take(2) {
	case 0:
		return r.beginStored()
	case 1:
		if !r.fixed {
			r.codes.setFixed()
			r.fixed = true
		}
	case 2:
		r.fixed = false
		if err := r.readCodes(); err != nil {
			return err
		}
	default:
		return errCorrupt
	}
	r.block = codedBlock
	return nil
}

func (r *Reader) beginStored() error {
	r.align()
	if r.eof && r.pos+4 > r.end {
		return io.ErrUnexpectedEOF
	}
	length := le.Uint16(r.in[r.pos:])
	if length != ^le.Uint16(r.in[r.pos+2:]) {
		return errCorrupt
	}
	r.pos += 4
	r.block, r.stored = storedBlock, int(length)
	return nil
}

func (r *Reader) copyStored() error {
	if err := r.fill(); err != nil {
		return err
	}
	n := copy(r.out[r.o:outputLimit], r.in[r.pos:min(r.pos+r.stored, r.end)])
	r.pos += n
	r.o += n
	r.stored -= n
	switch {
	case r.stored == 0:
		r.block = noBlock
	case n == 0:
		return io.ErrUnexpectedEOF
	}
	return nil
}
