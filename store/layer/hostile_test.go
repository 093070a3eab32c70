package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tarstream"
	"github.com/criserver/criserver/store/layer/tartest"
)

func file(name string) member {
	return member{header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}, content: "x"}
}

func symlink(name, target string) member {
	return member{header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
}

func hardlink(name, target string) member {
	return member{header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

func TestHostileLayersAreRefused(t *testing.T) {
	limits := tarstream.DefaultLimits()
	limits.Holes = 100_000
	limits.Entries, limits.Bytes, limits.Depth, limits.XattrBytes, limits.Text, limits.PathBytes = 100, 1<<20, 20, 4000, 20000, 4095
	big := member{header: tar.Header{Name: "big", Typeflag: tar.TypeReg, Size: 600 << 10}, content: strings.Repeat("b", 600<<10)}
	bigger := big
	bigger.header.Name = "bigger"
	many := func(n int) (list []member) {
		for i := range n {
			list = append(list, file(fmt.Sprint("f", i)))
		}
		return list
	}
	xattrs := func(m member, name, value string) member {
		m.header.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
		return m
	}
	manyNames := func(n int) (list []member) {
		for i := range n {
			list = append(list, file(fmt.Sprintf("%02d%s/f", i, strings.Repeat(strings.Repeat("n", 250)+"/", 8))))
		}
		return list
	}
	manyLists := func(n int) (list []member) {
		for i := range n {
			dir := member{header: tar.Header{Name: fmt.Sprint("d", i), Typeflag: tar.TypeDir}}
			list = append(list, xattrs(dir, "system.posix_acl_default", "\x02\x00\x00\x00"+strings.Repeat(fmt.Sprintf("%08d", i), 400)))
		}
		return list
	}
	pax := func(records ...string) []byte {
		return append(append(tartest.PAX('x', records...), tartest.Header("f", '0', "00000000001\x00")...), make([]byte, tartest.Block)...)
	}
	device := func(major, minor int64) member {
		return member{header: tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: major, Devminor: minor}}
	}
	rows := []struct {
		name    string
		members []member
		raw     []byte
		want    string // after the entry's name
	}{
		{name: "hard link out by dots", members: []member{hardlink("h", "../../etc/passwd")}, want: `"h": hard link to "../../etc/passwd" outside of the layer`},
		{name: "hard link to a host file", members: []member{hardlink("h", "/etc/passwd")}, want: `"h": hard link to "etc/passwd", which is no file of this layer`},
		{name: "hard link through a link", members: []member{symlink("l", "/etc"), hardlink("h", "l/passwd")}, want: `"h": hard link to "l/passwd", which is no file`},
		{name: "hard link to a directory", members: []member{file("d/f"), hardlink("h", "d")}, want: `"h": hard link to "d", which is no file`},
		{name: "hard link to what it replaces", members: []member{file("d/f"), hardlink("d", "d/f")}, want: `"d": hard link to "d/f", which is no file`},
		{name: "root that is a file", members: []member{file("..")}, want: `"..": path leads out of the layer`},
		{name: "path out by dots", members: []member{file("../../etc/cron.d/x")}, want: `"../../etc/cron.d/x": path leads out of the layer`},
		{name: "whiteout out by dots", members: []member{file("d/../../.wh.x")}, want: `"d/../../.wh.x": path leads out of the layer`},
		{name: "root that is a link", members: []member{symlink("./", "/etc")}, want: `"./": only a directory can be the root`},
		{name: "below a file", members: []member{file("f"), file("f/g")}, want: `"f/g": "f" on the way is not a directory`},
		{name: "below a link that replaced itself", members: []member{symlink("x", "."), file("x/x"), file("x/z")}, want: `"x/z": "x" on the way is not a directory`},
		{name: "links in a circle", members: []member{symlink("a", "b"), symlink("b", "a"), file("a/f")}, want: `"a/f": more than 40 symbolic links`},
		{name: "links that double the way", members: []member{symlink("l0", strings.Repeat("./", 2000)), symlink("l1", "l0/l0"), symlink("l2", "l1/l1"), file("l2/f")},
			want: `"l2/f": more than 4096 directories and links on the way`},
		{name: "whiteout of dots", members: []member{file("d/.wh...")}, want: `"d/.wh...": whiteout of the name ".."`},
		{name: "whiteout of nothing", members: []member{file(".wh.")}, want: `".wh.": whiteout of the name ""`},
		{name: "long name", members: []member{file(strings.Repeat("n", 256))}, want: `name of 256 bytes is longer than the limit of 255`},
		{name: "long path", members: []member{file(strings.Repeat("p/", 2048) + "f")}, want: `path of 4097 bytes is longer than the limit of 4095`},
		{name: "long link", members: []member{symlink("l", strings.Repeat("p/", 2048))}, want: `"l": link target of 4096 bytes is longer`},
		{name: "deep path", members: []member{file(strings.Repeat("d/", 21) + "f")}, want: `path is 21 directories deep, the limit is 20`},
		{name: "deep through links", members: []member{file(strings.Repeat("d/", 15) + "f"), symlink("l", strings.Repeat("d/", 15)), file("l/" + strings.Repeat("e/", 10) + "f")},
			want: `lies more than the limit of 20 directories deep`},
		{name: "long name in a link", members: []member{symlink("l", strings.Repeat("n", 300)), file("l/f")}, want: `"l/f": a link on the way has a name of 300 bytes`},
		{name: "many entries", members: many(101), want: `more than the limit of 100 entries`},
		{name: "many implied directories", members: []member{file("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/f"), file("2/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/f"),
			file("3/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/f"), file("4/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/f"), file("5/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/f"),
			file("6/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/f")}, want: `more than the limit of 100 entries, implied directories counted`},
		{name: "contents over the limit", members: []member{big, bigger}, want: `limit of 1048576 bytes`},
		{name: "size of exabytes", raw: tartest.Header("huge", '0', "\x80\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00"), want: `"huge": contents are together more than the limit of 1048576 bytes`},
		{name: "negative size", raw: tartest.Header("neg", '0', "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"), want: `before its first entry`},
		{name: "unknown type", raw: tartest.Header("what", 'Q', "00000000000"), want: `"what": type 'Q' is not known`},
		{name: "garbage", raw: bytes.Repeat([]byte("garbage!"), 128), want: `before its first entry`},
		{name: "xattrs over the limit", members: []member{xattrs(file("x"), "user.a", strings.Repeat("v", 4000))}, want: `"x": 1 xattrs of together 4006 bytes: the limits are 1024 and 4000`},
		{name: "access list that is none", members: []member{xattrs(file("x"), "system.posix_acl_access", "nonsense")}, want: `"x": xattr system.posix_acl_access is not a POSIX access list`},
		{name: "names over the limit", members: manyNames(11), want: `names, link targets and extended attributes are together more than the limit of 20000 bytes`},
		{name: "access lists over the limit", members: manyLists(7), want: `names, link targets and extended attributes are together more than the limit of 20000 bytes`},
		{name: "device number", members: []member{device(5000, 1)}, want: `"dev": device number 5000:1 is out of range`},
		{name: "hard link to what comes later", members: []member{hardlink("h", "f"), file("f")}, want: `"h": hard link to "f", which is no file of this layer`},
		{name: "hard link to itself", members: []member{hardlink("h", "h")}, want: `"h": hard link to "h", which is no file of this layer`},
		{name: "hard link to a whiteout", members: []member{file(".wh.w"), hardlink("h", "w")}, want: `"h": hard link to "w", which is no file of this layer`},
		{name: "hard link to what was replaced", members: []member{file("d/f"), file("d"), hardlink("h", "d/f")}, want: `"h": hard link to "d/f", which is no file of this layer`},
		{name: "hard link to the root", members: []member{hardlink("h", "/")}, want: `"h": hard link to the root`},
		{name: "hard link below a file", members: []member{file("f"), file("g"), hardlink("f/h", "g")}, want: `"f/h": "f" on the way is not a directory`},
		{name: "directory below a file", members: []member{file("f"), {header: tar.Header{Name: "f/d/", Typeflag: tar.TypeDir}}}, want: `"f/d/": "f" on the way is not a directory`},
		{name: "whiteout below a file", members: []member{file("f"), file("f/.wh.x")}, want: `"f/.wh.x": "f" on the way is not a directory`},
		{name: "opaque file", members: []member{file("f"), file("f/.wh..wh..opq")}, want: `"f/.wh..wh..opq": "f" on the way is not a directory`},
		{name: "below a device", members: []member{device(1, 3), file("dev/x")}, want: `"dev/x": "dev" on the way is not a directory`},
		{name: "path of a record leads out", raw: pax("path=../../etc/passwd"), want: `"../../etc/passwd": path leads out of the layer`},
		{name: "target of a record leads out", raw: append(tartest.PAX('x', "linkpath=../../etc/passwd"), tartest.Header("h", '1', "00000000000\x00")...),
			want: `"h": hard link to "../../etc/passwd" outside of the layer`},
		{name: "NUL in the path of a record", raw: pax("path=a\x00b"), want: `before its first entry`},
		{name: "NUL in the target of a record", raw: pax("linkpath=a\x00b"), want: `before its first entry`},
		{name: "NUL in a key", raw: pax("SCHILY.xattr.user.\x00=b"), want: `before its first entry`},
		{name: "size of a record over the limit", raw: pax("size=1099511627776"), want: `"f": contents are together more than the limit of 1048576 bytes`},
		{name: "size of a record that is negative", raw: pax("size=-1"), want: `before its first entry`},
		{name: "size of a record that overflows", raw: pax("size=99999999999999999999"), want: `before its first entry`},
		{name: "size of a record that is no number", raw: pax("size=0x10"), want: `before its first entry`},
		{name: "owner of a record that is negative", raw: pax("uid=-1"), want: `"f": owner -1:0 is out of range`},
		{name: "owner of a record that is nobody", raw: pax("gid=4294967295"), want: `"f": owner 0:4294967295 is out of range`},
		{name: "time of a record that is none", raw: pax("mtime=nan"), want: `before its first entry`},
		{name: "record that is too long", raw: pax("comment=" + strings.Repeat("c", 2<<20)), want: `longer than the limit of 1048576 bytes`},
		{name: "record with a wrong length", raw: append(tartest.Header("pax", 'x', "00000000012\x00"), []byte("99 path=x\n"+strings.Repeat("\x00", 502))...), want: `before its first entry`},
		{name: "long name that is too long", raw: append(tartest.Header("././@LongLink", 'L', "77777777777\x00"), make([]byte, 2<<20)...), want: `longer than the limit of 1048576 bytes`},
		{name: "sparse map that overlaps", raw: pax("GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=2", "GNU.sparse.map=0,10,5,10", "GNU.sparse.size=100"), want: `before its first entry`},
		{name: "sparse map with negative numbers", raw: pax("GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=-10,20", "GNU.sparse.size=100"), want: `before its first entry`},
		{name: "sparse file of exabytes", raw: pax("GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,1", "GNU.sparse.size=4611686018427387904"),
			want: `"f": contents are together more than the limit of 1048576 bytes`},
		{name: "holes over the limit", raw: pax("GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=100001,0", "GNU.sparse.size=100001"),
			want: `"f": holes are together more than the limit of 100000 bytes`},
		{name: "sparse map with many pieces", raw: pax("GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1000000000", "GNU.sparse.map=0,1", "GNU.sparse.size=100"), want: `before its first entry`},
		{name: "device number that is negative", members: []member{}, raw: tartest.Patch(tartest.Header("dev", '3', "00000000000\x00"), 329, []byte("\xff\xff\xff\xff\xff\xff\xff\xff")), want: `"dev": device number -1:0 is out of range`},
		{name: "link to nothing", members: []member{symlink("l", "")}, want: `"l": symbolic link to nothing`},
	}
	for _, format := range []Format{EROFS, Overlay} {
		s := open(t, Config{Root: t.TempDir(), Format: format, Limits: limits})
		for _, row := range rows {
			t.Run(string(format)+" "+row.name, func(t *testing.T) {
				stream := row.raw
				if stream == nil {
					stream = pack(t, row.members)
				}
				w, err := s.Begin(ctx)
				if err != nil {
					t.Fatal(err)
				}
				_, err = w.ReadFrom(bytes.NewReader(append(stream, make([]byte, 1024)...)))
				if !errors.Is(err, tarstream.ErrInvalid) || !strings.Contains(err.Error(), row.want) {
					t.Errorf("got  %v\nwant %s", err, row.want)
				}
				if _, err := w.Commit(digest.FromBytes(stream)); err == nil {
					t.Error("a bad layer was committed")
				}
				empty(t, s, "tmp", "layers")
			})
		}
	}
}

// empty expects that nothing is in directories of s.
func empty(t *testing.T, s *Store, dirs ...string) {
	t.Helper()
	s.cleanup.Wait() // for what removed roots have left
	for _, dir := range dirs {
		if left, err := os.ReadDir(s.path(dir)); err != nil || len(left) > 0 {
			t.Errorf("%s has %v (%v)", dir, left, err)
		}
	}
}

// TestLinksLeadNowhereElse writes through every link that could lead out of a layer while it is unpacked.
func TestLinksLeadNowhereElse(t *testing.T) {
	outside := t.TempDir()
	up := strings.Repeat("../", 20)
	stream := pack(t, []member{
		symlink("abs", outside), file("abs/1"),
		symlink("rel", up+outside[1:]), file("rel/2"),
		symlink("cwd", "/proc/self/cwd"), file("cwd/3"),
		symlink("a", "b"), symlink("b", "/"+outside), file("a/4"),
		symlink("dir", outside), {header: tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}}, file("dir/5"),
		symlink("f", filepath.Join(outside, "6")), file("f"),
		symlink("w", outside), file("w/.wh.8"), file("w/.wh..wh..opq"),
	})
	for _, s := range bothFormats(t) {
		id := add(t, s, stream)
		f, release, err := s.Lower(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{outside + "/1", outside + "/2", "proc/self/cwd/3", outside + "/4", "dir/5", "f", outside + "/8"} {
			if _, err := os.Lstat(at(f, name)); err != nil {
				t.Errorf("%s: %v", s.config.Format, err)
			}
		}
		f.Close()
		release()
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("outside of the layers there is %v", left)
	}
}

func TestDevicesStayNodes(t *testing.T) {
	stream := pack(t, []member{{header: tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o600}},
		{header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
		{header: tar.Header{Name: "hidden", Typeflag: tar.TypeChar}}})
	for _, s := range bothFormats(t) {
		id := add(t, s, stream)
		root, err := s.Root(ctx, "c", []digest.Digest{id}, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for name, want := range map[string]uint64{"sda": unix.Mkdev(8, 0), "null": unix.Mkdev(1, 3)} {
			var st unix.Stat_t
			if err := unix.Lstat(at(root, name), &st); err != nil || st.Rdev != want {
				t.Errorf("%s: %x, want %x (%v)", name, st.Rdev, want, err)
			}
		}
		if _, err := os.Lstat(at(root, "hidden")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a whiteout shows: %v", err)
		}
	}
}

func TestStreamFaults(t *testing.T) {
	stream := pack(t, []member{file("a"), {header: tar.Header{Name: "b", Typeflag: tar.TypeReg, Size: 100000}, content: strings.Repeat("b", 100000)}})
	broken := errors.New("connection reset")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	rows := []struct {
		name string
		ctx  context.Context
		r    func() io.Reader
		want string
		is   error
	}{
		{"reset", ctx, func() io.Reader { return io.MultiReader(bytes.NewReader(stream[:50000]), errReader{broken}) }, `"b"`, broken},
		{"truncated", ctx, func() io.Reader { return bytes.NewReader(stream[:50000]) }, `"b"`, io.ErrUnexpectedEOF},
		{"reset after the end", ctx, func() io.Reader { return io.MultiReader(bytes.NewReader(stream), errReader{broken}) }, "b", broken},
		{"cancelled", cancelled, func() io.Reader { return bytes.NewReader(stream) }, "read layer", context.Canceled},
	}
	for _, s := range bothFormats(t) {
		for _, row := range rows {
			t.Run(string(s.config.Format)+" "+row.name, func(t *testing.T) {
				w, err := s.Begin(row.ctx)
				if err != nil {
					t.Fatal(err)
				}
				_, err = w.ReadFrom(row.r())
				if !errors.Is(err, row.is) || errors.Is(err, tarstream.ErrInvalid) || !strings.Contains(err.Error(), row.want) {
					t.Errorf("error %v", err)
				}
				if err := w.Discard(); err != nil {
					t.Error(err)
				}
				empty(t, s, "tmp", "layers")
			})
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestTruncatedArchives cuts an archive everywhere. Between two entries the rest is an archive of fewer files, which only
// its digest can tell from the whole one; no file may be shorter.
func TestTruncatedArchives(t *testing.T) {
	stream := pack(t, []member{directory("d/"), {header: tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 700,
		PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, content: strings.Repeat("f", 700)}, file("g")})
	for _, s := range bothFormats(t) {
		whole, err := fuzzed(t, s, stream)
		if err != nil {
			t.Fatal(err)
		}
		taken := map[int]bool{}
		for cut := 0; cut < len(stream); cut += 128 {
			files, err := fuzzed(t, s, stream[:cut])
			if err != nil {
				continue
			}
			taken[len(files)] = true
			for path, line := range files {
				if path != "" && whole[path] != line {
					t.Errorf("%s: cut at %d: %q is %s", s.config.Format, cut, path, line)
				}
			}
		}
		if !taken[1] || !taken[2] || !taken[3] || !taken[4] || len(taken) != 4 {
			t.Errorf("%s: archives were taken with %v files", s.config.Format, taken)
		}
	}
}

// TestWhatFollowsTheArchive reads garbage and a second archive behind the end, which count for the digest only.
func TestWhatFollowsTheArchive(t *testing.T) {
	first := pack(t, []member{file("f")})
	for name, rest := range map[string][]byte{"garbage": bytes.Repeat([]byte("garbage!"), 1000), "an archive": pack(t, []member{file("g")}), "one byte": {1}} {
		for _, s := range bothFormats(t) {
			id := add(t, s, append(bytes.Clone(first), rest...))
			f, release, err := s.Lower(id)
			if err != nil {
				t.Fatal(err)
			}
			if names, err := os.ReadDir(procPath(f)); err != nil || len(names) != 1 || names[0].Name() != "f" {
				t.Errorf("%s behind the archive: %v %v", name, names, err)
			}
			f.Close()
			release()
		}
	}
}
