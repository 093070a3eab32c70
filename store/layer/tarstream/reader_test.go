package tarstream

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/criserver/criserver/store/layer/tartest"
)

func TestEntries(t *testing.T) {
	xattrs := map[string]string{
		"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "1", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.x": "3",
		"SCHILY.xattr.security.selinux": "label", "SCHILY.xattr.com.apple.provenance": "apple", "SCHILY.xattr.user.": "empty", "SCHILY.acl.access": "text",
	}
	rows := []struct {
		header tar.Header
		want   string // kind, path, target, extended attributes; "" if it is skipped
	}{
		{tar.Header{Name: "a/./b/../c"}, "2 a/c  []"},
		{tar.Header{Name: "../../a"}, `invalid layer: entry "../../a": path leads out of the layer`},
		{tar.Header{Name: "/a/../../b"}, `invalid layer: entry "/a/../../b": path leads out of the layer`},
		{tar.Header{Name: "/a//b/", Typeflag: tar.TypeDir}, "1 a/b  []"},
		{tar.Header{Name: "./", Typeflag: tar.TypeDir}, "1   []"},
		{tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../x"}, "3 l ../../x []"},
		{tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/x/../y"}, "4 h y []"},
		{tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1}, "5 c  []"},
		{tar.Header{Name: "w", Typeflag: tar.TypeChar}, "8 w  []"},
		{tar.Header{Name: "d/.wh.x"}, "8 d/x  []"},
		{tar.Header{Name: ".wh.x", Typeflag: tar.TypeLink, Linkname: ".wh..wh.aufs"}, "8 x  []"},
		{tar.Header{Name: "d/.wh..wh..opq"}, "9 d  []"},
		{tar.Header{Name: ".wh..wh..opq"}, "9   []"},
		{tar.Header{Name: ".wh..wh.aufs"}, ""},
		{tar.Header{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}, ""},
		{tar.Header{Name: "x", PAXRecords: xattrs}, "2 x  [{trusted.x 3} {user.a 1} {user.b 2}]"},
		{tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "y", PAXRecords: xattrs}, "3 x y [{trusted.x 3}]"},
	}
	for _, row := range rows {
		r := NewReader(context.Background(), bytes.NewReader(tartest.Archive(t, row.header)), DefaultLimits())
		got := ""
		if e, err := r.Next(); err == nil {
			got = fmt.Sprintf("%d %s %s %v", e.Kind, e.Path, e.Target, e.Xattrs)
		} else if !errors.Is(err, io.EOF) {
			got = err.Error()
		}
		if got != row.want {
			t.Errorf("%c %q\n got %s\nwant %s", row.header.Typeflag, row.header.Name, got, row.want)
		}
	}
}

func TestReadsToTheEndOfTheStream(t *testing.T) {
	stream := append(tartest.Archive(t, tar.Header{Name: "a", Size: 5000}), make([]byte, 300<<10)...)
	in := bytes.NewReader(stream)
	r := NewReader(context.Background(), in, DefaultLimits())
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if in.Len() != 0 || r.Bytes() != int64(len(stream)) {
		t.Errorf("%d bytes are unread, %d were counted of %d", in.Len(), r.Bytes(), len(stream))
	}
	limits := DefaultLimits()
	limits.Bytes = int64(len(stream)) - 1
	r = NewReader(context.Background(), bytes.NewReader(stream), limits)
	_, err := r.Next()
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "archive is longer than the limit of") {
		t.Errorf("long archive: %v", err)
	}
}

type write struct{ off, n int }

type writes struct {
	list []write
	b    []byte
}

func (w *writes) WriteAt(p []byte, off int64) (int, error) {
	w.list = append(w.list, write{int(off), len(p)})
	return copy(w.b[off:], p), nil
}

func TestWriteSparse(t *testing.T) {
	const k = 1 << 10
	rows := []struct {
		size  int
		bytes []int // that are not zero
		want  []write
	}{
		{0, nil, nil},
		{100, nil, []write{{0, 100}}},
		{64 * k, nil, nil},
		{64*k + 1, nil, []write{{64 * k, 1}}},
		{256 * k, []int{128 * k}, []write{{128 * k, 64 * k}}},
		{256 * k, []int{0, 64 * k, 255 * k}, []write{{0, 128 * k}, {192 * k, 64 * k}}},
	}
	for _, row := range rows {
		p := make([]byte, row.size)
		for _, i := range row.bytes {
			p[i] = 1
		}
		w := &writes{b: make([]byte, row.size)}
		if err := WriteSparse(w, p, 0); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(row.want, w.list, cmp.AllowUnexported(write{})); diff != "" || !bytes.Equal(w.b, p) {
			t.Errorf("%d bytes, set %v: %s", row.size, row.bytes, diff)
		}
	}
}

func TestQuote(t *testing.T) {
	if got := Quote("a\n\xff"); got != `"a\n\xff"` {
		t.Error(got)
	}
	if got := Quote(strings.Repeat("x", 4000)); len(got) > 250 || !strings.Contains(got, `"..."`) {
		t.Error(got)
	}
}
