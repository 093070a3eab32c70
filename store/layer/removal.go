package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxRemovals is how many may wait; beyond that RemoveRoot does it itself.
const maxRemovals = 256

// removeLater leaves the directory of a removed root to the background. Deleting one can wait for the disk, as where the file system has
// no journal and discards blocks that are free, and directories hold hardly any space that a caller could wait for.
func (s *Store) removeLater(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.removals) >= maxRemovals {
		return false
	}
	s.removals = append(s.removals, dir)
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
		dir := s.removals[0]
		s.removals = s.removals[1:]
		s.mu.Unlock()
		if err := s.remove(dir); err != nil {
			s.config.Log.Warn("layer store: leftover stays", "dir", dir, "error", err)
		}
	}
}

// remove deletes the directory of a removed root and then lets its project go, whose number may be given to another root at once.
func (s *Store) remove(dir string) error {
	return errors.Join(os.RemoveAll(dir), s.freeProject(dir))
}

// removeAll deletes dir, which may be that of a root.
func removeAll(dir string) error {
	_ = removeFiles(filepath.Join(dir, upperDir)) // what it leaves is met again
	return os.RemoveAll(dir)
}

// maxNesting is how many directories of a root are open at once while it is deleted. A container may nest more of them than a
// process can open.
const maxNesting = 256

// removeFiles deletes what is no directory in and below dir, if there is one, and nests no directory deeper than maxNesting: those
// that are move up into dir. What comes between its reading and its deleting may be left.
func removeFiles(dir string) error {
	top, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(top) }() // O_PATH
	c := clearing{top: top}
	err = c.clear(top, ".", 0)
	for err == nil && len(c.moved) > 0 {
		last := len(c.moved) - 1
		name := c.moved[last]
		c.moved = c.moved[:last]
		err = c.clear(top, name, 1)
	}
	return err
}

// clearing is a directory whose files are being deleted.
type clearing struct {
	top   int
	moved []string // directories that moved into top and are yet to be cleared
	names int      // that were tried for them
}

// clear deletes the files in and below the directory called name in parent, which lies nesting directories below the top.
func (c *clearing) clear(parent int, name string, nesting int) error {
	dir, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
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
			if errors.Is(err, unix.EISDIR) && nesting == maxNesting {
				err = c.moveUp(dir, name)
			} else if errors.Is(err, unix.EISDIR) {
				err = c.clear(dir, name, nesting+1)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
}

// moveUp moves the directory called name in parent into the top, to be cleared later.
func (c *clearing) moveUp(parent int, name string) error {
	for {
		c.names++
		to := fmt.Sprintf("moved.%d", c.names)
		err := unix.Renameat2(parent, name, c.top, to, unix.RENAME_NOREPLACE)
		if err == nil {
			c.moved = append(c.moved, to)
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}
