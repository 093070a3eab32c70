package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tarstream"
	"github.com/criserver/criserver/store/layer/tartest"
)

// reopen opens the store of s again, as after a kill or, with another boot, a power loss.
func reopen(t *testing.T, s *Store, boot string) *Store {
	t.Helper()
	c := s.config
	c.BootID = boot
	return open(t, c)
}

func TestPowerLossDropsPendingLayersOnly(t *testing.T) {
	for _, format := range []Format{EROFS, Overlay} {
		s := open(t, Config{Root: t.TempDir(), Format: format, BootID: "first"})
		durable := add(t, s, tartest.Archive(t, tar.Header{Name: "durable", Size: 9000}))
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		pending := add(t, s, tartest.Archive(t, tar.Header{Name: "pending", Size: 9000}))
		root, err := s.Root(ctx, "c", []digest.Digest{durable, pending}, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		root.Close()
		if l, _ := s.Stat(durable); !l.Durable {
			t.Error("synced layer is not durable")
		}

		killed := reopen(t, s, "first")
		if len(killed.List()) != 2 || len(killed.Roots()) != 1 {
			t.Errorf("after a kill: %v %v", killed.List(), killed.Roots())
		}
		if _, err := killed.Remove(durable); !errors.Is(err, ErrInUse) {
			t.Errorf("after a kill a layer in use can be removed: %v", err)
		}

		booted := reopen(t, s, "second")
		if got := booted.List(); len(got) != 1 || got[0].DiffID != durable || !got[0].Durable {
			t.Errorf("after a power loss: %v", got)
		}
		if len(booted.Roots()) != 0 {
			t.Errorf("after a power loss: roots %v", booted.Roots())
		}
		booted.cleanup.Wait()
		empty(t, booted, "containers", "tmp", "trash")
		f, release, err := booted.Lower(durable)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(at(f, "durable")); err != nil || st.Size() != 9000 {
			t.Errorf("durable file: %v %v", st, err)
		}
		f.Close()
		release()
	}
}

func TestOpenDropsLeftoversAndDamage(t *testing.T) {
	rows := []struct {
		name   string
		damage func(s *Store, dir string) error
		kept   bool
	}{
		{"nothing", func(*Store, string) error { return nil }, true},
		{"record torn", func(_ *Store, dir string) error { return os.Truncate(filepath.Join(dir, layerFile), 40) }, false},
		{"record missing", func(_ *Store, dir string) error { return os.Remove(filepath.Join(dir, layerFile)) }, false},
		{"record of another layer", func(s *Store, dir string) error {
			return os.Rename(dir, s.path("layers", dirName(digest.FromString("another"))))
		}, false},
		{"unfinished layer", func(s *Store, _ string) error {
			w, err := s.Begin(ctx)
			if err == nil {
				_, err = w.ReadFrom(bytes.NewReader(tartest.Archive(t, tar.Header{Name: "d/x", Size: 5000})))
			}
			return err
		}, true},
		{"doomed layer", func(s *Store, _ string) error {
			return os.MkdirAll(s.path("trash", "1", fsDir, "d"), 0o700)
		}, true},
		{"half a container", func(s *Store, _ string) error { return os.MkdirAll(s.path("containers", "c", upperDir), 0o700) }, true},
		{"stray file", func(s *Store, _ string) error { return os.WriteFile(s.path("layers", "stray"), nil, 0o600) }, true},
	}
	for _, format := range []Format{EROFS, Overlay} {
		for _, row := range rows {
			t.Run(string(format)+" "+row.name, func(t *testing.T) {
				s := open(t, Config{Root: t.TempDir(), Format: format})
				id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 5000}))
				if err := s.Sync(ctx); err != nil {
					t.Fatal(err)
				}
				if err := row.damage(s, s.path("layers", dirName(id))); err != nil {
					t.Fatal(err)
				}
				again := reopen(t, s, s.config.BootID)
				if again.Has(id) != row.kept {
					t.Errorf("has the layer: %v", again.Has(id))
				}
				again.cleanup.Wait()
				empty(t, again, "tmp", "trash", "containers")
				if left, _ := os.ReadDir(again.path("layers")); len(left) != len(again.List()) {
					t.Errorf("layers has %v", left)
				}
			})
		}
	}
}

// smallDisk is a tmpfs of size bytes. It is attached, since nothing below a detached mount can be cloned before Linux 6.15,
// and not below t.TempDir, where root looks for mounts of the store.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	root(t)
	dir, err := os.MkdirTemp("", "small-disk-")
	if err == nil {
		err = unix.Mount("disk", dir, "tmpfs", 0, "size="+size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDiskLeavesNothing(t *testing.T) {
	disk := smallDisk(t, "3m")
	stream := tartest.Archive(t, tar.Header{Name: "d/small", Size: 5000}, tar.Header{Name: "large", Size: 8 << 20})
	unpackers := map[Format]func(string, tarstream.Limits) (unpacker, error){EROFS: newErofsUnpacker, Overlay: newDirUnpacker}
	for format, begin := range unpackers {
		dir := filepath.Join(disk, string(format))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		u, err := begin(dir, tarstream.DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		kept, err := recordFrame(dir)
		if err != nil {
			t.Fatal(err)
		}
		w := &Writer{s: &Store{config: Config{Limits: tarstream.DefaultLimits()}}, ctx: ctx, dir: dir, impl: u, kept: kept}
		if _, err = w.ReadFrom(bytes.NewReader(stream)); err == nil {
			_, err = w.Commit(digest.FromBytes(stream))
		}
		if !errors.Is(err, unix.ENOSPC) || errors.Is(err, tarstream.ErrInvalid) {
			t.Errorf("%s: error %v", format, err)
		}
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(disk)
	if err != nil || len(left) > 0 {
		t.Errorf("left on the disk: %v %v", left, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil || st.Bavail*uint64(st.Bsize) != 3<<20 {
		t.Errorf("%d bytes are free (%v)", st.Bavail*uint64(st.Bsize), err)
	}
}

func TestFullDiskStillDeletes(t *testing.T) {
	s := open(t, Config{Root: smallDisk(t, "2m"), Format: Overlay})
	id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 1 << 20}))
	fill := s.path("fill")
	if err := os.WriteFile(fill, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("disk is not full: %v", err)
	}
	if _, err := s.Root(ctx, "c", []digest.Digest{id}, RootOptions{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("root on a full disk: %v", err)
	}
	empty(t, s, "containers")
	if freed, err := s.Remove(id); err != nil || freed < 1<<20 {
		t.Errorf("remove on a full disk: %d %v", freed, err)
	}
}

func TestUnsyncableLayerIsRemoved(t *testing.T) {
	s := open(t, Config{Root: t.TempDir(), Format: EROFS})
	id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 5000}))
	if err := os.Remove(s.path("layers", dirName(id), dataFile)); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(ctx); err == nil || !strings.Contains(err.Error(), string(id)) {
		t.Errorf("sync of a layer without data: %v", err)
	}
	if s.Has(id) {
		t.Error("the layer is still offered")
	}
	empty(t, s, "layers", "trash")
}

// A layer that is removed and pulled again while Sync runs must not become durable by the sync of the old one.
func TestSyncOfARemovedLayerDoesNotVouchForItsSuccessor(t *testing.T) {
	for _, format := range []Format{EROFS, Overlay} {
		s := open(t, Config{Root: t.TempDir(), Format: format, BootID: "first"})
		stream := tartest.Archive(t, tar.Header{Name: "f", Size: 5000})
		id := add(t, s, stream)
		old := s.pending()[0]
		dir, err := s.openEntry(old)
		if err != nil {
			t.Fatal(err)
		}
		if old.Format == EROFS {
			old.syncs.Done() // else Remove would wait for it
		}
		defer dir.Close()
		if _, err := s.Remove(id); err != nil {
			t.Fatal(err)
		}
		add(t, s, stream)
		if err := s.promote(old, dir); err == nil {
			t.Errorf("%s: a removed layer was recorded as durable", format)
		}
		if err := s.syncLayer(old, func() error { return nil }); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		if left := reopen(t, s, "second").List(); len(left) != 0 {
			t.Errorf("%s: after a power loss: %v", format, left)
		}
	}
}

// A layer that is removed while Sync records it is gone with all its files.
func TestRemoveWhileSyncing(t *testing.T) {
	for _, format := range []Format{EROFS, Overlay} {
		s := open(t, Config{Root: t.TempDir(), Format: format, BootID: "first"})
		stream := tartest.Archive(t, tar.Header{Name: "f", Size: 5000})
		for range 200 {
			id := add(t, s, stream)
			synced := make(chan error, 1)
			go func() { synced <- s.Sync(ctx) }()
			if _, err := s.Remove(id); err != nil {
				t.Errorf("%s: %v", format, err)
			}
			if err := <-synced; err != nil {
				t.Errorf("%s: %v", format, err)
			}
		}
		empty(t, s, "layers", "trash")
	}
}

func TestUnsyncableLayerInUseGoesOn(t *testing.T) {
	for _, format := range []Format{EROFS, Overlay} {
		t.Run(string(format), func(t *testing.T) {
			s := open(t, Config{Root: t.TempDir(), Format: format, BootID: "first"})
			stream := tartest.Archive(t, tar.Header{Name: "d/f", Size: 5000})
			build := func(container string) *os.File {
				f, err := s.Root(ctx, container, []digest.Digest{digest.FromBytes(stream)}, RootOptions{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				return f
			}
			id := add(t, s, stream)
			old := build("old")
			if err := s.expel(s.pending()[0]); err != nil {
				t.Fatal(err)
			}
			if s.Has(id) {
				t.Error("an unsyncable layer is still offered")
			}
			if left := reopen(t, s, "first").List(); len(left) != 0 {
				t.Errorf("after a kill it is offered again: %v", left)
			}
			add(t, s, stream) // pulled again
			build("new")
			s.cleanup.Wait()
			if err := os.Remove(at(old, "d/f")); err != nil { // looks into the lower directory
				t.Errorf("the container that used it: %v", err)
			}
			if err := s.RemoveRoot("old"); err != nil {
				t.Error(err)
			}
			if _, err := s.Remove(id); !errors.Is(err, ErrInUse) {
				t.Errorf("the new layer can be removed while it is in use: %v", err)
			}
			next := reopen(t, s, "second")
			next.cleanup.Wait()
			empty(t, next, "layers", "containers", "trash")
		})
	}
}

// TestSparseFiles unpacks what GNU tar makes of files with holes and expects holes again.
func TestSparseFiles(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	sparse := filepath.Join(dir, "sparse")
	f, err := os.Create(sparse)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 10 << 20, 40<<20 - 3} {
		if _, err := f.WriteAt([]byte("abc"), off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	want, err := os.ReadFile(sparse)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax", "pax --sparse-version=0.0", "pax --sparse-version=0.1"} {
		stream, err := exec.Command("sh", "-c", "tar c --sparse -C "+dir+" --format="+format+" sparse").Output()
		if err != nil || len(stream) > 1<<20 {
			t.Fatalf("tar: %d bytes, %v", len(stream), err)
		}
		for _, s := range bothFormats(t) {
			id := add(t, s, stream)
			f, release, err := s.Lower(id)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(at(f, "sparse")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s %s: %d bytes differ (%v)", format, s.config.Format, len(got), err)
			}
			f.Close()
			release()
			if l, _ := s.Stat(id); l.Bytes > 1<<20 {
				t.Errorf("%s %s: %d bytes on disk", format, s.config.Format, l.Bytes)
			}
		}
	}
}

// A layer that is removed must be out of the way before its files are deleted, or its next pull finds its place taken.
func TestDiscardMovesAway(t *testing.T) {
	s := open(t, Config{Root: t.TempDir()})
	dir := s.path("layers", "doomed")
	if err := os.MkdirAll(filepath.Join(dir, fsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	doomed := s.discard(dir)
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after discard the directory is still there: %v", err)
	}
	if filepath.Dir(doomed) != s.path("trash") {
		t.Errorf("discard moved the directory to %s", doomed)
	}
	if _, err := os.Lstat(filepath.Join(doomed, fsDir)); err != nil {
		t.Error(err)
	}
}
