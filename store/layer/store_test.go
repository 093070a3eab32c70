package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
)

var ctx = context.Background()

// root skips the test without root, and sees to it that none of its mounts appears in the host's table.
func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	own := filepath.Dir(t.TempDir()) // of all temporary directories of this test
	t.Cleanup(func() {
		table, err := os.ReadFile("/proc/1/mountinfo")
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(string(table)) {
			at := strings.Fields(line)[4]
			if strings.HasPrefix(at, own) || at == nsStore || at == nsTarget || strings.HasPrefix(at, nsLayers+"/") {
				t.Errorf("the host's mount table has %s", line)
			}
		}
	})
}

// open opens a store and closes it at the end of the test.
func open(t testing.TB, c Config) *Store {
	t.Helper()
	root(t)
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// add puts a layer into s.
func add(t testing.TB, s *Store, stream []byte) digest.Digest {
	t.Helper()
	id := digest.FromBytes(stream)
	w, err := s.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n, err := w.ReadFrom(bytes.NewReader(stream))
	if err != nil || n != int64(len(stream)) {
		t.Fatalf("read %d of %d: %v", n, len(stream), err)
	}
	if _, err := w.Commit(id); err != nil {
		t.Fatal(err)
	}
	return id
}

// at opens a path below a mount.
func at(root *os.File, path string) string { return procPath(root) + "/" + path }

// ways are all that a store can do on this kernel.
var ways = []struct {
	name   string
	config Config
}{
	{"erofs detached", Config{Format: EROFS, roots: rootsDetached}},
	{"erofs attached", Config{Format: EROFS, roots: rootsAttached}},
	{"erofs mount", Config{Format: EROFS, roots: rootsMount}},
	{"overlay detached", Config{Format: Overlay, roots: rootsDetached}},
	{"overlay attached", Config{Format: Overlay, roots: rootsAttached}},
	{"overlay mount", Config{Format: Overlay, roots: rootsMount}},
}

func eachWay(t *testing.T, f func(t *testing.T, s *Store)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			w.config.Root = t.TempDir()
			f(t, open(t, w.config))
		})
	}
}

func TestRootShowsLayersAndTakesWrites(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		bottom := add(t, s, tartest.Archive(t,
			tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/a", Size: 10}, tar.Header{Name: "d/b", Size: 5000},
			tar.Header{Name: "gone", Size: 1}, tar.Header{Name: "o/x", Size: 1}))
		top := add(t, s, tartest.Archive(t,
			tar.Header{Name: "d/b", Size: 3}, tar.Header{Name: ".wh.gone"}, tar.Header{Name: "o/.wh..wh..opq"}, tar.Header{Name: "o/y"}))
		root, err := s.Root(ctx, "c1", []digest.Digest{top, bottom, top}, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for path, size := range map[string]int64{"d/a": 10, "d/b": 3, "gone": -1, "o/x": -1, "o/y": 0} {
			st, err := os.Lstat(at(root, path))
			switch {
			case size < 0 && !errors.Is(err, fs.ErrNotExist):
				t.Errorf("%s is there: %v", path, err)
			case size >= 0 && (err != nil || st.Size() != size):
				t.Errorf("%s: %v %v", path, st, err)
			}
		}
		if err := os.WriteFile(at(root, "d/new"), []byte("new"), 0o600); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(s.UpperDir("c1"), "d/new")); err != nil {
			t.Error(err)
		}
		if _, err := s.Remove(top); !errors.Is(err, ErrInUse) {
			t.Errorf("remove a layer in use: %v", err)
		}
		if _, err := s.Root(ctx, "c1", nil, RootOptions{}); !errors.Is(err, ErrExists) {
			t.Errorf("second root: %v", err)
		}
		root.Close()
		if err := s.RemoveRoot("c1"); err != nil {
			t.Error(err)
		}
		for _, id := range []digest.Digest{top, bottom} {
			if freed, err := s.Remove(id); err != nil || freed < 4096 {
				t.Errorf("remove: %d %v", freed, err)
			}
		}
		empty(t, s, "layers", "containers", "tmp", "trash")
	})
}

func TestRootInUserNamespace(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "a", Size: 10, Uid: 7}))
		ids := []IDMap{{0, 200000, 65536}}
		root, err := s.Root(ctx, "c1", []digest.Digest{id}, RootOptions{UIDs: ids, GIDs: ids})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for path, want := range map[string]uint32{"": 200000, "a": 200007} {
			var st unix.Stat_t
			if err := unix.Lstat(at(root, path), &st); err != nil || st.Uid != want {
				t.Errorf("%q belongs to %d, want %d (%v)", path, st.Uid, want, err)
			}
		}
		if err := os.Chown(at(root, "a"), 200001, 200001); err != nil {
			t.Error(err)
		}
	})
}

func TestSubPath(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/a", Size: 10}, tar.Header{Name: "etc/", Typeflag: tar.TypeDir},
			tar.Header{Name: "etc/hostname", Size: 4}, tar.Header{Name: "in", Typeflag: tar.TypeSymlink, Linkname: "/d"},
			tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "../../../../../etc/hostname"}, tar.Header{Name: "loop", Typeflag: tar.TypeSymlink, Linkname: "loop"}))
		for i, tt := range []struct {
			path, file, want string
			err              error
		}{
			{path: "d", file: "/a", want: "dddddddddd"}, {path: "/d/", file: "/a", want: "dddddddddd"}, {path: "in", file: "/a", want: "dddddddddd"},
			{path: "d/a", want: "dddddddddd"}, {path: "out", want: "eeee"},
			{path: "no/such", err: unix.ENOENT}, {path: "d/a/b", err: unix.ENOTDIR}, {path: "loop", err: unix.ELOOP},
		} {
			o := RootOptions{ReadOnly: true, SubPath: tt.path}
			if i%2 == 0 {
				o.UIDs, o.GIDs = []IDMap{{0, 200000, 65536}}, []IDMap{{0, 300000, 65536}}
			}
			sub, err := s.Root(ctx, "volume", []digest.Digest{id}, o)
			if tt.err != nil {
				if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.path) || len(s.Roots()) > 0 {
					t.Errorf("%s: %v, want %v; %v", tt.path, err, tt.err, s.Roots())
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(procPath(sub) + tt.file); string(b) != tt.want {
				t.Errorf("%s: %q, %v", tt.path, b, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(procPath(sub), &st); err != nil || (len(o.UIDs) > 0) != (st.Uid == 200000 && st.Gid == 300000) {
				t.Errorf("%s: of %d:%d, %v", tt.path, st.Uid, st.Gid, err)
			}
			_ = sub.Close()
			if err := s.RemoveRoot("volume"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestRootWithoutLayersAndReadOnly(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		root, err := s.Root(ctx, "none", nil, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := os.Mkdir(at(root, "d"), 0o755); err != nil {
			t.Error(err)
		}
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "a", Size: 10}))
		volume, err := s.Root(ctx, "volume", []digest.Digest{id}, RootOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer volume.Close()
		if err := os.Mkdir(at(volume, "d"), 0o755); !errors.Is(err, unix.EROFS) {
			t.Errorf("a volume can be written: %v", err)
		}
		if b, err := os.ReadFile(at(volume, "a")); string(b) != "aaaaaaaaaa" {
			t.Errorf("%q %v", b, err)
		}
	})
}
