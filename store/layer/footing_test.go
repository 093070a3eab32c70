package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
)

// standing makes two roots of the same layers and mount points. The first is what the footing is learnt of; the second stands on it.
func standing(t *testing.T, s *Store, layers []digest.Digest, o RootOptions) (first, second *os.File) {
	t.Helper()
	var roots [2]*os.File
	for i, id := range []string{"first", "second"} {
		var err error
		if roots[i], err = s.Root(ctx, id, layers, o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = roots[i].Close()
			if err := s.RemoveRoot(id); err != nil {
				t.Error(err)
			}
		})
		s.cleanup.Wait()
	}
	return roots[0], roots[1]
}

// tree lists what is below a mount: type, mode, owner, size and link of each path.
func tree(t *testing.T, root *os.File) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(procPath(root)+"/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		link, _ := os.Readlink(p)
		size := st.Size
		if d.IsDir() {
			size = 0
		}
		all[strings.TrimPrefix(p, procPath(root)+"/")] = fmt.Sprintf("%o %d:%d %d %s", st.Mode, st.Uid, st.Gid, size, link)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A root that stands on a footing shows all that the image has as it is, and beside that the mount points that it lacks, and nothing else.
// Nothing is written to its writable directory for that, and what is written there changes no other root.
func TestMountPoints(t *testing.T) {
	dir := func(name string) tar.Header { return tar.Header{Name: name + "/", Typeflag: tar.TypeDir} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	const made, empty = "40755 0:0 0 ", "100644 0:0 0 "
	for _, tt := range []struct {
		name   string
		layers [][]tar.Header
		points []MountPoint
		want   map[string]string // what the image lacks
	}{
		{name: "all are missing", layers: [][]tar.Header{{dir("bin")}},
			points: []MountPoint{{"/proc", false}, {"/etc/hosts", true}, {"/a/b/c", false}},
			want:   map[string]string{"proc": made, "etc": made, "etc/hosts": empty, "a": made, "a/b": made, "a/b/c": made}},
		{name: "all are there", layers: [][]tar.Header{{dir("proc"), {Name: "etc/hosts", Size: 7}}}, points: []MountPoint{{"/proc", false}, {"/etc/hosts", true}}},
		{name: "directories of the image keep what they are", layers: [][]tar.Header{{{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o1700, Uid: 3, Gid: 4}, {Name: "etc/x", Size: 1}}},
			points: []MountPoint{{"/etc/hosts", true}, {"/etc/a", false}}, want: map[string]string{"etc/hosts": empty, "etc/a": made}},
		{name: "links of the image lead inside it", layers: [][]tar.Header{{dir("run"), link("var/run", "/run"), link("etc/hosts", "../../../../h"), link("up", "var/run/..")}},
			points: []MountPoint{{"/var/run/secrets/s", false}, {"/etc/hosts", true}, {"/up/data", false}},
			want:   map[string]string{"run/secrets": made, "run/secrets/s": made, "h": empty, "data": made}},
		{name: "links that lead nowhere", layers: [][]tar.Header{{link("a", "b/c"), link("loop", "loop"), link("back", "none/../x")}},
			points: []MountPoint{{"/a", true}, {"/loop/x", false}, {"/back", false}}, want: map[string]string{"b": made, "b/c": empty}},
		{name: "files in place of directories", layers: [][]tar.Header{{{Name: "etc", Size: 1}, {Name: "data", Size: 1}}},
			points: []MountPoint{{"/etc/hosts", true}, {"/data", false}, {"/x", false}}, want: map[string]string{"x": made}},
		{name: "whiteouts and opaque directories", layers: [][]tar.Header{
			{{Name: "etc/hosts", Size: 1}, {Name: "o/a", Size: 1}, {Name: "gone/x", Size: 1}}, {{Name: "etc/.wh.hosts"}, {Name: "o/.wh..wh..opq"}, {Name: ".wh.gone"}}},
			points: []MountPoint{{"/etc/hosts", true}, {"/o/p", false}, {"/gone/x", false}, {"/y", false}}, want: map[string]string{"y": made}},
		{name: "points that exclude each other", layers: [][]tar.Header{{dir("bin")}}, points: []MountPoint{{"/a", true}, {"/a/b", false}, {"/c", false}},
			want: map[string]string{"a": empty, "c": made}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, s *Store) {
				var layers []digest.Digest
				for _, l := range tt.layers {
					layers = append(layers, add(t, s, tartest.Archive(t, l...)))
				}
				first, second := standing(t, s, layers, RootOptions{MountPoints: tt.points})
				want := tree(t, first)
				maps.Copy(want, tt.want)
				if have := tree(t, second); !maps.Equal(have, want) {
					t.Errorf("the root has\n%v\nwant\n%v", have, want)
				}
				if left, err := os.ReadDir(s.UpperDir("second")); err != nil || len(left) > 0 {
					t.Errorf("its writable directory has %v (%v)", left, err)
				}
				for p := range tt.want {
					if err := os.Chmod(at(second, p), 0o711); err != nil {
						t.Error(err)
					}
				}
				if err := s.RemoveRoot("first"); err != nil {
					t.Fatal(err)
				}
				third, err := s.Root(ctx, "first", layers, RootOptions{MountPoints: tt.points})
				if err != nil {
					t.Fatal(err)
				}
				defer third.Close()
				if have := tree(t, third); !maps.Equal(have, want) {
					t.Errorf("after a change in another root there is\n%v\nwant\n%v", have, want)
				}
			})
		})
	}
}

// Inside a user namespace they belong to its root; an image that is a volume gets none.
func TestMountPointsOfOthers(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		layers := []digest.Digest{add(t, s, tartest.Archive(t, tar.Header{Name: "a", Size: 1}))}
		o := RootOptions{MountPoints: []MountPoint{{"/x/y", false}, {"/f", true}}, UIDs: []IDMap{{0, 200000, 65536}}, GIDs: []IDMap{{0, 300000, 65536}}}
		_, second := standing(t, s, layers, o)
		for _, name := range []string{"x", "x/y", "f"} {
			var st unix.Stat_t
			if err := unix.Lstat(at(second, name), &st); err != nil || st.Uid != 200000 || st.Gid != 300000 {
				t.Errorf("%s belongs to %d:%d (%v)", name, st.Uid, st.Gid, err)
			}
		}
		o.ReadOnly = true
		volume, err := s.Root(ctx, "volume", layers, o)
		if err != nil {
			t.Fatal(err)
		}
		defer volume.Close()
		if _, err := os.Lstat(at(volume, "x")); err == nil {
			t.Error("a volume has the mount points of a container")
		}
	})
}

// footed makes a root with one mount point that stands on a footing, and gives the name of that.
func footed(t *testing.T, s *Store, layers []digest.Digest, id, point string) string {
	t.Helper()
	for range 2 {
		root, err := s.Root(ctx, id, layers, RootOptions{MountPoints: []MountPoint{{point, false}}})
		if err != nil {
			t.Fatal(err)
		}
		_ = root.Close()
		s.cleanup.Wait()
		if name := s.footings.of[id]; name != "" {
			return name
		}
		if err := s.RemoveRoot(id); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("the root of %s stands on nothing", id)
	return ""
}

// footingsThere lists those on disk.
func footingsThere(t *testing.T, s *Store) []string {
	t.Helper()
	s.cleanup.Wait()
	dirs, err := os.ReadDir(s.path(footingsDir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range dirs {
		names = append(names, d.Name())
	}
	return names
}

// A store that is opened anew in the same boot finds the footings that roots stand on, and no others; of those that nobody uses some are
// kept.
func TestFootingsGo(t *testing.T) {
	c := Config{Root: t.TempDir()}
	s := open(t, c)
	layers := []digest.Digest{add(t, s, tartest.Archive(t, tar.Header{Name: "a", Size: 1}))}
	used, idle := footed(t, s, layers, "used", "/used"), footed(t, s, layers, "idle", "/idle")
	if err := s.RemoveRoot("idle"); err != nil {
		t.Fatal(err)
	}
	if have := footingsThere(t, s); !slices.Contains(have, used) || !slices.Contains(have, idle) || len(have) != 2 {
		t.Fatalf("there are %v, want %s and %s", have, used, idle)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, c)
	if have := footingsThere(t, s); !slices.Equal(have, []string{used}) {
		t.Errorf("after a restart there are %v, want %s", have, used)
	}
	if other := footed(t, s, layers, "other", "/used"); other != used {
		t.Errorf("the same mount points got %s, want %s", other, used)
	}
	if err := errors.Join(s.Close(), os.RemoveAll(s.path(footingsDir, used))); err != nil {
		t.Fatal(err)
	}
	s = open(t, c)
	if again := footed(t, s, layers, "again", "/used"); again != used { // whatever records say of one that is not there
		t.Errorf("the same mount points got %s, want %s", again, used)
	}
	for i := range maxFootings + 5 {
		footed(t, s, layers, "one", fmt.Sprintf("/%d", i))
		if err := s.RemoveRoot("one"); err != nil {
			t.Fatal(err)
		}
	}
	if have := footingsThere(t, s); len(have) > maxFootings+1 || !slices.Contains(have, used) {
		t.Errorf("%d are kept, at most %d are to be, with %s", len(have), maxFootings+1, used)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.BootID = "another"
	if have := footingsThere(t, open(t, c)); len(have) > 0 {
		t.Errorf("after a reboot there are %v", have)
	}
}

// A footing that cannot be moved into trash, as a full disk may refuse, is deleted where it lies. No root stands on what is left of it,
// and none takes its place before it is gone.
func TestFootingDeletedInPlace(t *testing.T) {
	s := open(t, Config{Root: t.TempDir()})
	layers := []digest.Digest{add(t, s, tartest.Archive(t, tar.Header{Name: "a", Size: 1}))}
	name := footed(t, s, layers, "first", "/x")
	if err := s.RemoveRoot("first"); err != nil {
		t.Fatal(err)
	}
	s.cleanup.Wait()
	if err := errors.Join(os.Remove(s.path("trash")), os.WriteFile(s.path("trash"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for range maxDeleting { // nothing is deleted yet
		s.deleting <- struct{}{}
	}
	s.dropFootings()
	old, err := os.Stat(s.path(footingsDir, name))
	if err != nil {
		t.Fatal("it was not to be moved: ", err)
	}
	for _, id := range []string{"second", "third"} {
		root, err := s.Root(ctx, id, layers, RootOptions{MountPoints: []MountPoint{{"/x", false}}})
		if err != nil {
			t.Fatal(err)
		}
		root.Close()
		if on := s.footings.of[id]; on != "" {
			t.Errorf("the root of %s stands on %s, which is being deleted", id, on)
		}
	}
	for making := 1; making > 0; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		making = len(s.footings.making)
		s.mu.Unlock()
	}
	if now, err := os.Stat(s.path(footingsDir, name)); err != nil || !os.SameFile(old, now) {
		t.Errorf("another is in its place: %v", err)
	}
	for range maxDeleting {
		<-s.deleting
	}
	if left := footingsThere(t, s); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	if again := footed(t, s, layers, "fourth", "/x"); again != name {
		t.Errorf("the same mount points got %s, want %s", again, name)
	}
}
