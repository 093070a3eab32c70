package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// lowerMount is a layer as overlays take it.
type lowerMount struct {
	file *os.File   // its mount; a plain directory where that is enough
	name string     // in ns
	ns   *namespace // nil if it is detached
}

// Close gives the mount up. Overlays that use it are not touched.
func (m *lowerMount) Close() (err error) {
	if m.ns != nil && m.name != "" {
		err = m.ns.do(func() error { return m.ns.detach(m.name) })
	}
	return errors.Join(err, m.file.Close())
}

// Lower gives the layer's root as a read-only mount (EROFS) or directory (Overlay): the file is the caller's to close.
// The layer cannot be removed before release is called, which may be done at any time, once.
func (s *Store) Lower(id digest.Digest) (f *os.File, release func(), err error) {
	e, err := s.acquire(id)
	if err != nil {
		return nil, nil, fmt.Errorf("use layer %s: %w", id, err)
	}
	release = func() { s.release(e) }
	m, err := s.mounted(e)
	if err == nil {
		f, err = dup(m.file)
	}
	if err != nil {
		release()
		return nil, nil, fmt.Errorf("use layer %s: %w", id, err)
	}
	return f, release, nil
}

// Kept gives the layer's mount to be kept by a pod, so that after a restart of criserver Adopt gets the same file
// system back, page cache included. The file is the caller's to close. It is nil if the layer is not mounted or if
// nothing is gained by keeping it.
func (s *Store) Kept(id digest.Digest) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.layers[id]
	if e == nil || e.mount == nil || e.Format != EROFS || s.config.roots != rootsDetached {
		return nil, nil
	}
	return dup(e.mount.file)
}

// Adopt takes back a mount of Kept and says whose it is; f is consumed. One that is of no use, because the layer is
// mounted already, or gone (id is "" then), is closed. The error says that f is no layer's mount.
func (s *Store) Adopt(f *os.File) (id digest.Digest, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.EROFS_SUPER_MAGIC_V1 {
		return "", errors.Join(errors.New("adopt layer: the descriptor is not the mount of one"), err, f.Close())
	}
	e := s.byFsid(st.Fsid.Val)
	if e == nil || s.config.roots != rootsDetached {
		return "", f.Close()
	}
	var direct error
	if s.direct { // the last store may have ended before it could
		direct = makeDirect(f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.removed || e.mount != nil || s.closed {
		return e.DiffID, f.Close()
	}
	e.mount = &lowerMount{file: f}
	if direct != nil {
		s.config.Log.Warn("layer store: page cache is kept twice", "layer", e.DiffID, "error", direct)
	}
	return e.DiffID, nil
}

func (s *Store) byFsid(id [2]int32) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.layers {
		if e.Format == EROFS && fsid(e.uuid) == id {
			return e
		}
	}
	return nil
}

// fsid is what statfs says of a file system with that UUID.
func fsid(uuid [16]byte) [2]int32 {
	v := binary.LittleEndian.Uint64(uuid[:8]) ^ binary.LittleEndian.Uint64(uuid[8:])
	return [2]int32{int32(uint32(v)), int32(uint32(v >> 32))}
}

func (s *Store) acquire(id digest.Digest) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.layers[id]
	if e == nil {
		return nil, ErrNotFound
	}
	e.refs++
	return e, nil
}

func (s *Store) release(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.refs--
}

// mounted gives e's mount, making it if it is the first to ask. e is acquired.
func (s *Store) mounted(e *entry) (*lowerMount, error) {
	e.mounting.Lock() // a mount takes 0.05 ms; others of the same layer wait for it, and for nothing else
	defer e.mounting.Unlock()
	s.mu.Lock()
	m, expelled := e.mount, e.removed
	s.mu.Unlock()
	if expelled {
		return nil, ErrNotFound
	}
	if m != nil {
		return m, nil
	}
	m, err := s.openLower(e)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.removed { // while it was being mounted: the mount would leak
		return nil, errors.Join(ErrNotFound, m.Close())
	}
	if e.mount != nil { // adopted meanwhile
		return e.mount, m.Close()
	}
	e.mount = m
	return m, nil
}

// openLower makes e's mount; one of EROFS reads ahead as its disk does.
func (s *Store) openLower(e *entry) (m *lowerMount, err error) {
	if e.Format != EROFS {
		return s.openThere(e)
	}
	err = s.disk.Mount(e.dir, func() (err error) {
		m, err = s.openThere(e)
		return err
	})
	return m, err
}

// openThere opens e where overlays can take it: in the namespace, if there is one.
func (s *Store) openThere(e *entry) (*lowerMount, error) {
	if s.ns == nil {
		f, err := s.openTree(e.dir, e.Format, s.wantsDirect(e))
		return &lowerMount{file: f}, err
	}
	m := &lowerMount{ns: s.ns}
	err := s.ns.do(func() (err error) {
		inside := filepath.Join(nsStore, "layers", filepath.Base(e.dir))
		if m.file, err = s.openTree(inside, e.Format, s.wantsDirect(e)); err != nil {
			return err
		}
		if e.Format == Overlay {
			dir := m.file
			m.file, err = cloneMount(dir)
			if err = errors.Join(err, dir.Close()); err != nil {
				return err
			}
		}
		if m.name, err = s.ns.attach(m.file); err != nil {
			return errors.Join(err, m.file.Close())
		}
		return nil
	})
	return m, err
}

// openTree opens the layer where it lies: a mount for EROFS, the directory for Overlay.
func (s *Store) openTree(dir string, format Format, direct bool) (*os.File, error) {
	if format == EROFS {
		return mountEROFS(filepath.Join(dir, metaFile), filepath.Join(dir, dataFile), direct)
	}
	return openDir(filepath.Join(dir, fsDir))
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
