package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// scripted makes an archive of a script with an entry a line: a letter for its type, then words; name, size or link
// target, extended attributes. Random bytes of an archive would hardly get past the checksums of its headers.
func scripted(script string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range strings.Split(script, "\n") {
		words := strings.Split(line, " ")
		if len(words) < 2 || words[0] == "" {
			continue
		}
		h := tar.Header{Typeflag: words[0][0], Name: words[1], Mode: int64(len(line)), Uid: len(words), Format: tar.FormatPAX,
			ModTime: time.Unix(int64(len(words[1])%2), 0), PAXRecords: map[string]string{}}
		if len(words) > 2 {
			h.Linkname = words[2]
			if h.Typeflag == tar.TypeReg {
				h.Linkname, h.Size = "", int64(len(words[2])*len(words[2]))
			}
		}
		for i := 4; i < len(words); i += 2 {
			h.PAXRecords["SCHILY.xattr."+words[i-1]] = words[i]
		}
		if w.WriteHeader(&h) == nil && h.Size > 0 {
			_, _ = w.Write(bytes.Repeat([]byte{'x'}, int(h.Size))) // a short archive is a case too
		}
	}
	_ = w.Close()
	return b.Bytes()
}

func FuzzImage(f *testing.F) {
	f.Add("0 d/f xxxxxxxxxxxxxxxxxx user.a b\n1 h d/f\n2 d /x\n0 d/.wh.f\n5 d/f/\n0 d/.wh..wh..opq")
	f.Add("3 c\n0 c/d/e\n5 ../c/d/\n6 c/d/e\n2 l l\n0 l/f\n1 x c/d/e\n1 c c/d/e")
	f.Add("5 ./ x trusted.a a security.b b\n2 a ../../b\n0 a/c xx\n0 .wh.b\n4 b/d\n0 a")
	limits := tarstream.DefaultLimits()
	limits.Bytes, limits.Entries = 1<<20, 500
	f.Fuzz(func(t *testing.T, script string) {
		for _, stream := range [][]byte{scripted(script), []byte(script)} {
			meta, data, err := build(stream, limits)
			if err != nil {
				if !errors.Is(err, tarstream.ErrInvalid) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatal(err)
				}
				continue
			}
			nodes, err := check(meta.b, data.b)
			if err != nil {
				t.Fatal(err)
			}
			readBack(t, meta.b, data.b, nodes)
		}
	})
}
