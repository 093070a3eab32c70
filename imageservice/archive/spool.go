package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/imageservice/inflate"
)

const maxZstdWindow = 128 << 20 // bytes; what zstd itself stops at

var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// packing is how a stream is compressed.
type packing int

const (
	plain packing = iota
	gzipped
	zstandard
)

func compression(head []byte) packing {
	switch {
	case bytes.HasPrefix(head, magicGzip):
		return gzipped
	case bytes.HasPrefix(head, magicZstd):
		return zstandard
	}
	return plain
}

// seekable returns a file with the plain tar that f is: f itself if possible. It takes f over.
func seekable(ctx context.Context, f *os.File, info fs.FileInfo, spool func(io.Reader) (*os.File, error)) (*os.File, error) {
	head := make([]byte, 4)
	var in io.Reader = f
	if info.Mode().IsRegular() {
		n, err := f.ReadAt(head, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, errors.Join(err, f.Close())
		}
		if compression(head[:n]) == plain {
			return f, nil
		}
		in = io.NewSectionReader(f, 0, info.Size()) // whatever was read of f before
		head = head[:n]
	} else {
		n, err := io.ReadFull(f, head)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.Join(fmt.Errorf("read archive: %w", err), f.Close())
		}
		head = head[:n]
		in = io.MultiReader(bytes.NewReader(head), f)
	}
	in = &stopping{ctx, in}
	defer func() { _ = f.Close() }() // only read
	switch compression(head) {
	case gzipped:
		z, err := inflate.NewReader(in)
		if err != nil {
			return nil, invalidf("decompress: %w", err)
		}
		return spool(unpacked{z})
	case zstandard:
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return spool(unpacked{z})
	}
	return spool(in)
}

// stopping is a stream that ends with ctx.
type stopping struct {
	ctx context.Context // of the one call that reads
	r   io.Reader
}

func (s *stopping) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// unpacked says that what goes wrong is the archive's fault.
type unpacked struct{ r io.Reader }

func (u unpacked) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		err = invalidf("decompress: %w", err)
	}
	return n, err
}

// Spool returns a function for Open that copies the plain tar to a file without a name in dir, which is gone with the
// process. It takes at most half of what is free there, so that there is room for the layers too.
func Spool(dir string) func(io.Reader) (*os.File, error) {
	return func(r io.Reader) (*os.File, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return nil, fmt.Errorf("look at %s: %w", dir, err)
		}
		return SpoolAtMost(dir, int64(st.Bavail)*st.Bsize/2)(r)
	}
}

// SpoolAtMost is Spool with a limit in bytes.
func SpoolAtMost(dir string, most int64) func(io.Reader) (*os.File, error) {
	return func(r io.Reader) (*os.File, error) {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("make file for the archive in %s: %w", dir, err)
		}
		f := os.NewFile(uintptr(fd), dir+"/archive")
		n, err := io.Copy(f, io.LimitReader(r, most+1))
		if err == nil && n > most {
			err = fmt.Errorf("%w: unpacked it has more than the %d bytes that it may take in %s", ErrNoSpace, most, dir)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("copy archive: %w", err), f.Close())
		}
		return f, nil
	}
}

// ErrNoSpace says that an archive is too large to be copied.
var ErrNoSpace = errors.New("archive does not fit")
