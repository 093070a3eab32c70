package layer

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func directory(name string) member {
	return member{header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

// TestHardLinksAreOneFile looks at names of one file in several directories through the root of a container.
func TestHardLinksAreOneFile(t *testing.T) {
	special := func(name string, kind byte) member {
		return member{header: tar.Header{Name: name, Typeflag: kind, Mode: 0o600, Devmajor: 7, Devminor: 8}}
	}
	stream := pack(t, []member{file("a/f"), hardlink("b/f", "a/f"), hardlink("f", "b/f"),
		special("p", tar.TypeFifo), hardlink("a/p", "p"), special("c", tar.TypeChar), hardlink("a/c", "c"),
		special("k", tar.TypeBlock), hardlink("a/k", "k"), symlink("l", "a/f"), hardlink("a/l", "l")})
	eachWay(t, func(t *testing.T, s *Store) {
		id := add(t, s, stream)
		root, err := s.Root(ctx, "c", []digest.Digest{id}, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for _, names := range [][]string{{"a/f", "b/f", "f"}, {"p", "a/p"}, {"c", "a/c"}, {"k", "a/k"}, {"l", "a/l"}} {
			var first unix.Stat_t
			for i, name := range names {
				var st unix.Stat_t
				if err := unix.Lstat(at(root, name), &st); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					first = st
				}
				if st.Ino != first.Ino || st.Dev != first.Dev || st.Mode != first.Mode || int(st.Nlink) != len(names) {
					t.Errorf("%s: inode %d with %d names, %s has %d", name, st.Ino, st.Nlink, names[0], first.Ino)
				}
			}
		}
	})
}

// TestContainersSharePageCache reads a file in one container and expects it in memory in all others, in those of user
// namespaces too, and under its other names.
func TestContainersSharePageCache(t *testing.T) {
	const size = 1 << 20
	stream := pack(t, []member{{header: tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}, content: strings.Repeat("f", size)}, hardlink("d/g", "f")})
	eachWay(t, func(t *testing.T, s *Store) {
		id := add(t, s, stream)
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		var roots []*os.File
		ids := []IDMap{{0, 200000, 65536}}
		for i, o := range []RootOptions{{}, {}, {UIDs: ids, GIDs: ids}, {ReadOnly: true}} {
			root, err := s.Root(ctx, fmt.Sprint("c", i), []digest.Digest{id}, o)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			roots = append(roots, root)
		}
		if err := dropCache(at(roots[0], "f")); err != nil {
			t.Fatal(err)
		}
		if n := resident(t, at(roots[1], "f")); n != 0 {
			t.Skipf("%d bytes stay in page cache whatever is dropped", n)
		}
		if _, err := os.ReadFile(at(roots[0], "f")); err != nil {
			t.Fatal(err)
		}
		for i, root := range roots {
			for _, name := range []string{"f", "d/g"} {
				if n := resident(t, at(root, name)); n != size {
					t.Errorf("container %d: %d bytes of %s are in memory", i, n, name)
				}
			}
		}
	})
}

// TestWhiteoutsOfNothing looks for whiteouts in directories that no other layer has, where overlayfs does not look by
// itself, and in those that two have.
func TestWhiteoutsOfNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		bottom := add(t, s, pack(t, []member{file("both/low"), file("gone"), file("file/x"), file("low/.wh.y"), file("low/z"), file("o/hidden")}))
		top := add(t, s, pack(t, []member{file(".wh.never"), file(".wh.gone"), file("own/.wh.x"), file("own/f"), file("own/.wh.f"), file("both/.wh.x"),
			file("deep/er/.wh.x"), file("o/.wh..wh..opq"), file("o/.wh.x"), file("o/mine"), file("o/.wh.mine"),
			file(".wh.file"), file("file"), {header: tar.Header{Name: "own/dev", Typeflag: tar.TypeChar}}}))
		want := map[string]string{"": "both deep file low o own", "own": "f", "both": "low", "deep/er": "", "o": "mine", "low": "z"}
		ids := []IDMap{{0, 200000, 65536}}
		for i, o := range []RootOptions{{}, {ReadOnly: true}, {UIDs: ids, GIDs: ids}} {
			id := fmt.Sprint("c", i)
			root, err := s.Root(ctx, id, []digest.Digest{bottom, top}, o)
			if err != nil {
				t.Fatal(err)
			}
			for dir, names := range want {
				list, err := os.ReadDir(at(root, dir))
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, e := range list {
					if _, err := e.Info(); err != nil {
						t.Errorf("%s/%s is listed and not there: %v", dir, e.Name(), err)
					}
					got = append(got, e.Name())
				}
				if s := strings.Join(got, " "); s != names {
					t.Errorf("%s has %q, want %q", dir, s, names)
				}
			}
			if x := xattrsOf(t, at(root, "own")); len(x) > 0 {
				t.Errorf("the container sees %v", x)
			}
			if !o.ReadOnly { // what was hidden can be made and removed again
				err := errors.Join(os.WriteFile(at(root, "own/x"), nil, 0o600), os.Remove(at(root, "own/x")), os.RemoveAll(at(root, "own")), os.Mkdir(at(root, "own"), 0o700))
				if list, _ := os.ReadDir(at(root, "own")); err != nil || len(list) > 0 {
					t.Errorf("writing: %v, %v", list, err)
				}
			}
			root.Close()
			if err := s.RemoveRoot(id); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestLaterEntriesWin has the cases of entries for one name, with what is left of them.
func TestLaterEntriesWin(t *testing.T) {
	opaque, other := "trusted.overlay.opaque=79", directory("d/")
	other.header.Mode, other.header.Uid = 0o1700, 5
	rows := []struct {
		name    string
		members []member
		want    string // names but the root's, a "*" behind opaque directories
	}{
		{"a file over a directory", []member{file("d/e/f"), file("d")}, "/d"},
		{"and a directory again", []member{file("d/e/f"), file("d"), directory("d/"), file("d/g")}, "/d /d/g"},
		{"a directory over a file", []member{file("d"), directory("d/"), file("d/f")}, "/d /d/f"},
		{"a directory twice", []member{file("d/f"), other, file("d/g")}, "/d /d/f /d/g"},
		{"a link over a directory", []member{file("d/f"), symlink("d", "e"), file("d/g")}, "/d /e /e/g"},
		{"a directory over a link", []member{symlink("d", "e"), directory("d/"), file("d/f")}, "/d /d/f"},
		{"a file over a link", []member{file("e"), symlink("d", "e"), file("d")}, "/d /e"},
		{"a hard link over a file", []member{file("e"), file("d"), hardlink("d", "e")}, "/d /e"},
		{"a file over one of two names", []member{file("e"), hardlink("d", "e"), file("d")}, "/d /e"},
		{"a hard link onto itself", []member{file("e"), hardlink("e", "./e")}, "/e"},
		{"a hard link over a directory", []member{file("e"), file("d/f"), hardlink("d", "e")}, "/d /e"},
		{"a whiteout, then a file", []member{file(".wh.d"), file("d")}, "/d"},
		{"a file, then a whiteout", []member{file("d"), file(".wh.d")}, "/d"},
		{"a whiteout, then a directory", []member{file(".wh.d"), directory("d/"), file("d/f")}, "/d* /d/f"},
		{"a directory, then a whiteout", []member{file("d/f"), file(".wh.d")}, "/d* /d/f"},
		{"a whiteout, then what implies a directory", []member{file(".wh.d"), file("d/f")}, "/d* /d/f"},
		{"an opaque mark, then a file", []member{file("d/.wh..wh..opq"), file("d/f")}, "/d* /d/f"},
		{"a file, then an opaque mark", []member{file("d/f"), file("d/.wh..wh..opq")}, "/d* /d/f"},
		{"an opaque mark and a whiteout", []member{file("d/.wh..wh..opq"), file("d/.wh.f")}, "/d* /d/f"},
		{"a whiteout twice", []member{file(".wh.d"), file(".wh.d")}, "/d"},
		{"an opaque directory that is replaced", []member{file("d/.wh..wh..opq"), file("d"), directory("d/")}, "/d"},
		{"bookkeeping of AUFS", []member{file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs"), file("f")}, "/.wh..wh.plnk /.wh..wh.plnk/1.2 /f"},
		{"extended header for all", []member{{header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": "evil", "uid": "7"}}}, file("f")}, "/f"},
	}
	for _, s := range bothFormats(t) {
		for _, row := range rows {
			id := add(t, s, pack(t, row.members))
			f, release, err := s.Lower(id)
			if err != nil {
				t.Fatal(err)
			}
			files := show(t, procPath(f))
			var names []string
			for _, m := range slices.Sorted(maps.Keys(files)) {
				if strings.Contains(files[m], opaque) {
					m += "*"
				}
				names = append(names, m)
			}
			if got := strings.Join(names[1:], " "); got != row.want {
				t.Errorf("%s: %s: %s, want %s", s.config.Format, row.name, got, row.want)
			}
			f.Close()
			release()
			if _, err := s.Remove(id); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTimes has times that file systems find hard. An image keeps them all; a directory what its file system can.
func TestTimes(t *testing.T) {
	times := map[string]time.Time{
		"before":      time.Unix(-1e9, 999999999),
		"long before": time.Unix(-1<<31, 0),
		"nanoseconds": time.Unix(1e9, 1),
		"after 2038":  time.Unix(1<<31+5, 7),
		"after 2106":  time.Unix(1<<32+5, 7),
	}
	far := map[string]time.Time{"far future": time.Unix(1<<40, 3), "dawn": time.Unix(-1<<40, 0)}
	for _, s := range bothFormats(t) {
		want := map[string]time.Time{}
		for name, at := range times {
			want[name] = at
		}
		if s.config.Format == EROFS {
			for name, at := range far {
				want[name] = at
			}
		}
		var members []member
		for name, at := range want {
			m, d := file(name), directory(name+" d/")
			m.header.ModTime, d.header.ModTime = at, at
			members = append(members, m, d)
		}
		id := add(t, s, pack(t, members))
		f, release, err := s.Lower(id)
		if err != nil {
			t.Fatal(err)
		}
		for name, modified := range want {
			for _, n := range []string{name, name + " d"} {
				if st, err := os.Lstat(at(f, n)); err != nil || !st.ModTime().Equal(modified) {
					t.Errorf("%s: %q: %v, want %v (%v)", s.config.Format, n, st, modified, err)
				}
			}
		}
		f.Close()
		release()
		if err := s.Verify(ctx, id); err != nil {
			t.Error(err)
		}
	}
}

// TestPathsBeyondPathMax has files at paths that no system call takes whole, spelled out and made by links.
func TestPathsBeyondPathMax(t *testing.T) {
	long := strings.Repeat(strings.Repeat("n", 250)+"/", 20)
	half := strings.Repeat(strings.Repeat("h", 200)+"/", 15)
	members := []member{file(long + "f"), hardlink(long+"g", long+"f"), symlink("l", half), directory(half), symlink(half+"m", half),
		file("l/m/f"), file("l/m/.wh.gone"), directory("l/m/d/"), file("l/m/d/x"), file("l/m/d"), hardlink("h", "l/m/f")}
	want := map[string]string{long: "f g", half + half: "d f gone"}
	for _, s := range bothFormats(t) {
		id := add(t, s, pack(t, members))
		root, release, err := s.Lower(id)
		if err != nil {
			t.Fatal(err)
		}
		for path, names := range want {
			dir := mustDup(t, root)
			for c := range strings.SplitSeq(strings.TrimSuffix(path, "/"), "/") {
				fd, err := unix.Openat(int(dir.Fd()), c, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				dir.Close()
				dir = os.NewFile(uintptr(fd), c)
			}
			got, err := dir.Readdirnames(-1)
			slices.Sort(got)
			if err != nil || strings.Join(got, " ") != names {
				t.Errorf("%s: %v, want %s (%v)", s.config.Format, got, names, err)
			}
			dir.Close()
		}
		root.Close()
		release()
		if err := s.Verify(ctx, id); err != nil {
			t.Error(err)
		}
		if _, err := s.Remove(id); err != nil {
			t.Error(err)
		}
		empty(t, s, "layers", "trash", "tmp")
	}
}

// manyEntries streams an archive of n small files in directories of a thousand.
func manyEntries(n int) io.Reader {
	r, out := io.Pipe()
	go func() {
		buffered := bufio.NewWriterSize(out, 64<<10)
		w := tar.NewWriter(buffered)
		var err error
		for i := 0; i < n && err == nil; i++ {
			h := tar.Header{Name: fmt.Sprintf("usr/share/package-%04d/file-%07d", i/1000, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: 10, ModTime: time.Unix(int64(1.7e9+i%7), 0)}
			if err = w.WriteHeader(&h); err == nil {
				_, err = w.Write([]byte("0123456789"))
			}
		}
		out.CloseWithError(errors.Join(err, w.Close(), buffered.Flush()))
	}()
	return r
}

// TestManyEntries unpacks a million files into an image and a tenth of that into a directory, and bounds what an entry
// costs of memory.
func TestManyEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("a million files take their time")
	}
	for _, row := range []struct {
		format  Format
		entries int
		bound   int64 // bytes an entry, of the heap
	}{{EROFS, 1_000_000, 125}, {Overlay, 100_000, 60}} {
		if raced { // hack/test runs it without the detector, too
			row.entries, row.bound = min(row.entries, 100_000), row.bound+35 // what is the same for any number counts for more
		}
		s := open(t, Config{Root: t.TempDir(), Format: row.format})
		w, err := s.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		began, before := time.Now(), heap()
		if _, err := w.ReadFrom(manyEntries(row.entries)); err != nil {
			t.Fatal(err)
		}
		each := (heap() - before) / int64(row.entries)
		l, err := w.Commit(digest.FromString("many"))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d entries in %v, %d bytes of memory and %d of disk an entry", row.format, row.entries, time.Since(began), each, l.Bytes/int64(row.entries))
		if dirs := int64(row.entries/1000) + 3; l.Inodes != int64(row.entries)+dirs || each > row.bound {
			t.Errorf("%d inodes, %d bytes of memory an entry", l.Inodes, each)
		}
		f, release, err := s.Lower(l.DiffID)
		if err != nil {
			t.Fatal(err)
		}
		last := fmt.Sprintf("usr/share/package-%04d", row.entries/1000-1)
		names, err := os.ReadDir(at(f, last))
		if b, readErr := os.ReadFile(at(f, fmt.Sprintf("%s/file-%07d", last, row.entries-1))); err != nil || len(names) != 1000 || string(b) != "0123456789" {
			t.Errorf("%d names, %q, %v", len(names), b, errors.Join(err, readErr))
		}
		f.Close()
		release()
		if row.format == EROFS {
			out, err := exec.Command("fsck.erofs", "--device="+filepath.Join(s.path("layers", dirName(l.DiffID)), dataFile), filepath.Join(s.path("layers", dirName(l.DiffID)), metaFile)).CombinedOutput()
			if err != nil && !errors.Is(err, exec.ErrNotFound) {
				t.Errorf("fsck.erofs: %v\n%s", err, out)
			}
		}
		if err := s.Verify(ctx, l.DiffID); err != nil {
			t.Error(err)
		}
	}
}

// heap is what the program keeps, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
