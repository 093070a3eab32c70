package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
)

// loopDisk mounts a file system in a file of its own.
func loopDisk(t *testing.T, kind, options string, mkfs ...string) string {
	t.Helper()
	root(t)
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("%s is not installed", mkfs[0])
	}
	image := filepath.Join(t.TempDir(), "image")
	dir, err := os.MkdirTemp("", "loop-disk-") // not below t.TempDir, where root looks for mounts of the store
	if err == nil {
		err = os.WriteFile(image, nil, 0o600)
	}
	if err == nil {
		err = os.Truncate(image, 400<<20) // XFS takes no less than 300 MB
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) }) // the unmount before tells
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", mkfs, err, out)
	}
	if out, err := exec.Command("mount", "-n", "-t", kind, "-o", "loop,"+options, image, dir).CombinedOutput(); err != nil {
		t.Skipf("this kernel mounts no %s with %s: %s", kind, options, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestProjectQuotas(t *testing.T) {
	t.Run("ext4", func(t *testing.T) {
		testProjectQuotas(t, loopDisk(t, "ext4", "prjquota", "mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"), unix.EDQUOT)
	})
	t.Run("xfs", func(t *testing.T) {
		testProjectQuotas(t, loopDisk(t, "xfs", "prjquota", "mkfs.xfs", "-q"), unix.ENOSPC)
	})
}

// full is what a write beyond the limit fails with.
func testProjectQuotas(t *testing.T, disk string, full error) {
	const limit = 4 << 20
	c := Config{Root: filepath.Join(disk, "store"), WritableLimit: limit, BootID: "first"}
	s := open(t, c)
	id := add(t, s, tartest.Archive(t, tar.Header{Name: "d/lower", Size: 100000}))
	build := func(s *Store, container string) *os.File {
		f, err := s.Root(ctx, container, []digest.Digest{id}, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	one, two := build(s, "one"), build(s, "two")
	defer two.Close()
	none, inodes, ok := s.Written("one")
	if !ok || inodes > 8 || none > 64<<10 {
		t.Errorf("a new container has written %d bytes in %d inodes, %v", none, inodes, ok)
	}
	if err := os.WriteFile(at(one, "d/new"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(at(one, "d/lower"), 0o600); err != nil { // copies it up
		t.Fatal(err)
	}
	if got, more, _ := s.Written("one"); got-none < 1<<20+100000 || got-none > 1<<20+200000 || more-inodes < 3 || more-inodes > 4 {
		t.Errorf("after 1,148,576 bytes in a directory and two files %d bytes and %d inodes are counted", got-none, more-inodes)
	}
	if got, _, _ := s.Written("two"); got != none {
		t.Errorf("the other one has written %d bytes", got-none)
	}

	err := os.WriteFile(at(one, "d/much"), make([]byte, limit), 0o600)
	if !errors.Is(err, full) {
		t.Errorf("writing more than the limit: %v", err)
	}
	if got, _, _ := s.Written("one"); got > limit {
		t.Errorf("%d bytes were written", got)
	}
	if err := os.WriteFile(at(two, "d/other"), make([]byte, 1<<20), 0o600); err != nil {
		t.Errorf("the other one: %v", err)
	}
	one.Close()

	again := open(t, c) // as after a restart
	if got, _, ok := again.Written("one"); !ok || got < 1<<20 {
		t.Errorf("after a restart %d bytes, %v", got, ok)
	}
	three := build(again, "three")
	three.Close()
	if p := again.projects; p["three"] == p["one"] || p["three"] == p["two"] || p["one"] == p["two"] {
		t.Errorf("projects %v", p)
	}
	old := again.projects["one"]
	if err := again.RemoveRoot("one"); err != nil {
		t.Fatal(err)
	}
	again.cleanup.Wait()
	waitUnused(t, again, old) // until then the number is taken
	if _, _, ok := again.Written("one"); ok {
		t.Error("a container that is gone is counted")
	}
	four := build(again, "four")
	four.Close()
	if again.projects["four"] != old {
		t.Errorf("project %d was not given again: %v", old, again.projects)
	}
	if got, _, ok := again.Written("four"); !ok || got != none {
		t.Errorf("a new container has written %d bytes, %v", got, ok)
	}
	volume, err := again.Root(ctx, "volume", []digest.Digest{id}, RootOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	volume.Close()
	if _, _, ok := again.Written("volume"); ok {
		t.Error("a volume of an image is counted")
	}
}

// The project of a removed root is nobody's until it is deleted, also not that of the same container's next root, and goes then.
func TestProjectOfRemovedRoot(t *testing.T) {
	s, release := heldRemovals(t)
	writtenRoot(t, s, "c")
	former := s.reserveProject("c", firstProject)
	if err := s.RemoveRoot("c"); err != nil {
		t.Fatal(err)
	}
	writtenRoot(t, s, "c")
	anew := s.reserveProject("c", firstProject)
	if anew == former {
		t.Errorf("the next root has project %d, of which files are being deleted", anew)
	}
	release()
	if s.projects["c"] != anew || len(s.projects) != 1 {
		t.Errorf("projects %v, want %d for the root that is there", s.projects, anew)
	}
	if got := s.reserveProject("other", firstProject); got != former {
		t.Errorf("project %d was not given again, but %d", former, got)
	}
}

// waitUnused waits until nothing is counted in a project. XFS frees deleted files in the background.
func waitUnused(t *testing.T, s *Store, project uint32) {
	t.Helper()
	for over := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, inodes, err := s.quota.Usage(project)
		if err != nil || time.Now().After(over) {
			t.Fatalf("project %d has %d inodes, %v", project, inodes, err)
		}
		if inodes == 0 {
			return
		}
	}
}

func TestLimitNeedsProjectQuotas(t *testing.T) {
	root(t)
	_, err := Open(Config{Root: smallDisk(t, "2m"), Format: Overlay, WritableLimit: 1 << 20})
	if !errors.Is(err, ErrNoQuota) || !bytes.Contains([]byte(err.Error()), []byte("prjquota")) {
		t.Errorf("opened with a limit: %v", err)
	}
}
