package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// member is an entry of a generated archive.
type member struct {
	header  tar.Header
	content string
}

func pack(t testing.TB, members []member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := m.header
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := w.Write([]byte(m.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// randomMember makes an entry from so few names that entries meet, replace and shadow each other.
func randomMember(r *rand.Rand) member {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	path := func() string {
		p := pick("", "", "./", "/")
		for range r.IntN(4) {
			next := pick("a", "b", "c", "d", "a", "b", "..", ".", "not\xff\xfeutf8", "!", strings.Repeat("n", 255))
			if next == ".." && strings.HasPrefix(filepath.Clean(strings.TrimLeft(p, "/")+".."), "..") { // out of the layer is refused
				next = "."
			}
			p += next + "/"
		}
		return p
	}
	name := pick("a", "b", "c", "d", "e", "\xff", " ", "-", "\n")
	h := tar.Header{
		Name: path() + name, Mode: int64(r.IntN(0o10000)), Uid: r.IntN(3) * 40000, Gid: r.IntN(3) * 70000,
		ModTime: time.Unix([]int64{-1000000, 0, 1000000, -2e9, 1 << 32}[r.IntN(5)], int64(r.IntN(2))*123456789), PAXRecords: map[string]string{},
	}
	m := member{header: h}
	switch n := r.IntN(20); {
	case n < 5:
		m.header.Typeflag = tar.TypeReg
		m.content = randomContent(r)
		m.header.Size = int64(len(m.content))
	case n < 10:
		m.header.Typeflag = tar.TypeDir
		if r.IntN(10) == 0 {
			m.header.Name = "./"
		}
	case n < 13:
		m.header.Typeflag = tar.TypeSymlink
		m.header.Linkname = pick("", "/") + path() + name
		if m.header.Linkname == "" {
			m.header.Linkname = "."
		}
	case n < 16:
		m.header.Typeflag = tar.TypeLink
		m.header.Linkname = path() + pick("a", "b", "c", "d")
	case n < 17:
		m.header.Typeflag = []byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo}[r.IntN(3)]
		if m.header.Typeflag != tar.TypeFifo {
			m.header.Devmajor, m.header.Devminor = int64(1+r.IntN(4000)), int64(r.IntN(1<<20))
		}
	case n < 19:
		m.header.Typeflag = tar.TypeReg
		m.header.Name = path() + ".wh." + pick("a", "b", "c", "d")
	default:
		m.header.Typeflag = tar.TypeReg
		m.header.Name = path() + ".wh..wh..opq"
	}
	addXattrs(r, &m.header)
	return m
}

func randomContent(r *rand.Rand) string {
	size := []int{0, 1, 4095, 4096, 4097, 10000, 70000, 300000}[r.IntN(8)]
	b := bytes.Repeat([]byte{byte(r.Uint32())}, size)
	if size > 60000 && r.IntN(2) == 0 { // with holes
		clear(b)
		b[r.IntN(size)] = 1
	}
	return string(b)
}

func addXattrs(r *rand.Rand, h *tar.Header) {
	set := func(name, value string) { h.PAXRecords["SCHILY.xattr."+name] = value }
	whiteout := strings.Contains(h.Name, ".wh.")
	if whiteout || h.Typeflag == tar.TypeLink || r.IntN(3) > 0 {
		return
	}
	set("trusted.overlay.redirect", "/somewhere")
	set("trusted.t", strings.Repeat("v", r.IntN(300)))
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir {
		set("user.u", "\x00\xff")
		if r.IntN(3) == 0 {
			// version 2; owner rw, user 1000 rw, group r, mask rw, others r
			set("system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\xe8\x03\x00\x00"+
				"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")
			h.Mode = 0o664
		}
	}
	if h.Typeflag == tar.TypeDir && r.IntN(3) == 0 {
		set("system.posix_acl_default", "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x00\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")
	}
	if h.Typeflag == tar.TypeReg {
		set("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	}
}

// generate makes an archive that the model accepts, the model after it, and entries that it refuses at that point.
func generate(r *rand.Rand, entries int) (good, bad []member, m *model) {
	replay := func() *model {
		m := newModel()
		for _, g := range good {
			if err := m.apply(&g.header, g.content); err != nil {
				panic(err)
			}
		}
		return m
	}
	m = newModel()
	for len(good) < entries {
		c := randomMember(r)
		if err := m.apply(&c.header, c.content); err != nil {
			m = replay() // a refusal may have made parents
			bad = append(bad, c)
			continue
		}
		bad = bad[:0]
		good = append(good, c)
	}
	return good, bad, m
}

// show lists a mounted layer in the form of model.show.
func show(t testing.TB, root string) map[string]string {
	t.Helper()
	type file struct {
		path string
		st   unix.Stat_t
	}
	var files []file
	first := map[uint64]string{}
	var walk func(path string)
	walk = func(path string) {
		f := file{path: path}
		if err := unix.Lstat(root+"/"+path, &f.st); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		files = append(files, f)
		if f.st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		names, err := os.ReadDir(root + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			walk(path + "/" + n.Name())
		}
	}
	walk("")
	sort.Slice(files, func(i, j int) bool { return files[i].path < files[j].path })
	out := map[string]string{}
	for _, f := range files {
		if _, ok := first[f.st.Ino]; !ok {
			first[f.st.Ino] = f.path
		}
		out[f.path] = showFile(t, root+"/"+f.path, &f.st, first[f.st.Ino])
	}
	return out
}

func showFile(t testing.TB, path string, st *unix.Stat_t, first string) string {
	content, rdev := "", uint64(0)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		if err != nil || int64(len(b)) != st.Size {
			t.Fatalf("%q: %d of %d bytes, %v", path, len(b), st.Size, err)
		}
		content = string(b)
	case unix.S_IFLNK:
		s, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		content = s
	case unix.S_IFCHR, unix.S_IFBLK:
		if rdev = st.Rdev; rdev == 0 {
			return fmt.Sprintf("%o", st.Mode)
		}
	}
	return fmt.Sprintf("%o %d:%d %d.%09d n%d dev %x first %q %s %s", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec,
		st.Nlink, rdev, first, showXattrs(xattrsOf(t, path)), showContent(content))
}

func xattrsOf(t testing.TB, path string) map[string]string {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("%q %s: %v", path, name, err)
		}
		out[name] = string(value[:n])
	}
	return out
}

func bothFormats(t testing.TB) []*Store {
	t.Helper()
	return []*Store{
		open(t, Config{Root: t.TempDir(), Format: EROFS}),
		open(t, Config{Root: t.TempDir(), Format: Overlay}),
	}
}

func TestFormatsAgreeWithTheModel(t *testing.T) {
	stores := bothFormats(t)
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 1))
		good, bad, m := generate(r, 1+r.IntN(60))
		stream := pack(t, good)
		want := m.show()
		for _, s := range stores {
			id := add(t, s, stream)
			f, release, err := s.Lower(id)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, show(t, procPath(f))); diff != "" {
				t.Fatalf("seed %d, %s (-model +layer):\n%s\n%s", seed, s.config.Format, diff, describe(good))
			}
			f.Close()
			release()
			if s.config.Format == EROFS {
				fsck(t, filepath.Join(s.path("layers"), dirName(id)))
			}
			if l, _ := s.Stat(id); l.Inodes != inodes(want) {
				t.Fatalf("seed %d, %s: %d inodes, model has %d", seed, s.config.Format, l.Inodes, inodes(want))
			}
			if _, err := s.Remove(id); err != nil {
				t.Fatal(err)
			}
			for _, b := range bad {
				refuse(t, s, pack(t, append(good[:len(good):len(good)], b)), b.header.Name)
			}
		}
	}
}

func inodes(lines map[string]string) (n int64) {
	for path, line := range lines {
		if strings.Contains(line, fmt.Sprintf(" first %q ", path)) || !strings.Contains(line, " first ") {
			n++
		}
	}
	return n
}

// refuse expects that s finds the archive invalid, names the entry and keeps nothing.
func refuse(t testing.TB, s *Store, stream []byte, entry string) {
	t.Helper()
	w, err := s.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.ReadFrom(bytes.NewReader(stream))
	if !errors.Is(err, tarstream.ErrInvalid) || !strings.Contains(err.Error(), tarstream.Quote(entry)) {
		t.Errorf("%s: entry %q: error %v", s.config.Format, entry, err)
	}
	if err := w.Discard(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(s.path("tmp")); len(left) > 0 {
		t.Errorf("tmp has %v", left)
	}
}

func describe(members []member) string {
	var b strings.Builder
	for _, m := range members {
		fmt.Fprintf(&b, "%c %q -> %q\n", m.header.Typeflag, m.header.Name, m.header.Linkname)
	}
	return b.String()
}

func fsck(t testing.TB, dir string) {
	t.Helper()
	out, err := exec.Command("fsck.erofs", "--extract", "--device="+filepath.Join(dir, dataFile), filepath.Join(dir, metaFile)).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		t.Skip("fsck.erofs is not installed")
	}
	if err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
}

// TestLargeLayer reads a layer through the kernel whose directories have many blocks and whose attributes are long.
func TestLargeLayer(t *testing.T) {
	m := newModel()
	var members []member
	put := func(c member) {
		if err := m.apply(&c.header, c.content); err != nil {
			t.Fatal(err)
		}
		members = append(members, c)
	}
	for i := range 20000 {
		put(member{header: tar.Header{Name: fmt.Sprintf("many/%d-%s", i, strings.Repeat("n", i%200)), Typeflag: tar.TypeReg, ModTime: time.Unix(int64(i%3), 0)}})
	}
	for i := range 30 {
		put(member{header: tar.Header{Name: fmt.Sprintf("links/%d", i), Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("t", 1+i*141)}})
		c := member{header: tar.Header{Name: fmt.Sprintf("many/x%d", i), Typeflag: tar.TypeReg, PAXRecords: map[string]string{}}, content: strings.Repeat("c", i*100000)}
		c.header.Size = int64(len(c.content))
		for j := range i % 4 {
			c.header.PAXRecords[fmt.Sprint("SCHILY.xattr.user.x", j)] = strings.Repeat("v", i*700)
		}
		put(c)
	}
	s := open(t, Config{Root: t.TempDir(), Format: EROFS}) // ext4 has no room for such attributes
	id := add(t, s, pack(t, members))
	f, release, err := s.Lower(id)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	defer f.Close()
	if diff := cmp.Diff(m.show(), show(t, procPath(f))); diff != "" {
		t.Errorf("-model +layer:\n%.3000s", diff)
	}
	fsck(t, s.path("layers", dirName(id)))
}

// TestSizesAreTrue compares what unpacking counted with what the disk says after it is synced.
func TestSizesAreTrue(t *testing.T) {
	for _, s := range bothFormats(t) {
		id := add(t, s, manyFiles(t, 2000))
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		var used int64
		err := filepath.WalkDir(s.path("layers", dirName(id)), func(path string, d fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			used += st.Blocks * 512
			return err
		})
		l, _ := s.Stat(id)
		if err != nil || l.Bytes < used*98/100 || l.Bytes > used*102/100 {
			t.Errorf("%s: counted %d bytes, the disk says %d (%v)", s.config.Format, l.Bytes, used, err)
		}
	}
}
