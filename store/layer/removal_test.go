package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// heldRemovals lets no removal begin until release is called.
func heldRemovals(t *testing.T) (s *Store, release func()) {
	t.Helper()
	s = open(t, Config{Root: t.TempDir()})
	s.mu.Lock()
	s.removing = true // as if one was at it
	s.mu.Unlock()
	return s, func() {
		s.cleanup.Go(s.removeDoomed)
		s.cleanup.Wait()
	}
}

func writtenRoot(t *testing.T, s *Store, id string) {
	t.Helper()
	root, err := s.Root(ctx, id, nil, RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.MkdirAll(at(root, "d/e/f"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 300 { // more than one reading of a directory gives
		if err := os.WriteFile(at(root, fmt.Sprintf("d/e/a file with a long name %d", i)), make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(t.TempDir(), at(root, "d/link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(at(root, "d/fifo"), unix.S_IFIFO|0o600, 0); err != nil {
		t.Fatal(err)
	}
}

func TestRemovedRootLeavesOnlyDirectoriesForLater(t *testing.T) {
	s, release := heldRemovals(t)
	writtenRoot(t, s, "c")
	if err := s.RemoveRoot("c"); err != nil {
		t.Fatal(err)
	}
	waiting := func() (directories int) {
		for _, dir := range s.removals {
			err := filepath.WalkDir(filepath.Join(dir, upperDir), func(path string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					t.Errorf("%s is left", path)
				}
				directories++
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		return directories
	}
	if n := waiting(); n != 4 {
		t.Errorf("%d directories wait, want upper, d, e, f", n)
	}
	writtenRoot(t, s, "c") // the name is free at once
	if err := s.RemoveRoot("c"); err != nil {
		t.Fatal(err)
	}
	release()
	left(t, s)
}

// TestDeepRootsAreRemovedWithFewOpenDirectories nests directories as a container may, beside one that has the name of those that move.
func TestDeepRootsAreRemovedWithFewOpenDirectories(t *testing.T) {
	s, release := heldRemovals(t)
	root, err := s.Root(ctx, "c", nil, RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	deep := at(root, strings.Repeat("d/", 3*maxNesting))
	if err := errors.Join(os.MkdirAll(at(root, "moved.1"), 0o700), os.MkdirAll(deep, 0o700), os.WriteFile(filepath.Join(deep, "f"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	root.Close()
	if err := s.RemoveRoot("c"); err != nil {
		t.Fatal(err)
	}
	upper, directories := filepath.Join(s.removals[0], upperDir), 0
	err = filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		directories++
		if nesting := strings.Count(strings.TrimPrefix(path, upper), "/"); err == nil && (!d.IsDir() || nesting > maxNesting+1) {
			return fmt.Errorf("%s is left, %d directories deep", d.Name(), nesting)
		}
		return err
	})
	if err != nil || directories != 3*maxNesting+2 {
		t.Errorf("%d directories wait: %v", directories, err)
	}
	release()
	left(t, s)
}

func TestRootsAreRemovedAtOnceWhenTooManyWait(t *testing.T) {
	s, release := heldRemovals(t)
	for range maxRemovals {
		s.removeLater(filepath.Join(s.config.Root, "none"))
	}
	writtenRoot(t, s, "c")
	if err := s.RemoveRoot("c"); err != nil {
		t.Fatal(err)
	}
	left(t, s)
	release()
}

// left fails if anything of a container is there.
func left(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{"containers", "trash"} {
		if names, err := os.ReadDir(s.path(dir)); err != nil || len(names) > 0 {
			t.Errorf("%s has %v (%v)", dir, names, err)
		}
	}
}
