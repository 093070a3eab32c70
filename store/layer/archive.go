package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/frame"
	"github.com/criserver/criserver/store/layer/sums"
)

// ErrNoArchive says that a layer's archive cannot be given back: a file that it holds twice was kept once, something is
// damaged, or it was unpacked before frames were kept.
var ErrNoArchive = errors.New("layer's archive cannot be rebuilt")

// frameRecorder is the frame of a layer that is being unpacked.
type frameRecorder struct {
	file  *os.File
	frame *frame.Writer
	sum   frameSum
}

// frameSum is what a frame is on disk.
type frameSum struct {
	Bytes int64
	CRC   uint32 // as package sums has it
}

func recordFrame(dir string) (*frameRecorder, error) {
	f, err := os.OpenFile(filepath.Join(dir, frameFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	r := &frameRecorder{file: f}
	if r.frame, err = frame.NewWriter(r); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// Write takes a piece of the frame.
func (r *frameRecorder) Write(p []byte) (int, error) {
	n, err := r.file.Write(p)
	r.sum.Bytes += int64(n)
	r.sum.CRC = sums.Update(r.sum.CRC, p[:n])
	return n, err
}

// finish completes the frame and says what it takes on disk, in bytes.
func (r *frameRecorder) finish() (bytes int64, err error) {
	if err := r.frame.Close(); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(r.file.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat frame: %w", err)
	}
	return st.Blocks * 512, r.file.Close()
}

// abort is harmless after finish.
func (r *frameRecorder) abort() { _ = r.file.Close() }

// Archive writes the layer's uncompressed archive to w, as it was unpacked, byte for byte. If the error is ErrNoArchive,
// what was written is not it. The layer cannot be removed meanwhile.
func (s *Store) Archive(ctx context.Context, id digest.Digest, w io.Writer) error {
	e, err := s.acquire(id)
	if err != nil {
		return fmt.Errorf("archive of layer %s: %w", id, err)
	}
	defer s.release(e)
	hash := id.Algorithm().Hash()
	out := &archiveWriter{ctx: ctx, w: io.MultiWriter(w, hash)}
	if err := s.rebuild(e, out); err != nil {
		if !out.failed && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrNoArchive, err)
		}
		return fmt.Errorf("archive of layer %s: %w", id, err)
	}
	if got := digest.NewDigest(id.Algorithm(), hash); got != id {
		return fmt.Errorf("archive of layer %s: %w: its digest is %s", id, ErrNoArchive, got)
	}
	return nil
}

// ArchiveSize is how many bytes Archive would write.
func (s *Store) ArchiveSize(id digest.Digest) (int64, error) {
	e, err := s.acquire(id)
	if err != nil {
		return 0, fmt.Errorf("archive of layer %s: %w", id, err)
	}
	defer s.release(e)
	f, err := openFrame(e)
	if err == nil {
		defer func() { _ = f.Close() }() // only read
		var size int64
		if size, err = frame.Size(f); err == nil {
			return size, nil
		}
	}
	return 0, fmt.Errorf("archive of layer %s: %w: %w", id, ErrNoArchive, err)
}

func openFrame(e *entry) (*os.File, error) {
	f, err := os.Open(filepath.Join(e.dir, frameFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("it was unpacked without a frame; pulling the image again after removing it helps")
	}
	return f, err
}

func (s *Store) rebuild(e *entry, w io.Writer) error {
	f, err := openFrame(e)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	name := dataFile
	if e.Format == Overlay {
		name = fsDir
	}
	contents, err := os.Open(filepath.Join(e.dir, name))
	if err != nil {
		return err
	}
	defer func() { _ = contents.Close() }() // only read
	if e.Format == Overlay {
		return frame.Copy(w, f, treeContents{contents})
	}
	return frame.Copy(w, f, imageContents{contents})
}

// archiveWriter remembers that w is to blame, and stops when ctx does.
type archiveWriter struct {
	ctx    context.Context // of the one call that uses it
	w      io.Writer
	failed bool
}

func (a *archiveWriter) Write(p []byte) (int, error) {
	if err := a.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := a.w.Write(p)
	a.failed = a.failed || err != nil
	return n, err
}

// imageContents has the contents of an EROFS layer.
type imageContents struct{ data *os.File }

// WriteContent reads around the mount, so that nothing is cached twice.
func (d imageContents) WriteContent(w io.Writer, size int64, p frame.Place) error {
	n, err := io.Copy(w, io.NewSectionReader(d.data, p.Offset, size))
	if err == nil && n < size {
		err = fmt.Errorf("contents at %d: %w", p.Offset+n, io.ErrUnexpectedEOF)
	}
	return err
}

// treeContents has the contents of an overlay layer.
type treeContents struct{ root *os.File }

func (t treeContents) WriteContent(w io.Writer, size int64, p frame.Place) error {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, // it may be a pipe by now
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := unix.Openat2(int(t.root.Fd()), p.Path, &how)
	if err != nil {
		return fmt.Errorf("open %q: %w", p.Path, err)
	}
	f := os.NewFile(uintptr(fd), p.Path)
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return fmt.Errorf("file %q is no longer what came first under this name", p.Path)
	}
	_, err = io.CopyN(w, f, size)
	return err
}
