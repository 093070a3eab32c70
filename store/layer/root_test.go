package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
)

func TestManyLowers(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		var layers []digest.Digest
		for i := range 501 {
			layers = append(layers, add(t, s, tartest.Archive(t, tar.Header{Name: fmt.Sprint("f", i), Size: 1}, tar.Header{Name: "top", Size: int64(i)})))
		}
		if _, err := s.Root(ctx, "c", layers, RootOptions{}); err == nil || !strings.Contains(err.Error(), "501 layers, overlayfs takes 500") {
			t.Errorf("501 layers: %v", err)
		}
		ids := []IDMap{{0, 100000, 65536}}
		for name, o := range map[string]RootOptions{"plain": {}, "mapped": {UIDs: ids, GIDs: ids}} {
			root, err := s.Root(ctx, name, layers[:500], o)
			if err != nil {
				t.Fatal(err)
			}
			if st, err := os.Stat(at(root, "top")); err != nil || st.Size() != 499 {
				t.Errorf("%s: %v %v", name, st, err)
			}
			if names, err := os.ReadDir(procPath(root)); err != nil || len(names) != 501 {
				t.Errorf("%s: %d names, %v", name, len(names), err)
			}
			root.Close()
		}
	})
}

func TestRootFailureLeavesNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "f"}))
		missing := digest.FromString("missing")
		if _, err := s.Root(ctx, "c", []digest.Digest{id, missing}, RootOptions{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), string(missing)) {
			t.Errorf("missing layer: %v", err)
		}
		for _, bad := range []string{"", ".", "..", "a/b", strings.Repeat("x", 201)} {
			if _, err := s.Root(ctx, bad, nil, RootOptions{}); err == nil {
				t.Errorf("ID %q was taken", bad)
			}
		}
		ids := []IDMap{{1, 100000, 65536}}
		if _, err := s.Root(ctx, "c", []digest.Digest{id}, RootOptions{UIDs: ids, GIDs: ids}); err == nil || !strings.Contains(err.Error(), "uid map: 0 is not mapped") {
			t.Errorf("map without 0: %v", err)
		}
		if _, err := s.Root(ctx, "c", []digest.Digest{id}, RootOptions{Label: "no\x01label"}); err == nil || !strings.Contains(err.Error(), "overlay") {
			t.Errorf("bad label: %v", err)
		}
		empty(t, s, "containers", "trash")
		if _, err := s.Remove(id); err != nil {
			t.Errorf("layer stays in use: %v", err)
		}
	})
}

// TestOverlayErrorsTellWhy expects the words of the kernel in an error.
func TestOverlayErrorsTellWhy(t *testing.T) {
	s := open(t, Config{Root: t.TempDir(), Format: Overlay, roots: rootsDetached})
	if err := s.makeContainerDir("c", nil, "", RootOptions{}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(s.path("file"))
	if err != nil {
		t.Fatal(err)
	}
	m := &lowerMount{file: f}
	defer m.Close()
	_, err = s.overlay("c", []*lowerMount{m}, "", RootOptions{})
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "overlay: lowerdir+: invalid argument (e overlay: ") {
		t.Errorf("error %v", err)
	}
}

// TestKeptMountSharesPageCache lets a mount survive the store, as a pod's pause does, and expects the same file
// system from the next store.
func TestKeptMountSharesPageCache(t *testing.T) {
	s := open(t, Config{Root: t.TempDir(), Format: EROFS, roots: rootsDetached})
	id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 4096}))
	other := add(t, s, tartest.Archive(t, tar.Header{Name: "g", Size: 4096}))
	if f, err := s.Kept(id); f != nil || err != nil {
		t.Errorf("a layer that is not mounted: %v %v", f, err)
	}
	root, err := s.Root(ctx, "c", []digest.Digest{other, id}, RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	root.Close()
	kept, err := s.Kept(id)
	if err != nil || kept == nil {
		t.Fatal(kept, err)
	}
	second, err := s.Kept(other)
	if err != nil || second == nil {
		t.Fatal(second, err)
	}
	dev := device(t, at(kept, "f"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	next := reopen(t, s, s.config.BootID)
	for want, f := range map[digest.Digest]*os.File{id: kept, other: second} {
		if got, err := next.Adopt(f); got != want || err != nil {
			t.Errorf("adopted as %s, %v", got, err)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.Adopt(null); err == nil {
		t.Error("a device was adopted as a layer")
	}
	f, release, err := next.Lower(id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := device(t, at(f, "f")); got != dev {
		t.Errorf("device %x, want %x as before", got, dev)
	}
	if _, err := next.Remove(id); !errors.Is(err, ErrInUse) {
		t.Errorf("remove a borrowed layer: %v", err)
	}
	release()
	again := mustDup(t, f)
	if got, err := next.Adopt(again); got != id || err != nil || again.Fd() != ^uintptr(0) {
		t.Errorf("a mount that is there is %s, %v", got, err)
	}
	gone := mustDup(t, f)
	err = next.RemoveRoot("c")
	if _, removed := next.Remove(id); errors.Join(err, removed) != nil {
		t.Error(err, removed)
	}
	if got, err := next.Adopt(gone); got != "" || err != nil || gone.Fd() != ^uintptr(0) {
		t.Errorf("the mount of a removed layer is %s, %v", got, err)
	}
}

func device(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev
}

func mustDup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	d, err := dup(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestBothFormatsInOneStore changes the format of a store that has layers already.
func TestBothFormatsInOneStore(t *testing.T) {
	for _, roots := range []rootMode{rootsDetached, rootsAttached, rootsMount} {
		s := open(t, Config{Root: t.TempDir(), Format: Overlay, roots: roots})
		old := add(t, s, tartest.Archive(t, tar.Header{Name: "old", Size: 7}))
		s.config.Format = EROFS
		s = reopen(t, s, s.config.BootID)
		fresh := add(t, s, tartest.Archive(t, tar.Header{Name: "fresh", Size: 9}))
		root, err := s.Root(ctx, "c", []digest.Digest{old, fresh}, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var devs []uint64
		for name, size := range map[string]int64{"old": 7, "fresh": 9, "": -1} {
			if st, err := os.Stat(at(root, name)); err != nil || size >= 0 && st.Size() != size {
				t.Errorf("%s: %v %v", name, st, err)
			}
			devs = append(devs, device(t, at(root, name)))
		}
		if devs[0] != devs[1] || devs[1] != devs[2] {
			t.Errorf("one root, devices %x", devs)
		}
		root.Close()
	}
}

func TestConcurrentUse(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		var streams [][]byte
		var ids []digest.Digest
		for i := range 3 {
			streams = append(streams, tartest.Archive(t, tar.Header{Name: fmt.Sprint(i, "/f"), Size: 100000}))
			ids = append(ids, digest.FromBytes(streams[i]))
		}
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				for _, stream := range streams {
					add(t, s, stream)
				}
				id := fmt.Sprint("c", i)
				root, err := s.Root(ctx, id, ids, RootOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Sync(ctx); err != nil {
					t.Error(err)
				}
				if b, err := os.ReadFile(at(root, "1/f")); err != nil || len(b) != 100000 {
					t.Errorf("%d bytes, %v", len(b), err)
				}
				root.Close()
				if err := s.RemoveRoot(id); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if list := s.List(); len(list) != 3 {
			t.Errorf("layers %v", list)
		}
		empty(t, s, "tmp", "trash", "containers")
	})
}

// TestNothingIsLeftOpen counts descriptors over a full life.
func TestNothingIsLeftOpen(t *testing.T) {
	life := func(c Config) {
		c.Root = t.TempDir()
		s := open(t, c)
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "d/f", Size: 100000}))
		ids := []IDMap{{0, 100000, 65536}}
		for i, o := range []RootOptions{{}, {UIDs: ids, GIDs: ids}, {ReadOnly: true}, {Label: "no\x01label"}} {
			if root, err := s.Root(ctx, fmt.Sprint("c", i), []digest.Digest{id}, o); err == nil {
				root.Close()
			}
		}
		w, err := s.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ReadFrom(bytes.NewReader([]byte(strings.Repeat("garbage!", 128)))); err == nil {
			t.Error("garbage was unpacked")
		}
		if err := errors.Join(w.Discard(), s.Close()); err != nil {
			t.Error(err)
		}
	}
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			life(w.config) // what opens once stays open
			before := descriptors(t)
			life(w.config)
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestPageCacheIsKeptOnce reads a new layer twice, before and after its data file is let go.
func TestPageCacheIsKeptOnce(t *testing.T) {
	for _, roots := range []rootMode{rootsDetached, rootsAttached} {
		s := open(t, Config{Root: t.TempDir(), Format: EROFS, roots: roots})
		if !s.direct {
			t.Skip("the kernel has no directio for EROFS")
		}
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 4 << 20}))
		f, release, err := s.Lower(id)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		defer f.Close()
		data := filepath.Join(s.path("layers"), dirName(id), dataFile)
		read := func() {
			if b, err := os.ReadFile(at(f, "f")); err != nil || len(b) != 4<<20 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		}
		if err := errors.Join(syncFile(data), dropCache(data)); err != nil {
			t.Fatal(err)
		}
		read() // a new layer is read through the cache of its data file
		if n := resident(t, data); n != 4<<20 {
			t.Errorf("%d bytes of a new layer are in page cache", n)
		}
		later := time.Now().Add(2 * warmTime)
		if next, ok := s.cool(later); !ok || !next.After(later) || resident(t, data) == 0 {
			t.Errorf("a layer was let go before it is durable; next %v %v", next, ok)
		}
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if _, ok := s.cool(time.Now()); !ok || resident(t, data) == 0 {
			t.Error("a new layer was let go at once")
		}
		if _, ok := s.cool(later); ok {
			t.Error("there is more to do")
		}
		if n := resident(t, data); n != 0 {
			t.Errorf("%d bytes are still kept twice", n)
		}
		if err := dropCache(at(f, "f")); err != nil {
			t.Fatal(err)
		}
		read()
		if n := resident(t, data); n != 0 {
			t.Errorf("%d bytes are kept twice again", n)
		}
	}
}

// resident counts the bytes of a file in page cache.
func resident(t *testing.T, path string) (n int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	pages := make([]byte, (len(m)+4095)/4096)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, p := range pages {
		n += int(p&1) * 4096
	}
	return n
}

func TestDescribe(t *testing.T) {
	want := map[string]string{
		"erofs detached": "layers: erofs from files with directio; roots: overlay on detached layers",
		"overlay mount":  "layers: directories, one inode per file; roots: overlay by mount(2) in a private namespace",
	}
	for _, w := range ways {
		if text, ok := want[w.name]; ok {
			w.config.Root = t.TempDir()
			if got := open(t, w.config).Describe(); !strings.HasPrefix(got, text+"; writable directories: ") {
				t.Errorf("%s: %s", w.name, got)
			}
		}
	}
	if _, err := Open(Config{Root: t.TempDir(), Format: "zfs"}); err == nil || !strings.Contains(err.Error(), `format "zfs" is not`) {
		t.Errorf("unknown format: %v", err)
	}
}

func TestWriterIsUsedOnce(t *testing.T) {
	s := open(t, Config{Root: t.TempDir()})
	stream := tartest.Archive(t, tar.Header{Name: "f"})
	w, err := s.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit("nonsense"); err == nil {
		t.Error("a layer was committed as nonsense")
	}
	if _, err := w.ReadFrom(bytes.NewReader(stream)); err == nil {
		t.Error("a dead writer read")
	}
	empty(t, s, "tmp", "layers")
}
