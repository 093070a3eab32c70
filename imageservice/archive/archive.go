package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const blobsDir = "blobs/"

// AnnotationName has the whole name of an image in the index of an archive, as containerd and Docker write it.
const AnnotationName = "io.containerd.image.name"

// Archive is an open archive. Everything but Close is safe to be called from several goroutines.
type Archive struct {
	files  files
	dir    bool
	images []Image
	blobs  map[digest.Digest]blob     // of Docker's archive, and manifests that were made for it
	names  map[digest.Digest][]string // of images by their configs, as manifest.json has them
}

// blob is a file or a document that was made.
type blob struct {
	name string
	data []byte
}

// Image is what an archive names: a manifest or an index.
type Image struct {
	Desc  ocispec.Descriptor
	Names []string // as the archive spells them, not checked
	Tag   string   // a name without repository; empty if there is none
	Made  bool     // the manifest was made here, no registry has it
}

// Open reads what the archive f is made of. It takes f over, also when it fails. spool takes the place of a tar that
// cannot be read at any place: see Spool.
func Open(ctx context.Context, f *os.File, spool func(io.Reader) (*os.File, error)) (_ *Archive, err error) {
	a := &Archive{blobs: map[digest.Digest]blob{}, names: map[digest.Digest][]string{}}
	if a.files, err = openFiles(ctx, f, spool); err != nil {
		return nil, err
	}
	_, a.dir = a.files.(tree)
	if err := a.load(ctx); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// Close gives the archive back.
func (a *Archive) Close() error { return a.files.Close() }

func openFiles(ctx context.Context, f *os.File, spool func(io.Reader) (*os.File, error)) (files, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if info.IsDir() {
		t, err := openTree(f)
		return t, errors.Join(err, f.Close())
	}
	if f, err = seekable(ctx, f, info, spool); err != nil {
		return nil, err
	}
	info, err = f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	p, err := scan(ctx, f, info.Size())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// load finds out which images there are.
func (a *Archive) load(ctx context.Context) error {
	layout := a.loadLayout()
	if layout != nil && !errors.Is(layout, fs.ErrNotExist) {
		return layout
	}
	docker := a.loadDocker(ctx, layout != nil)
	if docker != nil && !errors.Is(docker, fs.ErrNotExist) {
		return docker
	}
	if layout != nil && docker != nil {
		return invalidf("it has neither index.json (OCI) nor manifest.json (Docker)")
	}
	return nil
}

// IsDir says whether the archive is a directory.
func (a *Archive) IsDir() bool { return a.dir }

// Images returns what the archive names, in its order.
func (a *Archive) Images() []Image { return a.images }

// NamesOf returns the names that Docker's manifest.json gives the image with this config.
func (a *Archive) NamesOf(config digest.Digest) []string { return a.names[config] }

// Has says whether there is a blob of this name.
func (a *Archive) Has(d digest.Digest) bool {
	f, err := a.Blob(d)
	if err != nil {
		return false
	}
	_ = f.Close() // only looked at
	return true
}

// Blob opens a blob. That it has this digest is only what the archive claims. The error is fs.ErrNotExist if there is none.
func (a *Archive) Blob(d digest.Digest) (*File, error) {
	if err := d.Validate(); err != nil {
		return nil, invalidf("digest %q: %w", d, err)
	}
	if b, ok := a.blobs[d]; ok {
		if b.data != nil {
			return &File{io.NewSectionReader(bytes.NewReader(b.data), 0, int64(len(b.data))), func() error { return nil }}, nil
		}
		return a.files.open(b.name)
	}
	return a.files.open(path.Join(blobsDir, d.Algorithm().String(), d.Encoded()))
}

// Document reads a whole blob of at most most bytes and verifies its digest.
func (a *Archive) Document(d digest.Digest, most int64) ([]byte, error) {
	f, err := a.Blob(d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, invalidf("blob %s is missing", d)
	}
	if err != nil {
		return nil, err
	}
	data, err := f.all("blob "+d.String(), most)
	if err != nil {
		return nil, err
	}
	if got := d.Algorithm().FromBytes(data); got != d {
		return nil, invalidf("blob %s has the digest %s", d, got)
	}
	return data, nil
}
