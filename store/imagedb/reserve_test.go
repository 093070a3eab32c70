package imagedb

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// On a disk that is full to its last block every image can still be removed, and then the reserve is made again.
func TestFullDiskStillRemoves(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "db")
	db, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	for n := range 60 {
		img := image(n, "name")
		img.Config = append(img.Config, strings.Repeat(" ", 50000+n)...) // rewriting neighbours takes pages
		img.ID = digest.FromBytes(img.Config)
		if err := db.Put(img); err != nil {
			t.Fatal(err)
		}
	}
	db = compacted(t, db, path)
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 24<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	images := db.Snapshot().Images()

	saved := db.reserve
	db.reserve = filepath.Join(dir, "absent") // as if there were none
	if _, err := db.Remove(images[0].ID); !errors.Is(err, unix.ENOSPC) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removal without a reserve: %v", err)
	}
	if len(db.Snapshot().Images()) != len(images) {
		t.Error("a removal that failed has removed")
	}
	db.reserve = saved
	var st unix.Stat_t
	for i, img := range db.Snapshot().Images() {
		if _, err := db.Remove(img.ID); err != nil {
			t.Errorf("with a reserve: %v", err)
		}
		if err := unix.Stat(db.reserve, &st); i == 0 && (err != nil || st.Blocks > 0) {
			t.Errorf("the reserve was not spent: %d blocks, %v", st.Blocks, err)
		}
	}
	if left := db.Snapshot().Images(); len(left) > 0 {
		t.Errorf("%d images are left", len(left))
	}
	if err := errors.Join(os.Remove(fill), db.Refill()); err != nil {
		t.Error(err)
	}
	if err := unix.Stat(db.reserve, &st); err != nil || st.Blocks*512 < reserveBase {
		t.Errorf("the reserve takes %d bytes: %v", st.Blocks*512, err)
	}
}

// compacted is the database without free pages, so that every change needs new ones.
func compacted(t *testing.T, db *DB, path string) *DB {
	dense, err := bolt.Open(path+".dense", 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bolt.Compact(dense, db.bolt, 0), dense.Close(), db.Close(), os.Rename(path+".dense", path)); err != nil {
		t.Fatal(err)
	}
	again, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return again
}
