package layer

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
	"github.com/criserver/criserver/store/record"
)

// overwrite changes bytes of a file below the layer's directory.
func overwrite(t *testing.T, s *Store, id digest.Digest, name string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(s.path("layers", dirName(id), name), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(text), off)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// verified is a layer with a replaced file (blocks 0 and 1 of an image's data), one of 3 blocks with two names (2 to 4),
// one of one (5) and one of holes.
func verified(t *testing.T) []byte {
	return pack(t, []member{
		{header: tar.Header{Name: "old", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5000}, content: strings.Repeat("o", 5000)},
		{header: tar.Header{Name: "usr/a", Typeflag: tar.TypeReg, Mode: 0o644, Size: 9000}, content: strings.Repeat("a", 9000)},
		{header: tar.Header{Name: "b\n", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 100}, content: strings.Repeat("b", 100)},
		{header: tar.Header{Name: "usr/bin/a2", Typeflag: tar.TypeLink, Linkname: "usr/a"}},
		{header: tar.Header{Name: "old", Typeflag: tar.TypeReg, Mode: 0o644}},
		{header: tar.Header{Name: "holes", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3 << 20}, content: strings.Repeat("\x00", 3<<20)},
		{header: tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "usr/a"}},
		{header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600, PAXRecords: map[string]string{"SCHILY.xattr.trusted.t": "v"}}},
		{header: tar.Header{Name: "usr/.wh.gone", Typeflag: tar.TypeReg}},
	})
}

func TestVerifyFindsDamage(t *testing.T) {
	path := func(s *Store, id digest.Digest, name string) string { return s.path("layers", dirName(id), name) }
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rows := []struct {
		name   string
		format Format
		damage func(t *testing.T, s *Store, id digest.Digest)
		want   []string // all of it, after the sentinel; nil: no damage
	}{
		{"nothing", EROFS, func(*testing.T, *Store, digest.Digest) {}, nil},
		{"a bit of a file", EROFS, func(t *testing.T, s *Store, id digest.Digest) { overwrite(t, s, id, dataFile, 3*4096+7, "A") },
			[]string{`"usr/a" from byte 4096 on (block 3 of data)`, `"usr/bin/a2" from byte 4096 on (block 3 of data)`}},
		{"two files", EROFS, func(t *testing.T, s *Store, id digest.Digest) {
			overwrite(t, s, id, dataFile, 4*4096, strings.Repeat("x", 4097))
		},
			[]string{`"b\n" from byte 0 on (block 5 of data)`, `"usr/a" from byte 8192 on (block 4 of data)`, `"usr/bin/a2" from byte 8192 on (block 4 of data)`}},
		{"a file that was replaced", EROFS, func(t *testing.T, s *Store, id digest.Digest) { overwrite(t, s, id, dataFile, 0, "x") }, []string{`block 0 of data`}},
		{"blocks lost to zeros", EROFS, func(t *testing.T, s *Store, id digest.Digest) {
			f, err := os.OpenFile(path(s, id, dataFile), os.O_WRONLY, 0)
			must(t, err)
			defer f.Close()
			must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5*4096, 4096))
		}, []string{`"b\n" from byte 0 on (block 5 of data)`}},
		{"data in a hole", EROFS, func(t *testing.T, s *Store, id digest.Digest) { overwrite(t, s, id, dataFile, 6*4096+2<<20, "x") },
			[]string{`"holes" from byte 2097152 on (block 518 of data)`}},
		{"metadata", EROFS, func(t *testing.T, s *Store, id digest.Digest) {
			overwrite(t, s, id, metaFile, 4096+20, "x")
			overwrite(t, s, id, dataFile, 0, "x")
		}, []string{`block 1 of meta`, `block 0 of data`}},
		{"a checksum", EROFS, func(t *testing.T, s *Store, id digest.Digest) { overwrite(t, s, id, sumsFile, 5*4, "x") },
			[]string{`"b\n" from byte 0 on (block 5 of data)`}},
		{"a file lost to zeros with its checksums", EROFS, func(t *testing.T, s *Store, id digest.Digest) {
			for name, length := range map[string][2]int64{dataFile: {5 * 4096, 4096}, sumsFile: {5 * 4, 4}} {
				f, err := os.OpenFile(path(s, id, name), os.O_WRONLY, 0)
				must(t, err)
				must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, length[0], length[1]))
				must(t, f.Close())
			}
		}, []string{`sums is not what was kept while the layer was unpacked`}},
		{"all files lost to holes", EROFS, func(t *testing.T, s *Store, id digest.Digest) {
			for _, name := range []string{dataFile, metaFile, sumsFile} {
				st, err := os.Stat(path(s, id, name))
				must(t, err)
				must(t, os.Truncate(path(s, id, name), 0))
				must(t, os.Truncate(path(s, id, name), st.Size()))
			}
		}, []string{`sums is not what was kept while the layer was unpacked`}},
		{"a shorter file", EROFS, func(t *testing.T, s *Store, id digest.Digest) { must(t, os.Truncate(path(s, id, dataFile), 4096)) },
			[]string{`data has 4096 bytes instead of 3170304`}},
		{"a file that is gone", EROFS, func(t *testing.T, s *Store, id digest.Digest) { must(t, os.Remove(path(s, id, dataFile))) }, []string{`data is missing`}},
		{"nothing", Overlay, func(*testing.T, *Store, digest.Digest) {}, nil},
		{"a bit of a file", Overlay, func(t *testing.T, s *Store, id digest.Digest) {
			var st unix.Stat_t
			must(t, unix.Stat(path(s, id, "fs/usr/a"), &st))
			overwrite(t, s, id, "fs/usr/a", 5000, "A")
			must(t, unix.UtimesNano(path(s, id, "fs/usr/a"), []unix.Timespec{st.Mtim, st.Mtim}))
		}, []string{`"usr/a" has other contents`, `"usr/bin/a2" has other contents`}},
		{"attributes", Overlay, func(t *testing.T, s *Store, id digest.Digest) {
			must(t, os.Chmod(path(s, id, "fs/b\n"), 0o711))
			must(t, os.Chown(path(s, id, "fs/usr"), 5, 6))
			must(t, unix.Setxattr(path(s, id, "fs/fifo"), "trusted.t", []byte("w"), 0))
		}, []string{`"b\n" has mode 100711 instead of 104755`, `"fifo" has other extended attributes`, `"usr" has owner 5:6 instead of 0:0`}},
		{"files that come and go", Overlay, func(t *testing.T, s *Store, id digest.Digest) {
			must(t, os.RemoveAll(path(s, id, "fs/usr/bin")))
			must(t, os.WriteFile(path(s, id, "fs/zz"), nil, 0o600))
			for _, dir := range []string{"fs", "fs/usr"} {
				must(t, unix.UtimesNano(path(s, id, dir), []unix.Timespec{{}, {}}))
			}
		}, []string{`"usr/a" has 1 names instead of 2`, `"usr/bin" is missing`, `"usr/bin/a2" is missing`, `"zz" is not of the layer`}},
		{"a link", Overlay, func(t *testing.T, s *Store, id digest.Digest) {
			must(t, os.Remove(path(s, id, "fs/link")))
			must(t, os.Symlink("usr/b", path(s, id, "fs/link")))
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path(s, id, "fs/link"), []unix.Timespec{{}, {}}, unix.AT_SYMLINK_NOFOLLOW))
			must(t, unix.UtimesNano(path(s, id, "fs"), []unix.Timespec{{}, {}}))
		}, []string{`"link" has other contents`}},
	}
	stores := map[Format]*Store{}
	for _, s := range bothFormats(t) {
		stores[s.config.Format] = s
	}
	for _, row := range rows {
		t.Run(string(row.format)+" "+row.name, func(t *testing.T) {
			s := stores[row.format]
			id := add(t, s, verified(t))
			row.damage(t, s, id)
			err := s.Verify(ctx, id)
			if row.want == nil && err != nil || row.want != nil && !errors.Is(err, ErrDamaged) {
				t.Errorf("error %v", err)
			}
			if row.want != nil && err != nil {
				_, got, _ := strings.Cut(err.Error(), ErrDamaged.Error()+": ")
				if want := strings.Join(row.want, "; "); got != want {
					t.Errorf("\n got %s\nwant %s", got, want)
				}
			}
			if err := s.Expel(id); err != nil || s.Has(id) {
				t.Errorf("expel: %v", err)
			}
			empty(t, s, "layers", "trash", "tmp")
		})
	}
}

// TestVerifyFrame damages what only an export needs.
func TestVerifyFrame(t *testing.T) {
	for _, s := range bothFormats(t) {
		for name, row := range map[string]struct {
			old    bool // as of before checksums of frames were kept
			damage func(path string) error
			want   string
		}{
			"nothing":  {false, func(string) error { return nil }, ""},
			"a byte":   {false, func(path string) error { return flip(path, 20) }, "it has another checksum"},
			"its end":  {false, func(path string) error { return os.Truncate(path, 15) }, "it has 15 bytes instead of "},
			"all":      {false, os.Remove, "it is missing"},
			"old byte": {true, func(path string) error { return flip(path, 20) }, "layer's frame is damaged: "},
			"old":      {true, func(string) error { return nil }, ""},
			"none":     {true, os.Remove, ""},
		} {
			t.Run(string(s.config.Format)+" "+name, func(t *testing.T) {
				id := add(t, s, verified(t))
				if row.old {
					s.layers[id].frame = nil
				}
				path := s.path("layers", dirName(id), frameFile)
				if err := row.damage(path); err != nil {
					t.Fatal(err)
				}
				err := s.Verify(ctx, id)
				if row.want == "" && err != nil || row.want != "" && (!errors.Is(err, ErrFrameDamaged) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), row.want)) {
					t.Errorf("%v instead of %q", err, row.want)
				}
				if row.want != "" && s.config.Format == EROFS {
					overwrite(t, s, id, metaFile, 4096+20, "x")
					if err := s.Verify(ctx, id); !errors.Is(err, ErrFrameDamaged) || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "block 1 of meta; ") {
						t.Errorf("with damaged metadata: %v", err)
					}
				}
				if _, err := s.Remove(id); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	if err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b, at)
	}
	return errors.Join(err, f.Close())
}

// TestVerifyAsksTheDisk expects that nothing comes from the page cache, which may have the right bytes where the disk has
// not, and that nothing comes into it.
func TestVerifyAsksTheDisk(t *testing.T) {
	for _, s := range bothFormats(t) {
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "f", Size: 100000}))
		name := dataFile
		if s.config.Format == Overlay {
			name = "fs/f"
		}
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(s.path("layers", dirName(id)), name)
		if before, err := os.ReadFile(file); err != nil || resident(t, file) == 0 || before[70000] != 'f' {
			t.Fatalf("%s is not in page cache: %v", file, err)
		}
		if err := dropCache(file); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(ctx, id); err != nil {
			t.Error(err)
		}
		if n := resident(t, file); n != 0 {
			t.Errorf("%s: %d bytes of it are in page cache", s.config.Format, n)
		}
	}
}

func TestVerifyErrors(t *testing.T) {
	for _, s := range bothFormats(t) {
		if err := s.Verify(ctx, digest.FromString("unknown")); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown layer: %v", err)
		}
		if err := s.Expel(digest.FromString("unknown")); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown layer: %v", err)
		}
		id := add(t, s, verified(t))
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Verify(cancelled, id); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
			t.Errorf("cancelled: %v", err)
		}
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		again := reopen(t, s, "another boot")
		if err := again.Verify(ctx, id); err != nil {
			t.Errorf("after a boot: %v", err)
		}
		if _, err := again.Remove(id); err != nil {
			t.Errorf("it stays in use: %v", err)
		}
	}
}

// TestLayersWithoutChecksums opens a store of a criserver that kept none.
func TestLayersWithoutChecksums(t *testing.T) {
	for _, s := range bothFormats(t) {
		id := add(t, s, verified(t))
		file := s.path("layers", dirName(id), layerFile)
		var r layerRecord
		if err := record.Read(file, &r); err != nil {
			t.Fatal(err)
		}
		r.Sums = nil
		if err := errors.Join(record.Write(file, r), os.Remove(s.path("layers", dirName(id), sumsFile))); err != nil {
			t.Fatal(err)
		}
		old := reopen(t, s, s.config.BootID)
		if err := old.Verify(ctx, id); !errors.Is(err, ErrNoChecksums) {
			t.Errorf("error %v", err)
		}
		if err := old.Sync(ctx); err != nil {
			t.Error(err)
		}
	}
}

// TestExpelInUse lets a container go on whose layer is taken away, and the layer be pulled again.
func TestExpelInUse(t *testing.T) {
	eachWay(t, func(t *testing.T, s *Store) {
		stream := verified(t)
		id := add(t, s, stream)
		root, err := s.Root(ctx, "c", []digest.Digest{id}, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := s.Expel(id); err != nil || s.Has(id) {
			t.Fatalf("expel: %v", err)
		}
		if b, err := os.ReadFile(at(root, "usr/bin/a2")); err != nil || len(b) != 9000 {
			t.Errorf("the container reads %d bytes, %v", len(b), err)
		}
		if add(t, s, stream); !s.Has(id) {
			t.Error("the layer cannot come back")
		}
		root.Close()
		if err := s.RemoveRoot("c"); err != nil {
			t.Error(err)
		}
		if err := s.Verify(ctx, id); err != nil {
			t.Error(err)
		}
	})
}
