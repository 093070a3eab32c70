package layer

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// subtree gives a detached mount of what is at path in root, which is consumed. Links of the image end inside it.
func (s *Store) subtree(root *os.File, path string) (*os.File, error) {
	defer func() { _ = root.Close() }() // of a mount: nothing to lose
	if s.ns == nil {
		return cloneAt(root, path)
	}
	var sub *os.File
	err := s.ns.do(func() error { // before Linux 6.15 only what is attached can be cloned
		name, err := s.ns.attach(root)
		if err != nil {
			return err
		}
		sub, err = cloneAt(root, path)
		return errors.Join(err, s.ns.detach(name))
	})
	if err != nil && sub != nil {
		_ = sub.Close() // it is not returned
		sub = nil
	}
	return sub, err
}

func cloneAt(root *os.File, path string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(root.Fd()), strings.TrimLeft(path, "/"), &how)
	if err != nil {
		return nil, fmt.Errorf("sub path %q: %w", path, err)
	}
	at := os.NewFile(uintptr(fd), path)
	defer func() { _ = at.Close() }() // only a path
	return cloneMount(at)
}
