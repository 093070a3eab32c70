package tarstream

import (
	"bytes"
	"io"
)

// holeSize is the shortest run of zeros that is worth a hole, and the grain at which they are looked for.
const holeSize = 64 << 10

var zeros [holeSize]byte

// WriteSparse writes p at off and leaves out long runs of zeros, which a new file reads as zeros anyway.
// The caller sets the file's size.
func WriteSparse(w io.WriterAt, p []byte, off int64) error {
	for start := 0; start < len(p); {
		end := start
		for end < len(p) && !isHole(p[end:]) {
			end = min(end+holeSize, len(p))
		}
		if end > start {
			if _, err := w.WriteAt(p[start:end], off+int64(start)); err != nil {
				return err
			}
		}
		for start = end; start < len(p) && isHole(p[start:]); start += holeSize {
		}
	}
	return nil
}

// isHole says whether p begins with a full grain of zeros.
func isHole(p []byte) bool {
	return len(p) >= holeSize && p[0] == 0 && bytes.Equal(p[:holeSize], zeros[:])
}
