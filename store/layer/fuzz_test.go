package layer

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/criserver/criserver/store/layer/tarstream"
	"github.com/criserver/criserver/store/layer/tartest"
)

// FuzzFormatsAgree unpacks damaged archives of scripts with both writers: both must refuse them, or show the same files
// through the kernel.
func FuzzFormatsAgree(f *testing.F) {
	f.Add("0 d/f xxxxxxxxx user.a b\n1 h d/f\n2 d /x\n0 d/.wh.f\n5 d/f/\n0 d/.wh..wh..opq", uint16(0), []byte{})
	f.Add("3 c\n0 c/d/e\n5 ../c/d/\n6 c/d/e\n2 l l\n0 l/f\n1 x c/d/e\n1 c c/d/e", uint16(0), []byte{})
	f.Add("5 ./ x trusted.a a security.b b\n2 a ../../b\n0 a/c xx\n0 .wh.b\n4 b/d\n0 a", uint16(0), []byte{})
	f.Add("2 l d\n0 d/f xxxxxx\n1 l/g d/f\n0 d\n5 d/\n0 l/h x\n0 .wh.d\n1 d/i l/h", uint16(0), []byte{})
	f.Add("0 a x\n5 a/\n0 a/b x\n0 a x\n1 c a", uint16(156), []byte("5"))
	limits := tarstream.DefaultLimits()
	limits.Bytes, limits.Entries = 1<<20, 300
	stores := map[Format]*Store{}
	for _, format := range []Format{EROFS, Overlay} {
		stores[format] = open(f, Config{Root: f.TempDir(), Format: format, Limits: limits})
	}
	f.Fuzz(func(t *testing.T, script string, off uint16, patch []byte) {
		stream := tartest.Patch(tartest.Script(script), int(off), patch)
		image, err := fuzzed(t, stores[EROFS], stream)
		dir, dirErr := fuzzed(t, stores[Overlay], stream)
		if (err == nil) != (dirErr == nil) {
			t.Fatalf("one refuses it: %v\n%v", err, dirErr)
		}
		if diff := cmp.Diff(image, dir); diff != "" {
			t.Errorf("-image +directory:\n%s", diff)
		}
	})
}

// fuzzed gives what s makes of a stream, and leaves nothing.
func fuzzed(t *testing.T, s *Store, stream []byte) (files map[string]string, err error) {
	t.Helper()
	w, err := s.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(stream)); err != nil {
		if !errors.Is(err, tarstream.ErrInvalid) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if err := w.Discard(); err != nil {
			t.Fatal(err)
		}
		left, _ := os.ReadDir(s.path("tmp"))
		if len(left) > 0 {
			t.Fatalf("tmp has %v", left)
		}
		return nil, err
	}
	l, err := w.Commit("sha256:0000000000000000000000000000000000000000000000000000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	f, release, err := s.Lower(l.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	files = show(t, procPath(f))
	f.Close()
	release()
	if err := s.Verify(ctx, l.DiffID); err != nil {
		t.Error(err)
	}
	if _, err := s.Remove(l.DiffID); err != nil {
		t.Fatal(err)
	}
	return files, nil
}
