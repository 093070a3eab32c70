package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// probe asks the kernel by doing: an EROFS image of our own is mounted and read, an overlay of one directory is made
// in the way that containers' roots will be.
func (s *Store) probe() error {
	dir, err := os.MkdirTemp(s.path("tmp"), "probe-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // Open removes it otherwise
	erofsFault := s.probeEROFS(dir)
	s.formats = map[Format]bool{Overlay: true, EROFS: erofsFault == nil}
	switch {
	case s.config.Format == EROFS && erofsFault != nil:
		return fmt.Errorf("format erofs: %w", erofsFault)
	case s.config.Format == Auto && erofsFault == nil:
		s.config.Format = EROFS
	case s.config.Format == Auto:
		s.config.Format = Overlay
	}
	return s.probeRoots(dir)
}

// probeEROFS says why EROFS cannot be mounted from files here, or nil; it sets direct.
func (s *Store) probeEROFS(dir string) error {
	const text = "read me"
	var archive bytes.Buffer
	t := tar.NewWriter(&archive)
	if err := t.WriteHeader(&tar.Header{Name: "f", Mode: 0o600, Size: int64(len(text))}); err != nil {
		return err
	}
	if _, err := t.Write([]byte(text)); err != nil {
		return err
	}
	u, err := newErofsUnpacker(dir, s.config.Limits)
	if err != nil {
		return err
	}
	defer u.abort()
	if err := u.unpack(tarstream.NewReader(context.Background(), &archive, s.config.Limits)); err != nil {
		return err
	}
	if _, err := u.finish([16]byte{1}); err != nil {
		return err
	}
	var faults []error
	for _, direct := range []bool{true, false} {
		m, err := mountEROFS(filepath.Join(dir, metaFile), filepath.Join(dir, dataFile), direct)
		if err == nil {
			err = errors.Join(expectFile(m, "f", text), m.Close())
		}
		if err == nil {
			s.direct = direct
			return nil
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

func expectFile(root *os.File, name, want string) error {
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }() // read from only
	buf := make([]byte, len(want)+1)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if string(buf[:n]) != want {
		return fmt.Errorf("read %s: %q instead of %q", name, buf[:n], want)
	}
	return nil
}

// probeRoots finds the first way to make overlays that works.
func (s *Store) probeRoots(dir string) error {
	modes := []rootMode{rootsDetached, rootsAttached, rootsMount}
	if s.config.roots != rootsUnknown {
		modes = []rootMode{s.config.roots}
	}
	layer := &entry{Layer: Layer{Format: Overlay}, dir: s.path("layers", ".probe")}
	if err := os.MkdirAll(filepath.Join(layer.dir, fsDir), 0o700); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(layer.dir) }() // Open removes it otherwise
	var faults []error
	for _, mode := range modes {
		s.config.roots = mode
		err := s.probeRoot(layer)
		if err == nil {
			return nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", mode.describe(), err))
	}
	return fmt.Errorf("overlay file systems cannot be mounted here: %w", errors.Join(faults...))
}

func (s *Store) probeRoot(layer *entry) error {
	const id = ".probe" // no container's
	if s.config.roots != rootsDetached && s.ns == nil {
		ns, err := newNamespace(s.config.Root)
		if err != nil {
			return err
		}
		s.ns = ns
	}
	if err := os.RemoveAll(s.path("containers", id)); err != nil {
		return err
	}
	defer func() {
		_ = os.RemoveAll(s.path("containers", id)) // load removes it otherwise
		_ = s.freeProject(id)                      // the next that gets it is given its own limit
	}()
	if err := s.makeContainerDir(id, nil, "", RootOptions{}); err != nil {
		return err
	}
	m, err := s.openLower(layer)
	if err != nil {
		return err
	}
	if s.config.roots == rootsDetached { // a mount, as EROFS layers are
		dir := m.file
		m.file, err = cloneMount(dir)
		if err = errors.Join(err, dir.Close()); err != nil {
			return err
		}
	}
	root, err := s.overlay(id, []*lowerMount{m}, "", RootOptions{})
	if err == nil {
		err = root.Close()
	}
	return errors.Join(err, m.Close())
}
