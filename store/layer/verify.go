package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/dirtree"
	"github.com/criserver/criserver/store/layer/erofs"
	"github.com/criserver/criserver/store/layer/frame"
	"github.com/criserver/criserver/store/layer/sums"
	"github.com/criserver/criserver/store/layer/tarstream"
)

// Errors of Verify.
var (
	ErrDamaged     = errors.New("layer is not what was unpacked")
	ErrNoChecksums = errors.New("layer was unpacked before checksums were kept")
	// ErrFrameDamaged does not concern what containers see.
	ErrFrameDamaged = errors.New("layer's frame is damaged: containers can use it, images with it cannot be exported")
)

const (
	maxFaults = 10   // that an error tells of
	maxRanges = 1000 // of bad blocks that are looked up

	frameBuffer = 256 << 10 // bytes
)

// Verify reads the layer's files from disk, past the page cache where the file system can, and compares them with
// checksums that were made while it was unpacked. The error satisfies errors.Is(err, ErrDamaged) if they differ, and
// names files and blocks; others are ErrNotFound and ErrNoChecksums, and ErrFrameDamaged alone or beside ErrDamaged. The layer
// cannot be removed meanwhile.
// Checksums find what happens to disks, not tampering; see package sums.
func (s *Store) Verify(ctx context.Context, id digest.Digest) error {
	e, err := s.acquire(id)
	if err != nil {
		return fmt.Errorf("verify layer %s: %w", id, err)
	}
	defer s.release(e)
	if e.sums == nil {
		return fmt.Errorf("verify layer %s: %w", id, ErrNoChecksums)
	}
	var f faults
	if e.Format == EROFS {
		err = verifyImage(ctx, e, &f)
	} else {
		err = verifyTree(ctx, e.dir, &f)
	}
	if err != nil {
		return fmt.Errorf("verify layer %s: %w", id, err)
	}
	framed := verifyFrame(ctx, e)
	switch {
	case f.count == 0 && framed == nil:
		return nil
	case f.count == 0:
		return fmt.Errorf("verify layer %s: %w", id, framed)
	case framed == nil:
		return fmt.Errorf("verify layer %s: %w: %s", id, ErrDamaged, f.text())
	}
	return fmt.Errorf("verify layer %s: %w: %s; %w", id, ErrDamaged, f.text(), framed)
}

// verifyFrame compares the frame with its checksum. One of before these were kept has none but those of its own format.
func verifyFrame(ctx context.Context, e *entry) error {
	f, err := sums.OpenAt(unix.AT_FDCWD, filepath.Join(e.dir, frameFile))
	switch {
	case errors.Is(err, os.ErrNotExist) && e.frame == nil:
		return nil // it was unpacked before frames were kept
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: it is missing", ErrFrameDamaged)
	case err != nil:
		return err
	}
	defer func() { _ = f.Close() }() // read from only
	buf, err := sums.NewBuffer(frameBuffer)
	if err != nil {
		return err
	}
	defer func() { _ = buf.Close() }() // unmapping memory of ours does not fail
	sum, size, err := sums.Whole(ctx, f, buf)
	switch {
	case err != nil:
		return err
	case e.frame == nil:
		return verifyOldFrame(e)
	case size != e.frame.Bytes:
		return fmt.Errorf("%w: it has %d bytes instead of %d", ErrFrameDamaged, size, e.frame.Bytes)
	case sum != e.frame.CRC:
		return fmt.Errorf("%w: it has another checksum", ErrFrameDamaged)
	}
	return nil
}

func verifyOldFrame(e *entry) error {
	f, err := openFrame(e)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read from only
	if _, err := frame.Size(f); err != nil {
		return fmt.Errorf("%w: %w", ErrFrameDamaged, err)
	}
	return nil
}

// Expel takes a damaged layer out of the store, so that the next pull fetches it again. What runs on it goes on, and keeps
// its space until then; only a directory that is in use stays until the next boot.
func (s *Store) Expel(id digest.Digest) error {
	s.mu.Lock()
	e := s.layers[id]
	s.mu.Unlock()
	if e == nil {
		return fmt.Errorf("expel layer %s: %w", id, ErrNotFound)
	}
	if err := s.expel(e); err != nil {
		return fmt.Errorf("expel layer %s: %w", id, err)
	}
	return nil
}

// faults are what Verify found.
type faults struct {
	list  []string
	count int64
}

func (f *faults) add(text string) {
	if f.count++; len(f.list) < maxFaults {
		f.list = append(f.list, text)
	}
}

func (f *faults) text() string {
	text := strings.Join(f.list, "; ")
	if more := f.count - int64(len(f.list)); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

func verifyTree(ctx context.Context, dir string, f *faults) error {
	list, err := os.Open(filepath.Join(dir, sumsFile))
	if err != nil {
		return err
	}
	defer func() { _ = list.Close() }() // read from only
	return dirtree.Check(ctx, filepath.Join(dir, fsDir), list, f.add)
}

func verifyImage(ctx context.Context, e *entry, f *faults) error {
	kept, err := os.Open(filepath.Join(e.dir, sumsFile))
	if err != nil {
		return err
	}
	defer func() { _ = kept.Close() }() // read from only
	badMeta, err := verifyFile(ctx, filepath.Join(e.dir, metaFile), kept, e.sums.Data, e.sums.Meta, f)
	if err != nil {
		return err
	}
	badData, err := verifyFile(ctx, filepath.Join(e.dir, dataFile), kept, 0, e.sums.Data, f)
	if err != nil {
		return err
	}
	for _, r := range badMeta {
		f.add(blocks(r, metaFile))
	}
	if f.count == 0 && len(badData) > 0 { // metadata that is damaged cannot say whose the blocks are
		if badData, err = nameFiles(filepath.Join(e.dir, metaFile), badData, f); err != nil {
			return err
		}
	}
	for _, r := range badData {
		f.add(blocks(r, dataFile))
	}
	if f.count > 0 || e.sums.Sums == 0 {
		return nil
	}
	sum, err := sums.OfSums(kept)
	if err == nil && sum != e.sums.Sums {
		f.add(sumsFile + " is not what was kept while the layer was unpacked")
	}
	return err
}

// verifyFile compares one file of an image; the checksums of skip blocks are before its own.
func verifyFile(ctx context.Context, path string, kept *os.File, skip, size int64, f *faults) ([]sums.Range, error) {
	name := filepath.Base(path)
	file, err := sums.OpenAt(unix.AT_FDCWD, path)
	if errors.Is(err, os.ErrNotExist) {
		f.add(name + " is missing")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // read from only
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != size*sums.BlockSize {
		f.add(fmt.Sprintf("%s has %d bytes instead of %d", name, st.Size(), size*sums.BlockSize))
		size = min(size, st.Size()/sums.BlockSize)
	}
	bad, count, err := sums.Compare(ctx, file, kept, skip, size, maxRanges)
	for _, r := range bad {
		count -= r.Count
	}
	if count > 0 {
		f.add(fmt.Sprintf("%d blocks of %s beside those that are listed", count, name))
	}
	return bad, err
}

// nameFiles tells whose contents the bad blocks of the data file are; rest are blocks of no file, since it was replaced.
func nameFiles(metaPath string, bad []sums.Range, f *faults) (rest []sums.Range, err error) {
	meta, err := os.Open(metaPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = meta.Close() }() // read from only
	st, err := meta.Stat()
	if err != nil {
		return nil, err
	}
	named := make([]bool, len(bad))
	err = erofs.Files(meta, st.Size(), func(path string, first, count int64) error {
		i := sort.Search(len(bad), func(i int) bool { return bad[i].First+bad[i].Count > first })
		for ; i < len(bad) && bad[i].First < first+count; i++ {
			from, to := max(bad[i].First, first), min(bad[i].First+bad[i].Count, first+count)
			named[i] = true
			f.add(fmt.Sprintf("%s from byte %d on (%s)", tarstream.Quote(path), (from-first)*sums.BlockSize,
				blocks(sums.Range{First: from, Count: to - from}, dataFile)))
		}
		return nil
	})
	for i, r := range bad {
		if !named[i] {
			rest = append(rest, r)
		}
	}
	return rest, err
}

func blocks(r sums.Range, file string) string {
	if r.Count == 1 {
		return fmt.Sprintf("block %d of %s", r.First, file)
	}
	return fmt.Sprintf("blocks %d to %d of %s", r.First, r.First+r.Count-1, file)
}
