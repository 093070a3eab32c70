// Package tartest makes archives for the tests of layers.
package tartest

import (
	"archive/tar"
	"bytes"
	"testing"
)

// Archive makes a tar of headers. The content of a file is its Size times the first letter of its name; directories have
// mode 0755 and all others 0644 unless they say something else.
func Archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		switch {
		case h.Mode != 0 || h.Typeflag == tar.TypeXGlobalHeader:
		case h.Typeflag == tar.TypeDir:
			h.Mode = 0o755
		default:
			h.Mode = 0o644
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(bytes.Repeat([]byte{h.Name[0]}, int(h.Size))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
