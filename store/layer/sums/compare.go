package sums

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

const (
	chunkBlocks = 256
	chunkBytes  = chunkBlocks * BlockSize
)

// Range is a run of blocks.
type Range struct{ First, Count int64 }

// Compare reads f, which has that many blocks, and gives the runs of blocks that cannot be read or are not what kept
// says; the checksums of f begin after those of skip blocks. At most limit runs are given, and the number of all bad
// blocks. Holes on both sides are not read.
func Compare(ctx context.Context, f, kept *os.File, skip, blocks int64, limit int) (bad []Range, count int64, err error) {
	c := comparison{f: f, kept: kept, base: skip * entrySize, limit: limit}
	if c.buf, err = NewBuffer(chunkBytes); err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, c.buf.Close()) }()
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		if at, err = c.next(at); err != nil {
			return nil, 0, err
		}
		if at >= blocks {
			return c.bad, c.count, nil
		}
		n := min(chunkBlocks, blocks-at)
		if err := c.chunk(at, n); err != nil {
			return nil, 0, err
		}
		at += n
	}
}

type comparison struct {
	f, kept *os.File
	base    int64
	limit   int
	buf     *Buffer
	sums    [chunkBlocks * entrySize]byte
	bad     []Range
	count   int64
}

// next is the first block from at on that is not a hole on both sides.
func (c *comparison) next(at int64) (int64, error) {
	data, err := nextData(c.f, at*BlockSize)
	if err != nil {
		return 0, err
	}
	sum, err := nextData(c.kept, c.base+at*entrySize)
	if err != nil {
		return 0, err
	}
	return max(at, min(data/BlockSize, (sum-c.base)/entrySize)), nil
}

// nextData is where data begins at off or after it; very far if there is none.
func nextData(f *os.File, off int64) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return math.MaxInt64, nil
	case errors.Is(err, unix.EINVAL): // a file system that knows no holes
		return off, nil
	case err != nil:
		return 0, fmt.Errorf("look for data in %s: %w", f.Name(), err)
	}
	return at, nil
}

// OfSums gives the checksum of a file of checksums. Its holes count as zeros.
func OfSums(kept *os.File) (sum uint32, err error) {
	block := make([]byte, BlockSize)
	for at := int64(0); ; at += BlockSize {
		if at, err = nextData(kept, at); err != nil || at == math.MaxInt64 {
			return sum, err
		}
		at -= at % BlockSize
		n, err := kept.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read checksums: %w", err)
		}
		if n == 0 { // a file system that knows no holes
			return sum, nil
		}
		clear(block[n:])
		if one := ofBlock(block); one != 0 {
			sum = Update(sum, binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, uint64(at)), one))
		}
	}
}

// chunk compares n blocks from at on.
func (c *comparison) chunk(at, n int64) error {
	if _, err := c.kept.ReadAt(c.sums[:n*entrySize], c.base+at*entrySize); err != nil {
		return fmt.Errorf("read checksums: %w", err)
	}
	p := c.buf.Bytes()[:n*BlockSize]
	whole := readAt(c.f, p, at*BlockSize)
	if whole != nil && !unreadable(whole) {
		return whole
	}
	for i := range n {
		block := p[i*BlockSize : (i+1)*BlockSize]
		fault := false
		if whole != nil { // one sector is enough for that
			err := readAt(c.f, block, (at+i)*BlockSize)
			if fault = err != nil; fault && !unreadable(err) {
				return err
			}
		}
		if fault || ofBlock(block) != binary.LittleEndian.Uint32(c.sums[i*entrySize:]) {
			c.add(at + i)
		}
	}
	return nil
}

func (c *comparison) add(block int64) {
	c.count++
	if n := len(c.bad); n > 0 && c.bad[n-1].First+c.bad[n-1].Count == block {
		c.bad[n-1].Count++
	} else if n < c.limit {
		c.bad = append(c.bad, Range{block, 1})
	}
}

// unreadable says whether err is the disk's, or a file system's that keeps checksums of its own.
func unreadable(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) }

// readAt fills p. It stops asking for direct reads once the file system refuses one.
func readAt(f *os.File, p []byte, off int64) error {
	_, err := f.ReadAt(p, off)
	if errors.Is(err, unix.EINVAL) {
		if err := buffered(f); err != nil {
			return err
		}
		_, err = f.ReadAt(p, off)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return nil
}

// buffered lets f be read through the page cache from now on.
func buffered(f *os.File) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	if err != nil {
		return fmt.Errorf("read %s through page cache: %w", f.Name(), err)
	}
	return nil
}

// OpenAt opens name below the directory dir (or a path, with unix.AT_FDCWD) to be read past the page cache if that can be.
func OpenAt(dir int, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW
	fd, err := unix.Openat(dir, name, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Whole gives the checksum of a file from its beginning to its end, in the way of Update, and how long it is.
func Whole(ctx context.Context, f *os.File, buf *Buffer) (sum uint32, size int64, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		n, err := f.ReadAt(buf.Bytes(), size)
		if errors.Is(err, unix.EINVAL) {
			if err = buffered(f); err == nil {
				n, err = f.ReadAt(buf.Bytes(), size)
			}
		}
		sum = Update(sum, buf.Bytes()[:n])
		size += int64(n)
		if errors.Is(err, io.EOF) {
			return sum, size, nil
		}
		if err != nil {
			return 0, 0, fmt.Errorf("read %s: %w", f.Name(), err)
		}
	}
}

// Buffer is memory that direct reads can go to.
type Buffer struct{ p []byte }

// NewBuffer makes one; it ends with Close.
func NewBuffer(size int) (*Buffer, error) {
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a buffer: %w", err)
	}
	return &Buffer{p}, nil
}

// Bytes is the whole buffer.
func (b *Buffer) Bytes() []byte { return b.p }

// Close gives the memory back.
func (b *Buffer) Close() error { return unix.Munmap(b.p) }
