package imagedb

import (
	"encoding/base64"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserveBase is what a removal writes at most where no value is large, with a margin, in bytes.
const reserveBase = 1 << 20

// reserveSize is how much space to keep for a removal: bbolt writes the pages around the one that changes anew, also those
// of its neighbours' configs and manifests, before it frees the old ones.
func reserveSize(images []*Image) int64 {
	largest := 0
	for _, img := range images {
		size := len(img.Config) + len(img.Manifest)
		for _, d := range img.Documents {
			size += base64.StdEncoding.EncodedLen(len(d)) // as the record has it
		}
		largest = max(largest, size)
	}
	return reserveBase + 4*int64(largest)
}

// Refill makes the reserve again, or larger if an image has come that needs it. It is to be called when there is space again;
// while there is none it fails, and removals may fail until it does not.
func (db *DB) Refill() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.refill()
}

func (db *DB) refill() error {
	size := reserveSize(db.Snapshot().Images())
	var st unix.Stat_t
	if err := unix.Stat(db.reserve, &st); err == nil && st.Size >= size && st.Blocks*512 >= size {
		return nil
	}
	f, err := os.OpenFile(db.reserve, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close())
	}
	if errors.Is(err, unix.EOPNOTSUPP) { // such a file system has nothing to hold back
		return nil
	}
	return err
}

// sparing runs a change that is to free space in the end. If the disk is full, the reserve is spent for it.
func (db *DB) sparing(change func() error) error {
	err := change()
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if spent := os.Truncate(db.reserve, 0); spent != nil {
		return errors.Join(err, spent)
	}
	return change()
}
