package layer

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// removal is what is left to do for a root that was removed. Its directory is in trash.
type removal struct {
	dir       string
	container string
	project   uint32 // 0: none
}

// maxRemovals is how many may wait; beyond that those who remove roots do it themselves.
const maxRemovals = 256

// removeLater leaves r to the background. Deleting a directory can wait for the disk, as where the file system has no journal and
// discards blocks that are free, and nobody need wait with it: it has no space to give but its own.
func (s *Store) removeLater(r removal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.removals) >= maxRemovals {
		return false
	}
	s.removals = append(s.removals, r)
	if !s.removing {
		s.removing = true
		s.cleanup.Go(s.removeDoomed)
	}
	return true
}

// removeDoomed does what waits, one after another, and ends.
func (s *Store) removeDoomed() {
	for {
		s.mu.Lock()
		if len(s.removals) == 0 {
			s.removals, s.removing = nil, false
			s.mu.Unlock()
			return
		}
		r := s.removals[0]
		s.removals = s.removals[1:]
		s.mu.Unlock()
		if err := s.remove(r); err != nil {
			s.config.Log.Warn("layer store: leftover stays", "dir", r.dir, "error", err)
		}
	}
}

// remove deletes the directory and then lets its project go, whose number may be given to another root at once.
func (s *Store) remove(r removal) error {
	return errors.Join(os.RemoveAll(r.dir), s.freeProject(r.container, r.project))
}

// removeFiles deletes what is no directory in and below the directory name of parent, if there is one. What comes between its
// reading and its deleting may be left.
func removeFiles(parent int, name string) error {
	dir, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }() // only read from
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if n <= 0 || err != nil {
			return err
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			err := unix.Unlinkat(dir, name, 0)
			if errors.Is(err, unix.EISDIR) {
				err = removeFiles(dir, name)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
}
