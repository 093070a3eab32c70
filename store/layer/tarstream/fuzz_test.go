package tarstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/criserver/criserver/store/layer/tartest"
)

// FuzzReader reads archives of scripts of which a part was overwritten, with checksums of headers that are right again.
func FuzzReader(f *testing.F) {
	f.Add("0 d/f xxxxxxxxx user.a b\n1 h d/f\n2 d /x\n0 d/.wh.f\n0 .wh..wh..opq", uint16(0), []byte{})
	f.Add("0 a xxxxxx\n0 b x\n3 c", uint16(124), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))     // a negative size
	f.Add("0 a x\n0 b x", uint16(124), []byte("\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"))               // a size of exabytes
	f.Add("0 a xxxxxxxxx user.a b\n0 b", uint16(512), []byte("9999 path=../../x\n"))                             // a record that is too long
	f.Add("0 a xxxxxxxxx user.a b\n0 b", uint16(512), []byte("18 path=../../etc\n10 size=9\n"))                  // a path out
	f.Add("0 a xxxx\n0 b", uint16(156), []byte("S"))                                                             // an old sparse file
	f.Add("0 a xxxx\n0 b", uint16(156), []byte("L"))                                                             // a long name
	f.Add("0 a xxxx user.a b\n0 b", uint16(512), []byte("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"))       // a sparse map
	f.Add("3 a\n4 b\n6 c\n5 ./\n2 l ../../x\n1 h /../x", uint16(329), []byte("7777777\x007777777\x00"))          // a device number
	f.Add(strings.Repeat("0 "+strings.Repeat("n/", 30)+"f\n", 3), uint16(1000), bytes.Repeat([]byte{0xff}, 100)) // damage
	limits := DefaultLimits()
	limits.Bytes, limits.Entries, limits.PathBytes, limits.NameBytes, limits.Depth, limits.XattrBytes = 1<<20, 50, 400, 100, 40, 1000
	f.Fuzz(func(t *testing.T, script string, off uint16, patch []byte) {
		stream := tartest.Patch(tartest.Script(script), int(off), patch)
		r := NewReader(context.Background(), bytes.NewReader(stream), limits)
		total := int64(0)
		err := r.Each(func(e *Entry, content io.Reader) error {
			inside(t, e, limits)
			if e.Kind != Regular {
				return nil
			}
			n, err := io.Copy(io.Discard, content)
			if total += n; err == nil && n != e.Size || total > limits.Bytes {
				t.Errorf("%q: %d bytes of %d, %d in all", e.Name, n, e.Size, total)
			}
			return err
		})
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v", err)
		}
		if err == nil && r.Bytes() != int64(len(stream)) {
			t.Errorf("read %d of %d bytes", r.Bytes(), len(stream))
		}
	})
}

// inside expects that an entry keeps the promises of Entry and Limits.
func inside(t *testing.T, e *Entry, l Limits) {
	paths := []string{e.Path}
	if e.Kind == Hardlink {
		paths = append(paths, e.Target)
	}
	for _, p := range paths {
		if p != "" && (path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "/") || strings.HasPrefix(p, "../")) ||
			strings.ContainsRune(p, 0) || len(p) > l.PathBytes || strings.Count(p, "/") > l.Depth {
			t.Errorf("%q: path %q", e.Name, p)
		}
		for c := range strings.SplitSeq(p, "/") {
			if len(c) > l.NameBytes {
				t.Errorf("%q: name %q", e.Name, c)
			}
		}
	}
	if e.Size < 0 || e.UID > maxID || e.GID > maxID || e.Major > maxMajor || e.Minor > maxMinor || e.Perm&^0o7777 != 0 {
		t.Errorf("%q: %+v", e.Name, e)
	}
	size := 0
	for _, x := range e.Xattrs {
		size += len(x.Name) + len(x.Value)
		if strings.HasPrefix(x.Name, "trusted.overlay.") || x.Name == SELinux || strings.ContainsRune(x.Name, 0) {
			t.Errorf("%q: xattr %q", e.Name, x.Name)
		}
	}
	if size > l.XattrBytes {
		t.Errorf("%q: %d bytes of xattrs", e.Name, size)
	}
}
