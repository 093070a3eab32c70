package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
)

// manyFiles makes a layer like a distribution's root: files with the sizes of one (half below 3 KiB, a few of
// megabytes) and contents that compress to about 40 %.
func manyFiles(t testing.TB, files int) (plain []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+r.IntN(12))
		for j := range words[i] {
			words[i][j] = byte(r.Uint32())
		}
	}
	for i := range files {
		dir := fmt.Sprintf("usr/share/d%02d/e%d", i%97, i%13)
		if i < 97*13 {
			if err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1.7e9, 0)}); err != nil {
				t.Fatal(err)
			}
		}
		size := int(100 * (1 << (r.IntN(11))))
		if r.IntN(300) == 0 {
			size *= 20
		}
		content := make([]byte, 0, size+16)
		for len(content) < size {
			content = append(content, words[min(r.IntN(4096), r.IntN(4096))]...)
		}
		h := tar.Header{Name: fmt.Sprintf("%s/file-%d.txt", dir, i), Mode: 0o644, Size: int64(size), ModTime: time.Unix(1.7e9+int64(i), 0)}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content[:size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t testing.TB, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// inflated is what a pull does before it unpacks: both digests, one goroutine.
func inflated(t testing.TB, packed []byte) (r io.Reader, diffID hash.Hash) {
	t.Helper()
	z, err := gzip.NewReader(io.TeeReader(bytes.NewReader(packed), sha256.New()))
	if err != nil {
		t.Fatal(err)
	}
	diffID = sha256.New()
	return io.TeeReader(z, diffID), diffID
}

// cpu is the processor time of this process in milliseconds; on a busy machine it tells more than the clock.
func cpu(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e6
}

// BenchmarkUnpack compares unpacking a gzip layer of 15,000 files with only inflating and hashing it.
func BenchmarkUnpack(b *testing.B) {
	plain := manyFiles(b, 15000)
	packed := compress(b, plain)
	b.Logf("%d MB, %d MB compressed", len(plain)>>20, len(packed)>>20)
	b.Run("inflate", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		start := cpu(b)
		for b.Loop() {
			r, _ := inflated(b, packed)
			if _, err := io.Copy(io.Discard, r); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((cpu(b)-start)/float64(b.N), "cpu-ms/op")
	})
	for _, format := range []Format{EROFS, Overlay} {
		s := open(b, Config{Root: b.TempDir(), Format: format})
		b.Run(string(format), func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			start := cpu(b)
			for b.Loop() {
				w, err := s.Begin(ctx)
				if err != nil {
					b.Fatal(err)
				}
				r, sum := inflated(b, packed)
				if _, err := w.ReadFrom(r); err != nil {
					b.Fatal(err)
				}
				id := digest.NewDigest(digest.SHA256, sum)
				if _, err := w.Commit(id); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if _, err := s.Remove(id); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric((cpu(b)-start)/float64(b.N), "cpu-ms/op") // removal included
		})
		b.Run(string(format)+" plain", func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				id := add(b, s, plain)
				b.StopTimer()
				if _, err := s.Remove(id); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRoot builds and removes the root of a container.
func BenchmarkRoot(b *testing.B) {
	for _, format := range []Format{EROFS, Overlay} {
		s := open(b, Config{Root: b.TempDir(), Format: format})
		var layers []digest.Digest
		for i := range 60 {
			layers = append(layers, add(b, s, tartest.Archive(b, tar.Header{Name: fmt.Sprintf("etc/f%d", i), Size: 1})))
		}
		for _, n := range []int{1, 10, 60} {
			b.Run(fmt.Sprintf("%s of %d layers", format, n), func(b *testing.B) {
				for b.Loop() {
					root, err := s.Root(ctx, "c", layers[:n], RootOptions{})
					if err != nil {
						b.Fatal(err)
					}
					if err := errors.Join(root.Close(), s.RemoveRoot("c")); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
