package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"

	"github.com/criserver/criserver/store/layer/tarstream"
	"github.com/criserver/criserver/store/layer/tartest"
	"github.com/criserver/criserver/test/leak"
)

// readBack reads the image with go-erofs and compares every file with what the checker found.
func readBack(t testing.TB, meta, data []byte, nodes map[string]*node) {
	t.Helper()
	img, err := goerofs.Open(bytes.NewReader(meta), goerofs.WithExtraDevices(bytes.NewReader(data)))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		seen++
		n := nodes["/"+path]
		if path == "." {
			n = nodes["/"]
		}
		info, err := d.Info()
		if err != nil || n == nil {
			return fmt.Errorf("%q: %v, %w", path, n, err)
		}
		if st, ok := info.Sys().(*goerofs.Stat); !ok || st.UID != n.uid || st.GID != n.gid || int64(st.Mtime) != n.mtime ||
			st.MtimeNs != n.nsec || st.Nlink != int(n.nlink) || len(st.Xattrs) != len(n.xattrs) {
			return fmt.Errorf("%q: %+v, want %v", path, st, n)
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		b, err := fs.ReadFile(img, path)
		if err != nil || string(b) != n.content {
			return fmt.Errorf("%q: %d bytes of %d, %w", path, len(b), len(n.content), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(nodes) {
		t.Fatalf("%d files, want %d", seen, len(nodes))
	}
}

// checked builds an image and looks at all of it.
func checked(t *testing.T, headers ...tar.Header) (meta, data *file, nodes map[string]*node) {
	t.Helper()
	meta, data, err := build(tartest.Archive(t, headers...), tarstream.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if nodes, err = check(meta.b, data.b); err != nil {
		t.Fatal(err)
	}
	return meta, data, nodes
}

func TestOthersReadTheImage(t *testing.T) {
	var headers []tar.Header
	for i := range 400 {
		headers = append(headers, tar.Header{
			Name: fmt.Sprintf("d%d/%s", i%7, strings.Repeat("n", 1+i%250)), Mode: int64(i), Uid: i * 300, Gid: i,
			Size: int64(i * i % 9000), ModTime: time.Unix(int64(1.7e9)+int64(i%3), int64(i)),
			PAXRecords: map[string]string{"SCHILY.xattr.user.n": strings.Repeat("x", i%5*1000)},
		})
	}
	meta, data, nodes := checked(t, headers...)
	readBack(t, meta.b, data.b, nodes)
	findFiles(t, meta.b, data.b, nodes)
	fsck(t, meta.b, data.b)
}

// TestCompactInodes expects 32-byte inodes where one mtime is that of most files, and the same answers.
func TestCompactInodes(t *testing.T) {
	sizes := map[string]int{}
	for name, times := range map[string]int64{"same": 1, "different": 1000} {
		var headers []tar.Header
		for i := range 1000 {
			headers = append(headers, tar.Header{Name: fmt.Sprint("f", i), ModTime: time.Unix(1.7e9+int64(i)%times, 5), Size: 1})
		}
		meta, data, nodes := checked(t, headers...)
		if n := nodes["/f999"]; n.mtime != 1.7e9+999%times || n.nsec != 5 {
			t.Errorf("%s: mtime %d.%d", name, n.mtime, n.nsec)
		}
		fsck(t, meta.b, data.b)
		sizes[name] = len(meta.b)
	}
	if saved := sizes["different"] - sizes["same"]; saved < 32*1000 {
		t.Errorf("compact inodes save %d bytes of %d", saved, sizes["different"])
	}
}

func TestSameLayerSameImage(t *testing.T) {
	var headers []tar.Header
	for i := range 500 {
		headers = append(headers, tar.Header{Name: fmt.Sprintf("%d/%d", i%9, i), Size: int64(i), PAXRecords: map[string]string{
			"SCHILY.xattr.user.a": fmt.Sprint(i), "SCHILY.xattr.user.b": "b", "SCHILY.xattr.user.c": "c"}})
	}
	stream := tartest.Archive(t, headers...)
	m1, d1, err1 := build(stream, tarstream.DefaultLimits())
	m2, d2, err2 := build(stream, tarstream.DefaultLimits())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m1.b, m2.b) || !bytes.Equal(d1.b, d2.b) {
		t.Error("two images of one layer differ")
	}
}

// failing refuses to write beyond a size.
type failing struct {
	file
	limit int64
}

var errFull = errors.New("disk full")

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.limit {
		return 0, errFull
	}
	return f.file.WriteAt(p, off)
}

func TestWriteErrorsComeBack(t *testing.T) {
	leak.Check(t, leak.Only(leak.Goroutine))
	stream := tartest.Archive(t, tar.Header{Name: "a", Size: 9 << 20}, tar.Header{Name: "b", Size: 100})
	for name, limits := range map[string][2]int64{"data at once": {1 << 30, 0}, "data late": {1 << 30, 9 << 20}, "metadata": {0, 1 << 30}} {
		w := NewWriter(&failing{limit: limits[0]}, &failing{limit: limits[1]}, tarstream.DefaultLimits())
		err := w.Unpack(tarstream.NewReader(ctx, bytes.NewReader(stream), tarstream.DefaultLimits()))
		if err == nil {
			_, err = w.Finish([16]byte{})
		}
		if !errors.Is(err, errFull) {
			t.Errorf("%s: error %v", name, err)
		}
		w.Abort()
		if err := w.Add(&tarstream.Entry{Kind: tarstream.Dir}, nil); err == nil {
			t.Errorf("%s: a dead writer takes entries", name)
		}
	}
}

// A link of a few bytes in a compressed archive may be long, and is kept until the end.
func TestLinkTargetsAreBounded(t *testing.T) {
	limits := tarstream.DefaultLimits()
	limits.Text = 20000
	var headers []tar.Header
	for i := range 6 {
		headers = append(headers, tar.Header{Name: fmt.Sprint("l", i), Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x/", 2000)})
	}
	_, _, err := build(tartest.Archive(t, headers...), limits)
	if !errors.Is(err, tarstream.ErrInvalid) || !strings.Contains(err.Error(), "more than the limit of 20000 bytes") {
		t.Error(err)
	}
	if _, _, err := build(tartest.Archive(t, headers[:4]...), limits); err != nil {
		t.Error(err)
	}
}

// TestMemoryPerEntry holds the promise of the package comment.
func TestMemoryPerEntry(t *testing.T) {
	const entries = 100000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	w := NewWriter(nowhere{}, nowhere{}, tarstream.DefaultLimits())
	defer w.Abort()
	e := tarstream.Entry{Kind: tarstream.Regular, Perm: 0o644, Size: 10}
	content := strings.NewReader("")
	for i := range entries {
		e.Path = fmt.Sprintf("usr/share/d%03d/file-%07d", i%500, i)
		content.Reset("0123456789")
		if err := w.Add(&e, content); err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before - bufferCount*bufferSize) / entries
	if _, err := w.Finish([16]byte{}); err != nil {
		t.Fatal(err)
	}
	after := (heap() - before) / entries
	t.Logf("%d bytes an entry while unpacking, %d at the end", each, after)
	if each > 115 || after > 125 {
		t.Errorf("%d bytes an entry while unpacking, %d at the end", each, after)
	}
	runtime.KeepAlive(w)
}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nowhere) Truncate(int64) error                   { return nil }

// BenchmarkAdd measures the writer alone.
func BenchmarkAdd(b *testing.B) {
	w := NewWriter(nowhere{}, nowhere{}, tarstream.Limits{Entries: 1 << 30, Bytes: 1 << 50, NameBytes: 255, Depth: 100, Text: 1 << 31})
	defer w.Abort()
	e := tarstream.Entry{Kind: tarstream.Regular, Perm: 0o644, Size: 10}
	content := strings.NewReader("")
	i := 0
	for b.Loop() {
		e.Path = fmt.Sprintf("usr/share/d%03d/file-%07d", i/200, i)
		i++
		content.Reset("0123456789")
		if err := w.Add(&e, content); err != nil {
			b.Fatal(err)
		}
	}
}
