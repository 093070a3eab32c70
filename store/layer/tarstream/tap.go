package tarstream

import (
	"archive/tar"
	"io"
	"strings"

	"github.com/criserver/criserver/store/layer/frame"
)

// tap passes the archive on and gives the frame what the store does not keep.
type tap struct {
	r      io.Reader
	frame  *frame.Writer // nil: not wanted
	read   int64         // bytes
	kept   bool          // what is read now goes to the store
	passed int64         // bytes of the content that went there
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.read += int64(n)
	switch {
	case t.frame == nil:
	case t.kept:
		t.passed += int64(n)
	default:
		if failed := t.frame.Literal(p[:n]); failed != nil {
			return 0, failed
		}
	}
	return n, err
}

// place records the content of the last entry, as far as it was read: what is left of it becomes part of the frame.
func (r *Reader) place() error {
	e, size := r.entry, r.tap.passed
	r.entry, r.tap.passed = nil, 0
	if size == 0 {
		return nil
	}
	return r.tap.frame.Content(size, e.Kept)
}

// sparse says whether the archive has not the whole content of h, but a map of its holes and the rest.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
