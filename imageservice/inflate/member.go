package inflate

import (
	"hash/crc32"
	"io"
)

// Flags of a member's header.
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
)

const (
	headerSize  = 10
	trailerSize = 8
	maxText     = 512 // bytes of a name or comment, the final NUL included
)

// header begins the next member; the error is io.EOF if there is none.
func (r *Reader) header() error {
	if err := r.fill(); err != nil {
		return err
	}
	if r.pos == r.end {
		return io.EOF
	}
	var h [headerSize]byte
	sum := uint32(0)
	if err := r.read(h[:], &sum); err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return ErrHeader
	}
	if err := r.options(h[3], &sum); err != nil {
		return err
	}
	r.begin, r.crc, r.size = r.o, 0, 0
	r.block, r.final = noBlock, false
	return nil
}

// options skips what the flags say that a header has; sum is the checksum of the header.
func (r *Reader) options(flags byte, sum *uint32) error {
	var two [2]byte
	if flags&flagExtra != 0 {
		if err := r.read(two[:], sum); err != nil {
			return err
		}
		if err := r.read(make([]byte, le.Uint16(two[:])), sum); err != nil {
			return err
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 {
			continue
		}
		if err := r.skipText(sum); err != nil {
			return err
		}
	}
	if flags&flagHeaderCRC == 0 {
		return nil
	}
	want := uint16(*sum)
	if err := r.read(two[:], sum); err != nil {
		return err
	}
	if le.Uint16(two[:]) != want {
		return ErrHeader
	}
	return nil
}

func (r *Reader) skipText(sum *uint32) error {
	for range maxText {
		var b [1]byte
		if err := r.read(b[:], sum); err != nil {
			return err
		}
		if b[0] == 0 {
			return nil
		}
	}
	return ErrHeader
}

// trailer ends a member.
func (r *Reader) trailer() error {
	r.align()
	var t [trailerSize]byte
	var sum uint32
	if err := r.read(t[:], &sum); err != nil {
		return err
	}
	if le.Uint32(t[:]) != r.crc || le.Uint32(t[4:]) != r.size {
		return ErrChecksum
	}
	return nil
}

// read takes whole bytes, where no bits are left, and adds them to a checksum.
func (r *Reader) read(p []byte, sum *uint32) error {
	for n := 0; n < len(p); {
		if err := r.fill(); err != nil {
			return err
		}
		if r.pos == r.end {
			return io.ErrUnexpectedEOF
		}
		m := copy(p[n:], r.in[r.pos:r.end])
		r.pos += m
		n += m
	}
	*sum = crc32.Update(*sum, crc32.IEEETable, p)
	return nil
}
