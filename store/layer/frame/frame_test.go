package frame

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// kept is where a test's contents lie.
type kept map[Place]string

func (k kept) WriteContent(w io.Writer, size int64, p Place) error {
	content, ok := k[p]
	if !ok || int64(len(content)) != size {
		return errors.New("no such content")
	}
	_, err := io.WriteString(w, content)
	return err
}

// example is a frame and its archive.
func example(t testing.TB) (frame []byte, archive string, contents kept) {
	t.Helper()
	contents = kept{{Offset: 0}: "one", {Offset: 4096}: strings.Repeat("two", 3000), {Offset: 1 << 20}: "three", {Path: "a/b"}: "four"}
	var b bytes.Buffer
	w, err := NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	literal := func(s string) {
		archive += s
		if err := w.Literal([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	content := func(p Place) {
		archive += contents[p]
		if err := w.Content(int64(len(contents[p])), p); err != nil {
			t.Fatal(err)
		}
	}
	literal("head")
	content(Place{Offset: 0})
	literal("")
	content(Place{Offset: 4096})
	literal(strings.Repeat("long", 100000))
	literal("more")
	content(Place{Path: "a/b"})
	content(Place{Offset: 1 << 20})
	literal("end")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), archive, contents
}

func TestCopy(t *testing.T) {
	frame, want, contents := example(t)
	var got strings.Builder
	if err := Copy(&got, bytes.NewReader(frame), contents); err != nil || got.String() != want {
		t.Errorf("%d bytes of %d, %v", got.Len(), len(want), err)
	}
	if size, err := Size(bytes.NewReader(frame)); err != nil || size != int64(len(want)) {
		t.Errorf("size %d instead of %d, %v", size, len(want), err)
	}
	for n := range frame {
		if err := Copy(io.Discard, bytes.NewReader(frame[:n]), contents); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes of %d: %v", n, len(frame), err)
		}
	}
	delete(contents, Place{Path: "a/b"})
	if err := Copy(io.Discard, bytes.NewReader(frame), contents); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("a content is missing: %v", err)
	}
}

// FuzzCopy feeds what a disk may have made of a frame.
func FuzzCopy(f *testing.F) {
	frame, _, contents := example(f)
	f.Add(frame)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, frame []byte) {
		_ = Copy(&short{left: 1 << 20}, bytes.NewReader(frame), contents)
	})
}

// short takes only so much.
type short struct{ left int }

func (s *short) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}
