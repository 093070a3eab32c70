package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
)

// ErrDamaged says that a frame is not what a Writer wrote, or that a content is no longer there as it was.
var ErrDamaged = errors.New("layer's frame is damaged")

// maxPath bounds a path that is read, in bytes: more than any Writer can have been given.
const maxPath = 1 << 16

// Contents gives what an archive's files hold: exactly size bytes of the content at p, to w.
type Contents interface {
	WriteContent(w io.Writer, size int64, p Place) error
}

// Copy writes the archive whose frame is r to w.
func Copy(w io.Writer, r io.Reader, contents Contents) error {
	_, err := copyArchive(w, r, contents)
	return err
}

// Size is how long the archive is whose frame is r, in bytes.
func Size(r io.Reader) (int64, error) { return copyArchive(io.Discard, r, nowhere{}) }

// nowhere has all contents and gives none.
type nowhere struct{}

func (nowhere) WriteContent(io.Writer, int64, Place) error { return nil }

func copyArchive(w io.Writer, r io.Reader, contents Contents) (int64, error) {
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(r, head); err != nil || string(head) != magic {
		return 0, fmt.Errorf("%w: it does not begin as one", ErrDamaged)
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
	if err != nil {
		return 0, fmt.Errorf("read frame: %w", err)
	}
	defer z.Close()
	c := copier{w: w, r: bufio.NewReader(whole{z}), contents: contents}
	for {
		done, err := c.record()
		if done || err != nil {
			return c.total, err
		}
	}
}

type copier struct {
	w        io.Writer
	r        *bufio.Reader
	contents Contents
	next     int64
	total    int64
}

// record copies what the next record stands for; done says that it was the last one.
func (c *copier) record() (done bool, err error) {
	kind, err := c.r.ReadByte()
	if err != nil {
		return false, damaged(err)
	}
	size, err := c.length(math.MaxInt64)
	if err != nil {
		return false, err
	}
	if kind == kindEnd {
		if size != c.total {
			return false, fmt.Errorf("%w: %d bytes instead of %d", ErrDamaged, c.total, size)
		}
		return true, nil
	}
	if c.total += size; c.total < 0 {
		return false, fmt.Errorf("%w: a record of %d bytes", ErrDamaged, size)
	}
	switch kind {
	case kindLiteral:
		_, err := io.CopyN(c.w, c.r, size)
		return false, err
	case kindOffset:
		delta, err := binary.ReadVarint(c.r)
		if err != nil {
			return false, damaged(err)
		}
		offset := c.next + delta
		if offset < 0 || offset > math.MaxInt64-size-align {
			return false, fmt.Errorf("%w: a content of %d bytes at %d", ErrDamaged, size, offset)
		}
		c.next = after(offset, size)
		return false, c.contents.WriteContent(c.w, size, Place{Offset: offset})
	case kindPath:
		n, err := c.length(maxPath)
		if err != nil {
			return false, err
		}
		path := make([]byte, n)
		if _, err := io.ReadFull(c.r, path); err != nil {
			return false, damaged(err)
		}
		return false, c.contents.WriteContent(c.w, size, Place{Path: string(path)})
	}
	return false, fmt.Errorf("%w: a record of kind %d", ErrDamaged, kind)
}

func (c *copier) length(most uint64) (int64, error) {
	n, err := binary.ReadUvarint(c.r)
	if err != nil {
		return 0, damaged(err)
	}
	if n > most {
		return 0, fmt.Errorf("%w: a length of %d", ErrDamaged, n)
	}
	return int64(n), nil
}

// whole is a stream that ends with an end record and never on its own.
type whole struct{ r io.Reader }

func (w whole) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil {
		err = damaged(err)
	}
	return n, err
}

func damaged(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}
