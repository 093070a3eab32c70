package erofs

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/criserver/criserver/store/layer/tarstream"
	"github.com/criserver/criserver/store/layer/tartest"
)

func FuzzImage(f *testing.F) {
	f.Add("0 d/f xxxxxxxxxxxxxxxxxx user.a b\n1 h d/f\n2 d /x\n0 d/.wh.f\n5 d/f/\n0 d/.wh..wh..opq")
	f.Add("3 c\n0 c/d/e\n5 ../c/d/\n6 c/d/e\n2 l l\n0 l/f\n1 x c/d/e\n1 c c/d/e")
	f.Add("5 ./ x trusted.a a security.b b\n2 a ../../b\n0 a/c xx\n0 .wh.b\n4 b/d\n0 a")
	limits := tarstream.DefaultLimits()
	limits.Bytes, limits.Entries = 1<<20, 500
	f.Fuzz(func(t *testing.T, script string) {
		for _, stream := range [][]byte{tartest.Script(script), []byte(script)} {
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
			findFiles(t, meta.b, data.b, nodes)
		}
	})
}

// findFiles expects that Files has every name with contents and where they are.
func findFiles(t testing.TB, meta, data []byte, nodes map[string]*node) {
	t.Helper()
	want := 0
	for _, n := range nodes {
		if n.mode&modeFmt == modeReg && n.content != "" {
			want++
		}
	}
	err := Files(bytes.NewReader(meta), int64(len(meta)), func(path string, first, blocks int64) error {
		want--
		n := nodes["/"+path]
		if got := data[first*blockSize : (first+blocks)*blockSize]; n == nil || !bytes.HasPrefix(got, []byte(n.content)) || len(got) >= len(n.content)+blockSize {
			t.Errorf("%q: %d blocks at %d are not its contents", path, blocks, first)
		}
		return nil
	})
	if err != nil || want != 0 {
		t.Errorf("%d files were not found, %v", want, err)
	}
}

// FuzzFiles reads metadata that a disk has changed.
func FuzzFiles(f *testing.F) {
	meta, _, err := build(tartest.Script("0 d/f xxxxxxxxxxxxxxxxxx user.a b\n5 e/\n0 e/g x\n2 l d\n1 h d/f"), tarstream.DefaultLimits())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(superOffset+14), uint32(0xffff))
	f.Add(uint16(firstInode), uint32(0xffffffff))
	f.Add(uint16(firstInode+8), uint32(1<<20))
	f.Add(uint16(firstInode+compactSize), uint32(firstInode/nidUnit))
	f.Fuzz(func(t *testing.T, off uint16, value uint32) {
		b := append(bytes.Clone(meta.b), 0, 0, 0, 0)
		le.PutUint32(b[int(off)%len(meta.b):], value)
		names := 0
		err := Files(bytes.NewReader(b), int64(len(meta.b)), func(string, int64, int64) error { names++; return nil })
		if err != nil && !errors.Is(err, errDamaged) {
			t.Error(err)
		}
		if names > len(meta.b) {
			t.Errorf("%d names", names)
		}
	})
}
