package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/layer/tartest"
)

// rebuilt is the archive that s gives back.
func rebuilt(s *Store, id digest.Digest) ([]byte, error) {
	var b bytes.Buffer
	err := s.Archive(ctx, id, &b)
	return b.Bytes(), err
}

// Whatever the archive does, an EROFS layer gives it back byte for byte. A directory cannot if a file was replaced, and
// says so.
func TestArchiveOfAnyLayer(t *testing.T) {
	stores := bothFormats(t)
	rounds := 200
	if testing.Short() {
		rounds = 30
	}
	exact := map[Format]int{}
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 2))
		good, _, _ := generate(r, 1+r.IntN(40))
		stream := append(pack(t, good), make([]byte, r.IntN(3)*5000)...)
		for _, s := range stores {
			id := add(t, s, stream)
			got, err := rebuilt(s, id)
			switch {
			case err == nil && bytes.Equal(got, stream):
				exact[s.config.Format]++
			case s.config.Format == EROFS || !errors.Is(err, ErrNoArchive):
				t.Fatalf("seed %d, %s: %d bytes of %d, %v\n%s", seed, s.config.Format, len(got), len(stream), err, describe(good))
			}
			if _, err := s.Remove(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if exact[Overlay] < rounds/4 {
		t.Errorf("directories gave back only %d archives of %d", exact[Overlay], rounds)
	}
}

// Archives as tools write them: GNU and old headers, sparse files, junk after the end, contents that nobody keeps.
func TestArchiveOfOddArchives(t *testing.T) {
	src := t.TempDir()
	for name, content := range map[string]string{
		"plain": "text", "empty": "", "long-" + strings.Repeat("n", 200): strings.Repeat("x", 70000), ".wh.hidden": "not empty", ".wh..wh.aufs": "bookkeeping",
	} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	holes, err := os.Create(filepath.Join(src, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1 << 20, 5 << 20} {
		if _, err := holes.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(holes.Truncate(8<<20), holes.Close(), os.Symlink("plain", filepath.Join(src, "link")), os.Link(filepath.Join(src, "plain"), filepath.Join(src, "hard"))); err != nil {
		t.Fatal(err)
	}
	odd := map[string][]byte{
		"nothing": {}, "only the end": make([]byte, 1024), "junk after the end": append(tartest.Archive(t, tar.Header{Name: "a", Size: 700}), "junk"...),
	}
	for _, args := range [][]string{{"--format=gnu"}, {"--format=gnu", "--sparse"}, {"--format=pax", "--sparse"}, {"--format=pax", "--sparse", "--sparse-version=0.1"}, {"--format=v7", "--exclude=long*"}, {"--format=ustar", "--exclude=long*", "-b1"}} {
		out, err := exec.Command("tar", append(args, "-C", src, "-c", ".")...).Output()
		if err != nil {
			t.Fatalf("tar %q: %v", args, err)
		}
		odd["tar "+strings.Join(args, " ")] = out
	}
	for _, s := range bothFormats(t) {
		for name, stream := range odd {
			id := add(t, s, stream)
			if size, err := s.ArchiveSize(id); err != nil || size != int64(len(stream)) {
				t.Errorf("%s, %s: size is %d of %d, %v", s.config.Format, name, size, len(stream), err)
			}
			if got, err := rebuilt(s, id); err != nil || !bytes.Equal(got, stream) {
				t.Errorf("%s, %s: %d bytes of %d, %v", s.config.Format, name, len(got), len(stream), err)
			}
		}
	}
}

func TestArchiveSaysWhatIsWrong(t *testing.T) {
	for _, s := range bothFormats(t) {
		id := add(t, s, tartest.Archive(t, tar.Header{Name: "a", Size: 5000}, tar.Header{Name: "b", Size: 5000}))
		dir := s.path("layers", dirName(id))
		if _, err := rebuilt(s, digest.FromString("other")); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: layer that is not there: %v", s.config.Format, err)
		}
		full := errors.New("full")
		if err := s.Archive(ctx, id, failing{full}); !errors.Is(err, full) || errors.Is(err, ErrNoArchive) {
			t.Errorf("%s: writer that fails: %v", s.config.Format, err)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Archive(ended, id, io.Discard); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoArchive) {
			t.Errorf("%s: ctx that ended: %v", s.config.Format, err)
		}
		content := filepath.Join(dir, dataFile)
		if s.config.Format == Overlay {
			content = filepath.Join(dir, fsDir, "b")
		}
		spoil(t, content)
		if _, err := rebuilt(s, id); !errors.Is(err, ErrNoArchive) || !strings.Contains(err.Error(), "digest") {
			t.Errorf("%s: damaged content: %v", s.config.Format, err)
		}
		if err := os.Truncate(content, 100); err != nil {
			t.Fatal(err)
		}
		if _, err := rebuilt(s, id); !errors.Is(err, ErrNoArchive) {
			t.Errorf("%s: short content: %v", s.config.Format, err)
		}
		if err := os.Remove(filepath.Join(dir, frameFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := rebuilt(s, id); !errors.Is(err, ErrNoArchive) || !strings.Contains(err.Error(), "pulling the image again") {
			t.Errorf("%s: no frame: %v", s.config.Format, err)
		}
		if _, err := s.Remove(id); err != nil {
			t.Errorf("%s: a layer whose archive failed is in use: %v", s.config.Format, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// spoil changes the first byte of a file.
func spoil(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], 0); err != nil {
		t.Fatal(err)
	}
}
