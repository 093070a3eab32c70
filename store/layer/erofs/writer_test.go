package erofs

import (
	"archive/tar"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/criserver/criserver/store/layer/tarstream"
	"github.com/criserver/criserver/store/layer/tartest"
)

var ctx = context.Background()

// fsck lets erofs-utils look at the image and read all of its files.
func fsck(t testing.TB, meta, data []byte) {
	t.Helper()
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		t.Skip("fsck.erofs is not installed")
	}
	dir := t.TempDir()
	m, d := filepath.Join(dir, "meta"), filepath.Join(dir, "data")
	for p, b := range map[string][]byte{m: meta, d: data} {
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("fsck.erofs", "--extract", "--device="+d, m).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
}

func mustBuild(t testing.TB, stream []byte) map[string]*node {
	t.Helper()
	meta, data, err := build(stream, tarstream.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := check(meta.b, data.b)
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, meta.b, data.b)
	return nodes
}

func TestImageHoldsEveryKind(t *testing.T) {
	old := time.Unix(-5, 7)
	nodes := mustBuild(t, tartest.Archive(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 70000},
		tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o2755, ModTime: old},
		tar.Header{Name: "d/f", Size: 5000, Mode: 0o4755, Uid: 1, Gid: 4294967294, ModTime: time.Unix(1e9, 123456789)},
		tar.Header{Name: "d/empty"},
		tar.Header{Name: "d/exact", Size: 8192},
		tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/f"},
		tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d/f"},
		tar.Header{Name: "long", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x/", 2047)},
		tar.Header{Name: "long2", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("y/", 2047)},
		tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 300000},
		tar.Header{Name: "b", Typeflag: tar.TypeBlock, Devmajor: 4095, Devminor: 3},
		tar.Header{Name: "p", Typeflag: tar.TypeFifo},
		tar.Header{Name: "not\xff\xfeutf8"},
		tar.Header{Name: ".wh.gone"},
		tar.Header{Name: "o/.wh..wh..opq"},
		tar.Header{Name: "x", PAXRecords: map[string]string{
			"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02" + strings.Repeat("\x00", 16),
			"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.com.apple.x": "1", "SCHILY.xattr.user.big": strings.Repeat("v", 9000),
		}},
	))
	want := map[string]string{
		"/":                "41777 70000:0 0.000000000 n4 [trusted.overlay.origin=0]",
		"/d":               "42755 0:0 -5.000000007 n2",
		"/d/f":             "104755 1:4294967294 1000000000.123456789 n2 5000",
		"/d/h":             "104755 1:4294967294 1000000000.123456789 n2 5000",
		"/d/empty":         "100644 0:0 0.000000000 n1 0",
		"/d/exact":         "100644 0:0 0.000000000 n1 8192",
		"/l":               "120777 0:0 0.000000000 n1 3",
		"/long":            "120777 0:0 0.000000000 n1 4094",
		"/long2":           "120777 0:0 0.000000000 n1 4094",
		"/c":               "20644 0:0 0.000000000 n1 rdev 493fe1e0",
		"/b":               "60644 0:0 0.000000000 n1 rdev fff03",
		"/p":               "10644 0:0 0.000000000 n1",
		"/not\xff\xfeutf8": "100644 0:0 0.000000000 n1 0",
		"/gone":            "20000 0:0 0.000000000 n1 rdev 0",
		"/o":               "40755 0:0 0.000000000 n2 [trusted.overlay.opaque=1]",
		"/x":               "100644 0:0 0.000000000 n1 0 [security.capability=20] [user.a=1] [user.big=9000]",
	}
	want["/c"] = fmt.Sprintf("20644 0:0 0.000000000 n1 rdev %x", deviceNumber(1, 300000))
	for path, w := range want {
		n := nodes[path]
		if n == nil {
			t.Errorf("%q is missing", path)
			continue
		}
		if got := n.String(); got != w {
			t.Errorf("%q\n got %s\nwant %s", path, got, w)
		}
	}
	if len(nodes) != len(want) {
		t.Errorf("%d nodes, want %d", len(nodes), len(want))
	}
	if nodes["/d/f"] != nodes["/d/h"] {
		t.Error("hard link has an inode of its own")
	}
	if c := nodes["/long2"].content; c != strings.Repeat("y/", 2047) {
		t.Errorf("target of long2 begins %.20q", c)
	}
	if c := nodes["/d/f"].content; c != strings.Repeat("d", 5000) {
		t.Errorf("content of d/f begins %.20q", c)
	}
}

func (n *node) String() string {
	s := fmt.Sprintf("%o %d:%d %d.%09d n%d", n.mode, n.uid, n.gid, n.mtime, n.nsec, n.nlink)
	switch n.mode & modeFmt {
	case modeReg, modeLink:
		s += fmt.Sprint(" ", len(n.content))
	case modeChar, modeBlock:
		s += fmt.Sprintf(" rdev %x", n.rdev)
	}
	for _, name := range sortedKeys(n.xattrs) {
		s += fmt.Sprintf(" [%s=%d]", name, len(n.xattrs[name]))
	}
	return s
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func TestLargeDirectory(t *testing.T) {
	for _, count := range []int{1, 150, 151, 152, 153, 300, 5000} {
		var headers []tar.Header
		for i := range count {
			headers = append(headers, tar.Header{Name: fmt.Sprintf("!%d/%015d", count, i)})
		}
		nodes := mustBuild(t, tartest.Archive(t, headers...))
		if len(nodes) != count+2 {
			t.Errorf("%d nodes, want %d", len(nodes), count+2)
		}
	}
}
