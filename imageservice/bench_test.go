package imageservice

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

const (
	benchFiles  = 15_000
	benchLayers = 7
	benchBytes  = 300 << 20
)

// benchImage is made once of the files that this machine has: real names, sizes and contents.
var benchImage = sync.OnceValue(func() *registry.Image {
	var t fakeTB
	layers := make([][]registry.File, benchLayers)
	files, size := 0, int64(0)
	for _, root := range []string{"/usr/lib", "/usr/share", "/usr/local/go/src", "/usr/bin"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // as much as can be read
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			info, err := d.Info()
			if err != nil || info.Size() > 8<<20 {
				return nil
			}
			if files >= benchFiles || size > benchBytes {
				return fs.SkipAll
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			i := files * benchLayers / benchFiles
			layers[i] = append(layers[i], registry.File{Header: tar.Header{Name: path[1:], Mode: int64(info.Mode().Perm())}, Body: string(data)})
			files++
			size += info.Size()
			return nil
		})
	}
	var spec registry.Spec
	for _, l := range layers {
		spec.Layers = append(spec.Layers, registry.Layer{Compression: "gzip", Files: l})
	}
	return registry.Build(t, spec)
})

// fakeTB is for what is made once for several benchmarks.
type fakeTB struct{ testing.TB }

func (fakeTB) Helper()           {}
func (fakeTB) Fatal(args ...any) { panic(args) }

// inflateAndHash does what no pull can do without: both digests and inflating, on all cores.
func inflateAndHash(tb testing.TB, img *registry.Image) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, desc := range img.Layers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			blob := img.Blobs[desc.Digest]
			if digest.FromBytes(blob) != desc.Digest {
				tb.Error("digest")
			}
			r, err := gzip.NewReader(bytes.NewReader(blob))
			if err != nil {
				tb.Error(err)
				return
			}
			if _, err := io.Copy(sha256.New(), r); err != nil {
				tb.Error(err)
			}
		})
	}
	wg.Wait()
}

// cpuTime is what this process has used, in user and kernel mode: the registry is another one, and so are neighbours.
func cpuTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPull(b *testing.B) {
	img := benchImage()
	reg := registry.Start(b, registry.Options{})
	reg.PushImage(b, "bench", "v1", img)
	var compressed int64
	for _, l := range img.Layers {
		compressed += l.Size
	}
	for _, format := range []layer.Format{layer.EROFS, layer.Overlay} {
		b.Run(string(format), func(b *testing.B) {
			dir := b.TempDir()
			store, err := layer.Open(layer.Config{Root: filepath.Join(dir, "store"), Format: format})
			if err != nil {
				b.Skip(err)
			}
			s, err := New(Config{Dir: filepath.Join(dir, "images"), Layers: store})
			if err != nil {
				b.Fatal(err)
			}
			n := &node{Service: s, store: store, dir: dir}
			b.Cleanup(n.stop)
			var alone, removing, aloneCPU, pullCPU time.Duration
			b.SetBytes(compressed)
			for b.Loop() {
				cpu := cpuTime(b)
				n.pull(b, reg.Addr+"/bench:v1")
				b.StopTimer()
				pullCPU += cpuTime(b) - cpu
				start := time.Now()
				if err := n.Remove(b.Context(), string(img.ID)); err != nil {
					b.Fatal(err)
				}
				removing += time.Since(start)
				start, cpu = time.Now(), cpuTime(b)
				inflateAndHash(b, img)
				alone += time.Since(start)
				aloneCPU += cpuTime(b) - cpu
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()/alone.Seconds(), "x-of-inflate-and-hash")
			b.ReportMetric(pullCPU.Seconds()/aloneCPU.Seconds(), "x-of-its-cpu")
			b.ReportMetric(float64(removing.Milliseconds())/float64(b.N), "ms/remove")
		})
	}
}
