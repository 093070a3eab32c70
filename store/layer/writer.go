package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/dirtree"
	"github.com/criserver/criserver/store/layer/erofs"
	"github.com/criserver/criserver/store/layer/sums"
	"github.com/criserver/criserver/store/layer/tarstream"
	"github.com/criserver/criserver/store/record"
)

// Writer unpacks one layer. It ends with Commit or Discard. Not safe for concurrent use.
type Writer struct {
	s     *Store
	ctx   context.Context // bounds ReadFrom, which has the signature of io.ReaderFrom
	dir   string          // temporary; "" when ended
	impl  unpacker
	kept  *frameRecorder
	read  bool // whole and without error
	ended bool // and counted as such
}

// unpacker is a format while a layer is written.
type unpacker interface {
	unpack(r *tarstream.Reader) error
	finish(uuid [16]byte) (written, error)
	abort() // harmless after finish
}

// written is what an unpacker has on disk.
type written struct {
	bytes, inodes int64
	sums          checksums
}

// Begin starts a layer. ReadFrom of the Writer fails once ctx is done.
func (s *Store) Begin(ctx context.Context) (*Writer, error) {
	dir, err := os.MkdirTemp(s.path("tmp"), "")
	if err != nil {
		return nil, fmt.Errorf("begin layer: %w", err)
	}
	w := &Writer{s: s, ctx: ctx, dir: dir}
	if w.kept, err = recordFrame(dir); err != nil {
		return nil, fmt.Errorf("begin layer: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	if s.config.Format == EROFS {
		w.impl, err = newErofsUnpacker(dir, s.config.Limits)
	} else {
		w.impl, err = newDirUnpacker(dir, s.config.Limits)
	}
	if err != nil {
		w.kept.abort()
		return nil, fmt.Errorf("begin layer: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	s.unpacking.Add(1)
	return w, nil
}

// ReadFrom unpacks the uncompressed archive r and reads it to its end; n is its length as far as it was read.
// It is called once. If the archive is to blame, the error satisfies errors.Is(err, tarstream.ErrInvalid).
func (w *Writer) ReadFrom(r io.Reader) (n int64, err error) {
	if w.dir == "" || w.read {
		return 0, errors.New("unpack layer: the writer was used already")
	}
	t := tarstream.NewReader(w.ctx, r, w.s.config.Limits)
	t.Record(w.kept.frame)
	if err := w.impl.unpack(t); err != nil {
		return t.Bytes(), fmt.Errorf("unpack layer: %w", err)
	}
	w.read = true
	return t.Bytes(), nil
}

// Commit adds the layer as diffID, which the caller has verified. If the store has that layer already, the one that
// is there stays and is returned. After an error nothing is left.
func (w *Writer) Commit(diffID digest.Digest) (l Layer, err error) {
	defer func() { err = errors.Join(err, w.Discard()) }()
	if err := diffID.Validate(); err != nil {
		return Layer{}, fmt.Errorf("commit layer %q: %w", diffID, err)
	}
	if !w.read {
		return Layer{}, fmt.Errorf("commit layer %s: it was not unpacked", diffID)
	}
	r := layerRecord{Layer: Layer{DiffID: diffID, Format: w.s.config.Format}, Boot: w.s.config.BootID, UUID: uuidOf(diffID)}
	done, err := w.impl.finish(r.UUID)
	if err != nil {
		return Layer{}, fmt.Errorf("commit layer %s: %w", diffID, err)
	}
	kept, err := w.kept.finish()
	if err != nil {
		return Layer{}, fmt.Errorf("commit layer %s: %w", diffID, err)
	}
	r.Bytes, r.Inodes, r.Sums = done.bytes+kept, done.inodes, &done.sums
	frame := w.kept.sum // alone: the recorder is to go
	r.Frame = &frame
	if err := record.Write(filepath.Join(w.dir, layerFile), r); err != nil {
		return Layer{}, fmt.Errorf("commit layer %s: %w", diffID, err)
	}
	l, err = w.s.adopt(w, r)
	if err != nil {
		return Layer{}, fmt.Errorf("commit layer %s: %w", diffID, err)
	}
	select {
	case w.s.dirty <- struct{}{}:
	default:
	}
	return l, nil
}

// adopt moves the written layer to its place.
func (s *Store) adopt(w *Writer, r layerRecord) (Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.layers[r.DiffID]; e != nil {
		return e.Layer, nil
	}
	final := s.path("layers", dirName(r.DiffID))
	err := os.Rename(w.dir, final)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) { // of a format that cannot be mounted now
		if doomed := s.discard(final); doomed != final { // else deleting it would take what comes to lie there
			s.deleteLater(doomed)
			err = os.Rename(w.dir, final)
		}
	}
	if err != nil {
		return Layer{}, err
	}
	w.dir = ""
	s.layers[r.DiffID] = &entry{Layer: r.Layer, dir: final, uuid: r.UUID, sums: r.Sums, frame: r.Frame, warm: time.Now().Add(warmTime)}
	return r.Layer, nil
}

// Discard gives the layer up and frees its space. It is harmless after Commit.
func (w *Writer) Discard() error {
	w.impl.abort()
	w.kept.abort()
	w.end()
	if w.dir == "" {
		return nil
	}
	dir := w.dir
	w.dir = ""
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("discard layer: %w", err)
	}
	return nil
}

// end tells Run once that w unpacks no more.
func (w *Writer) end() {
	if w.ended {
		return
	}
	w.ended = true
	w.s.letSync()
}

// uuidOf names the file system of a layer, so that its mount can be told from others.
func uuidOf(id digest.Digest) (uuid [16]byte) {
	sum := sha256.Sum256([]byte(id))
	return [16]byte(sum[:16])
}

type erofsUnpacker struct {
	files      []*os.File // meta, data and checksums
	meta, data *sums.Recorder
	w          *erofs.Writer
}

func newErofsUnpacker(dir string, l tarstream.Limits) (unpacker, error) {
	u := &erofsUnpacker{}
	for _, name := range []string{metaFile, dataFile, sumsFile} {
		f, err := create(dir, name)
		if err != nil {
			return nil, errors.Join(err, closeAll(u.files))
		}
		u.files = append(u.files, f)
	}
	u.data = sums.NewRecorder(u.files[1], u.files[2], nil)
	u.meta = sums.NewRecorder(u.files[0], u.files[2], u.data)
	u.w = erofs.NewWriter(u.meta, u.data, l)
	return u, nil
}

func create(dir, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (u *erofsUnpacker) unpack(r *tarstream.Reader) error { return u.w.Unpack(r) }

func (u *erofsUnpacker) finish(uuid [16]byte) (done written, err error) {
	sum, err := u.w.Finish(uuid)
	if err == nil {
		err = u.files[2].Truncate(u.meta.End())
	}
	var ofSums uint32
	if err == nil {
		ofSums, err = sums.OfSums(u.files[2])
	}
	if err != nil {
		return written{}, err
	}
	done = written{inodes: sum.Inodes, sums: checksums{Data: u.data.Blocks(), Meta: u.meta.Blocks(), Sums: ofSums}}
	for _, f := range u.files {
		used, err := diskUse(f)
		if err != nil {
			return written{}, err
		}
		done.bytes += used
	}
	return done, closeAll(u.files)
}

// diskUse is what a file takes on disk.
func diskUse(f *os.File) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return st.Blocks * 512, nil
}

func (u *erofsUnpacker) abort() {
	u.w.Abort()
	_ = closeAll(u.files) // nothing was promised, or they are closed
}

type dirUnpacker struct {
	w         *dirtree.Writer
	inventory *os.File
}

func newDirUnpacker(dir string, l tarstream.Limits) (unpacker, error) {
	root := filepath.Join(dir, fsDir)
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	inventory, err := create(dir, sumsFile)
	if err != nil {
		return nil, err
	}
	w, err := dirtree.NewWriter(root, l)
	if err != nil {
		return nil, errors.Join(err, inventory.Close())
	}
	return &dirUnpacker{w, inventory}, nil
}

func (u *dirUnpacker) unpack(r *tarstream.Reader) error { return u.w.Unpack(r) }

func (u *dirUnpacker) finish([16]byte) (done written, err error) {
	sum, err := u.w.Finish(u.inventory)
	if err != nil {
		return written{}, err
	}
	list, err := diskUse(u.inventory)
	return written{bytes: sum.Bytes + list, inodes: sum.Inodes}, errors.Join(err, u.inventory.Close())
}

func (u *dirUnpacker) abort() {
	u.w.Abort()
	_ = u.inventory.Close() // nothing was promised, or it is closed
}
