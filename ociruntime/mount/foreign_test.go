package mount

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestForeignPoints(t *testing.T) {
	const table = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /srv/with\040blank rw shared:2 - nfs4 server:/x rw
23 21 0:21 / /srv/local rw - tmpfs tmpfs rw
24 21 0:22 / /mnt/fuse rw master:3 - fuse.sshfs host:/ rw
25 21 0:23 / /auto rw - autofs systemd-1 rw
`
	points := slices.Sorted(maps.Keys(foreignPoints(table)))
	if want := []string{"/auto", "/mnt/fuse", "/srv/with blank"}; !slices.Equal(points, want) {
		t.Errorf("got %q, want %q", points, want)
	}
	f := &Foreign{points: foreignPoints(table)}
	for path, want := range map[string]bool{
		"/srv": false, "/srv/local/x": false, "/srv/with blank": true, "/srv/with blank/a/b": true, "/mnt/fuse/..": false, "/auto/x": true, "/automatic": false,
	} {
		if got, some := f.crosses(path); got != want || !some {
			t.Errorf("%s: crosses %v, some %v", path, got, some)
		}
	}
}

// The Go runtime polls files too, and whoever polls the table first is told of a change.
func TestForeignSeesMountsThatRuntimeSaw(t *testing.T) {
	f, err := NewForeign()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	if crosses, _, err := f.Crosses(dir); crosses || err != nil {
		t.Fatalf("before: %v, %v", crosses, err)
	}
	mountFUSE(t, dir)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closeBoth(r, w)
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, _ = r.Read(make([]byte, 1)) // nothing to do: the runtime polls
	if crosses, _, err := f.Crosses(dir); !crosses || err != nil {
		t.Errorf("after: %v, %v", crosses, err)
	}
}

// A kernel that lists mounts and one that only has the table say the same, also of a mount that was moved.
func TestForeignFollowsMounts(t *testing.T) {
	for _, whole := range []bool{false, true} {
		t.Run(fmt.Sprintf("whole table %v", whole), func(t *testing.T) {
			f, err := NewForeign()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.whole = whole
			dir := t.TempDir()
			disk, err := New("tmpfs", "disk", Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer disk.Close()
			if err := unix.MoveMount(int(disk.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil { // a mount below a shared one cannot be moved
				t.Fatal(err)
			}
			here, there := filepath.Join(dir, "with blank"), filepath.Join(dir, "there")
			for _, d := range []string{here, there} {
				if err := os.Mkdir(d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			expect := func(when string, isHere, isThere bool) {
				t.Helper()
				for d, want := range map[string]bool{here: isHere, there: isThere, dir: false} {
					if got, _, err := f.Crosses(d); got != want || err != nil {
						t.Errorf("%s: %s crosses: %v, %v, want %v", when, d, got, err, want)
					}
				}
			}
			expect("before", false, false)
			mountFUSE(t, here)
			expect("mounted", true, false)
			if err := unix.Mount(here, there, "", unix.MS_MOVE, ""); err != nil {
				t.Fatal(err)
			}
			expect("moved", false, true)
			if err := unix.Mount(there, here, "", unix.MS_MOVE, ""); err != nil {
				t.Fatal(err)
			}
			expect("moved back", true, false)
			if _, err := listMounts(); f.whole != whole && !errors.Is(err, unix.ENOSYS) {
				t.Errorf("the whole table was read although mounts are listed: %v", err)
			}
		})
	}
}

// BenchmarkForeignAfterChange is what a start pays for volumes on a node with 2,000 mounts, of which one is new.
func BenchmarkForeignAfterChange(b *testing.B) {
	for _, whole := range []bool{false, true} {
		b.Run(fmt.Sprintf("whole table %v", whole), func(b *testing.B) {
			f, err := NewForeign()
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			f.whole = whole
			change := func() {
				dir := b.TempDir()
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			}
			for range 2000 {
				change()
			}
			for b.Loop() {
				b.StopTimer()
				change()
				b.StartTimer()
				if _, _, err := f.Crosses("/"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// mountFUSE mounts a file system that nobody serves.
func mountFUSE(t *testing.T, dir string) {
	t.Helper()
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	m, err := New("fuse", "dead", ParseOptions([]string{fmt.Sprintf("fd=%d", server.Fd()), "rootmode=40000", "user_id=0", "group_id=0"}))
	if err != nil {
		_ = server.Close()
		t.Skipf("no FUSE: %v", err)
	}
	defer m.Close()
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), server.Close()); err != nil {
			t.Error(err)
		}
	})
}

func closeBoth(r, w *os.File) { _, _ = r.Close(), w.Close() }

func BenchmarkCrosses(b *testing.B) {
	f, err := NewForeign()
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		if _, _, err := f.Crosses("/var/lib/kubelet/pods/uid/volumes/kubernetes.io~projected/token"); err != nil {
			b.Fatal(err)
		}
	}
}
