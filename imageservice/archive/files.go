package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// File is one file of an archive. It can be read at several places at once.
type File struct {
	*io.SectionReader
	close func() error
}

// Close is to be called when the file is no longer read.
func (f *File) Close() error { return f.close() }

// all reads the whole of a document, which is name in errors, and closes it.
func (f *File) all(name string, most int64) ([]byte, error) {
	defer func() { _ = f.Close() }() // only read
	if f.Size() > most {
		return nil, invalidf("%s has %d bytes, more than %d", name, f.Size(), most)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// files are the files of an archive by their clean names. open fails with fs.ErrNotExist if there is none.
type files interface {
	open(name string) (*File, error)
	Close() error
}

// tree is a directory.
type tree struct{ root *os.Root }

func openTree(dir *os.File) (files, error) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, err
	}
	return tree{root}, nil
}

func (t tree) open(name string) (*File, error) {
	f, err := t.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // what waits for ever in open is no file of an archive
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = invalidf("%s is no file", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{io.NewSectionReader(f, 0, info.Size()), f.Close}, nil
}

func (t tree) Close() error { return t.root.Close() }

// packed is a tar whose entries are found by their offsets.
type packed struct {
	file    *os.File
	entries map[string]entry
}

type entry struct {
	offset, size int64
	link         string // name of another entry
	again        bool   // the archive has the name more than once
}

// scan reads the headers of the tar f, which stays the caller's on error.
func scan(ctx context.Context, f *os.File, size int64) (*packed, error) {
	p := &packed{file: f, entries: map[string]entry{}}
	in := io.NewSectionReader(f, 0, size)
	r := tar.NewReader(in) // does not read ahead, and seeks over contents
	text := 0
	for count := 0; ; count++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return p, nil
		}
		if err != nil {
			return nil, invalidf("read tar: %w", err)
		}
		if text += len(h.Name) + len(h.Linkname); count == maxEntries || text > maxText {
			return nil, invalidf("more than %d files or %d bytes of names", maxEntries, maxText)
		}
		at, err := in.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := p.add(h, at, size); err != nil {
			return nil, err
		}
	}
}

func (p *packed) add(h *tar.Header, at, size int64) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	e := entry{offset: at, size: h.Size}
	switch h.Typeflag {
	case tar.TypeReg:
		if h.Size < 0 || h.Size > size-at {
			return invalidf("%q has %d bytes, the archive ends after %d", name, h.Size, size-at)
		}
	case tar.TypeSymlink:
		if strings.HasPrefix(h.Linkname, "/") {
			return invalidf("%q links to %q, outside of the archive", name, h.Linkname)
		}
		e.link = path.Join(path.Dir(name), h.Linkname)
	case tar.TypeLink:
		e.link = path.Clean(h.Linkname)
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	default:
		return invalidf("%q has type %q", name, h.Typeflag)
	}
	if e.link == ".." || strings.HasPrefix(e.link, "../") {
		return invalidf("%q links to %q, outside of the archive", name, h.Linkname)
	}
	_, e.again = p.entries[name]
	p.entries[name] = e
	return nil
}

// clean refuses names that lead out of the archive.
func clean(name string) (string, error) {
	if len(name) > maxName {
		return "", invalidf("a name of %d bytes", len(name))
	}
	c := path.Clean(name)
	if strings.HasPrefix(c, "/") || c == ".." || strings.HasPrefix(c, "../") {
		return "", invalidf("name %q leads out of the archive", name)
	}
	return c, nil
}

func (p *packed) open(name string) (*File, error) {
	at := name
	for range maxLinks {
		e, ok := p.entries[at]
		switch {
		case !ok && at == name:
			return nil, fs.ErrNotExist
		case !ok:
			return nil, invalidf("%q links to %q, which is not there", name, at)
		case e.again && !strings.HasPrefix(at, blobsDir): // where names are digests, which are verified
			return nil, invalidf("%q is there more than once", at)
		case e.link == "":
			return &File{io.NewSectionReader(p.file, e.offset, e.size), func() error { return nil }}, nil
		}
		at = e.link
	}
	return nil, invalidf("%q: links in a circle or too many", name)
}

func (p *packed) Close() error { return p.file.Close() }

// read returns a whole document.
func read(from files, name string, most int64) ([]byte, error) {
	f, err := from.open(name)
	if err != nil {
		return nil, err
	}
	return f.all(name, most)
}
