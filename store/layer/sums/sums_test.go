package sums

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// recorded writes two files of the given blocks, with holes where a block is 0, and their checksums into one file.
func recorded(t *testing.T, first, second []byte) (files [2]*os.File, kept *os.File) {
	t.Helper()
	dir := t.TempDir()
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	kept = create("sums")
	var last *Recorder
	for i, content := range [][]byte{first, second} {
		files[i] = create([]string{"a", "b"}[i])
		r := NewRecorder(files[i], kept, last)
		for at, b := range content {
			if b == 0 {
				continue
			}
			if _, err := r.WriteAt(bytes.Repeat([]byte{b}, BlockSize), int64(at)*BlockSize); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Truncate(int64(len(content)) * BlockSize); err != nil {
			t.Fatal(err)
		}
		last = r
	}
	if err := kept.Truncate(last.End()); err != nil {
		t.Fatal(err)
	}
	return files, kept
}

func TestCompare(t *testing.T) {
	first, second := bytes.Repeat([]byte{1, 2, 0, 0, 3}, 300), []byte{0, 0, 7, 8}
	files, kept := recorded(t, first, second)
	skip, count := int64(len(first)), int64(len(second))
	for _, f := range []struct {
		file         *os.File
		skip, blocks int64
	}{{files[0], 0, skip}, {files[1], skip, count}} {
		if bad, n, err := Compare(context.Background(), f.file, kept, f.skip, f.blocks, 10); bad != nil || n != 0 || err != nil {
			t.Errorf("what was written: %v, %d, %v", bad, n, err)
		}
	}
	for _, block := range []int64{0, 1, 2, 700, 702, 1499} {
		if _, err := files[0].WriteAt([]byte("x"), block*BlockSize+99); err != nil {
			t.Fatal(err)
		}
	}
	bad, n, err := Compare(context.Background(), files[0], kept, 0, skip, 3)
	if diff := cmp.Diff([]Range{{0, 3}, {700, 1}, {702, 1}}, bad); diff != "" || n != 6 || err != nil {
		t.Errorf("%s\n%d bad blocks, %v", diff, n, err)
	}
}

// TestHolesCostNothing compares a tebibyte.
func TestHolesCostNothing(t *testing.T) {
	files, kept := recorded(t, nil, nil)
	const blocks = 1 << 28
	if err := files[0].Truncate(blocks * BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := kept.Truncate(blocks * entrySize); err != nil {
		t.Fatal(err)
	}
	if _, n, err := Compare(context.Background(), files[0], kept, 0, blocks, 1); n != 0 || err != nil {
		t.Errorf("%d bad blocks, %v", n, err)
	}
	if _, err := files[0].WriteAt([]byte("x"), blocks*BlockSize-1); err != nil {
		t.Fatal(err)
	}
	bad, n, err := Compare(context.Background(), files[0], kept, 0, blocks, 1)
	if diff := cmp.Diff([]Range{{blocks - 1, 1}}, bad); diff != "" || n != 1 || err != nil {
		t.Errorf("%s\n%d bad blocks, %v", diff, n, err)
	}
}

func TestRecorderTakesWholeBlocks(t *testing.T) {
	files, kept := recorded(t, nil, nil)
	r := NewRecorder(files[0], kept, nil)
	for _, w := range []struct {
		n   int
		off int64
	}{{100, 0}, {BlockSize, 1}} {
		if _, err := r.WriteAt(make([]byte, w.n), w.off); err == nil {
			t.Errorf("%d bytes at %d were taken", w.n, w.off)
		}
	}
}

func TestWhole(t *testing.T) {
	buf, err := NewBuffer(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Close()
	for _, size := range []int{0, 1, 4096, 1<<20 - 1, 1 << 20, 3<<20 + 5} {
		content := bytes.Repeat([]byte("abc"), size/3+1)[:size]
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := OpenAt(unix.AT_FDCWD, path)
		if err != nil {
			t.Fatal(err)
		}
		sum, n, err := Whole(context.Background(), f, buf)
		if sum != Update(0, content) || n != int64(size) || err != nil {
			t.Errorf("%d bytes: %x, %d, %v", size, sum, n, err)
		}
		f.Close()
	}
}
