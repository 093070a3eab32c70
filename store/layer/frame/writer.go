package frame

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	magic   = "criframe\x01"
	window  = 256 << 10 // bytes; a header is like those just before it
	flushAt = 64 << 10  // bytes of literal in one record
	align   = 4 << 10
)

// Kinds of records.
const (
	kindEnd byte = iota
	kindLiteral
	kindOffset
	kindPath
)

// Place says where a content is kept: in the file Path, or if that is empty at Offset of a file that holds all contents.
type Place struct {
	Offset int64
	Path   string
}

// Writer records one archive. It ends with Close or is dropped. Not safe for concurrent use.
type Writer struct {
	z       *zstd.Encoder
	literal []byte
	scratch []byte
	next    int64 // where the next content is expected
	total   int64 // bytes of the archive
}

// NewWriter begins a frame in w.
func NewWriter(w io.Writer) (*Writer, error) {
	if _, err := io.WriteString(w, magic); err != nil {
		return nil, fmt.Errorf("write frame: %w", err)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("write frame: %w", err)
	}
	return &Writer{z: z, literal: make([]byte, 0, flushAt)}, nil
}

// Literal takes the next bytes of the archive.
func (w *Writer) Literal(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), flushAt-len(w.literal))
		w.literal, p = append(w.literal, p[:n]...), p[n:]
		if len(w.literal) == flushAt {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Content says that the next size bytes of the archive are kept at p.
func (w *Writer) Content(size int64, p Place) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.total += size
	if p.Path != "" {
		w.begin(kindPath, size)
		w.scratch = binary.AppendUvarint(w.scratch, uint64(len(p.Path)))
		w.scratch = append(w.scratch, p.Path...)
		return w.write(w.scratch)
	}
	w.begin(kindOffset, size)
	w.scratch = binary.AppendVarint(w.scratch, p.Offset-w.next)
	w.next = after(p.Offset, size)
	return w.write(w.scratch)
}

// Close completes the frame; the file below stays open.
func (w *Writer) Close() error {
	if err := w.flush(); err != nil {
		return err
	}
	w.begin(kindEnd, w.total)
	if err := w.write(w.scratch); err != nil {
		return err
	}
	if err := w.z.Close(); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

func (w *Writer) flush() error {
	if len(w.literal) == 0 {
		return nil
	}
	w.total += int64(len(w.literal))
	w.begin(kindLiteral, int64(len(w.literal)))
	if err := w.write(w.scratch); err != nil {
		return err
	}
	err := w.write(w.literal)
	w.literal = w.literal[:0]
	return err
}

func (w *Writer) begin(kind byte, size int64) {
	w.scratch = binary.AppendUvarint(append(w.scratch[:0], kind), uint64(size))
}

func (w *Writer) write(p []byte) error {
	if _, err := w.z.Write(p); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// after is where the content after one at offset is expected.
func after(offset, size int64) int64 { return (offset + size + align - 1) &^ (align - 1) }
