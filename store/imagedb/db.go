package imagedb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/record"
)

// ErrInUse says that another process has the database open.
var ErrInUse = errors.New("image database is in use by another process")

// lockTimeout bounds the wait for bbolt's own lock, which only a foreign program could hold: ours is taken before.
const lockTimeout = time.Second

var (
	bucketRecords   = []byte("image.v1")
	bucketConfigs   = []byte("config.v1")
	bucketManifests = []byte("manifest.v1")
	buckets         = [][]byte{bucketRecords, bucketConfigs, bucketManifests}
)

// Recovery says what Open found damaged. The zero value says nothing was.
type Recovery struct {
	SetAside string   // new name of a file that could not be used at all; empty if the file was used
	Cause    error    // why it could not
	Dropped  []string // single images that were forgotten: "<id>: <cause>"
}

// DB is an open database.
type DB struct {
	mu       sync.Mutex // one change at a time, from reading the snapshot to publishing the next; guards bolt
	bolt     *bolt.DB
	lock     *os.File
	reserve  string // path of a file that only takes up space
	snapshot atomic.Pointer[Snapshot]
}

// Open opens the database at path, beginning an empty one if the file is absent or unusable. The directory must exist.
// Errors are ErrInUse and those of the file system.
func Open(path string) (*DB, Recovery, error) {
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return nil, Recovery{}, fmt.Errorf("open image database %s: %w", path, err)
	}
	db := &DB{lock: lock, reserve: path + ".reserve"}
	recovery, err := db.open(path)
	if err != nil {
		return nil, Recovery{}, fmt.Errorf("open image database %s: %w", path, errors.Join(err, db.Close()))
	}
	return db, recovery, nil
}

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (db *DB) open(path string) (recovery Recovery, err error) {
	if cause := check(path); cause != nil && !errors.Is(cause, fs.ErrNotExist) {
		recovery.Cause = cause
		if recovery.SetAside, err = record.SetAside(path); err != nil {
			return recovery, fmt.Errorf("%w after finding it unusable: %w", err, cause)
		}
	}
	if db.bolt, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout}); err != nil {
		return recovery, err
	}
	images, bad, err := db.load()
	if err != nil {
		return recovery, err
	}
	if len(bad) > 0 {
		if err := db.sparing(func() error { return db.write(nil, bad) }); err != nil {
			return recovery, fmt.Errorf("drop damaged images: %w", err)
		}
	}
	for id, cause := range bad {
		recovery.Dropped = append(recovery.Dropped, fmt.Sprintf("%s: %v", id, cause))
	}
	db.snapshot.Store(newSnapshot(images))
	_ = db.refill() // a disk that is full now gives it when something was removed
	return recovery, nil
}

// load reads everything. bad has the ids under which something damaged or incomplete is kept.
func (db *DB) load() (images map[digest.Digest]*Image, bad map[digest.Digest]error, err error) {
	images, bad = map[digest.Digest]*Image{}, map[digest.Digest]error{}
	if err := db.ensureBuckets(); err != nil {
		return nil, nil, err
	}
	err = db.bolt.View(func(tx *bolt.Tx) error {
		configs, manifests := tx.Bucket(bucketConfigs), tx.Bucket(bucketManifests)
		return tx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
			img, err := decode(string(k), v, configs.Get(k), manifests.Get(k))
			if err != nil {
				bad[digest.Digest(k)] = err
				return nil
			}
			images[img.ID] = img
			return nil
		})
	})
	return images, bad, err
}

// ensureBuckets writes, and so syncs, only if one is missing.
func (db *DB) ensureBuckets() error {
	complete := true
	err := db.bolt.View(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			complete = complete && tx.Bucket(name) != nil
		}
		return nil
	})
	if err != nil || complete {
		return err
	}
	return db.bolt.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// Snapshot returns the present state.
func (db *DB) Snapshot() *Snapshot { return db.snapshot.Load() }

// Put adds the image, or adds its names and digests to the image that has this id already; names move here from other
// images. It is durable and visible when Put returns; on error nothing has changed.
func (db *DB) Put(img Image) error {
	if err := img.validate(); err != nil {
		return fmt.Errorf("store image %s: %w", img.ID, err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	changed := db.Snapshot().put(img)
	if err := db.write(changed, nil); err != nil {
		return fmt.Errorf("store image %s: %w", img.ID, err)
	}
	images := db.Snapshot().table()
	for _, c := range changed {
		images[c.ID] = c
	}
	db.snapshot.Store(newSnapshot(images))
	_ = db.refill() // a disk that is full now gives it when something was removed
	return nil
}

// Remove forgets the image with all its names and returns what it was; nil if there is none. It is durable and visible
// when Remove returns. It may spend the reserve: Refill is to be called when what it frees is free.
func (db *DB) Remove(id digest.Digest) (*Image, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	img := db.Snapshot().ByID(id)
	if img == nil {
		return nil, nil
	}
	if err := db.sparing(func() error { return db.write(nil, map[digest.Digest]error{id: nil}) }); err != nil {
		return nil, fmt.Errorf("forget image %s: %w", id, err)
	}
	images := db.Snapshot().table()
	delete(images, id)
	db.snapshot.Store(newSnapshot(images))
	return img, nil
}

// write makes one transaction of it; gone is used for its keys.
func (db *DB) write(changed []*Image, gone map[digest.Digest]error) error {
	return db.bolt.Update(func(tx *bolt.Tx) error {
		for _, img := range changed {
			value, err := img.encode()
			if err != nil {
				return err
			}
			for name, v := range map[string][]byte{
				string(bucketRecords): value, string(bucketConfigs): img.Config, string(bucketManifests): img.Manifest,
			} {
				if err := tx.Bucket([]byte(name)).Put([]byte(img.ID), v); err != nil {
					return err
				}
			}
		}
		for id := range gone {
			for _, name := range buckets {
				if err := tx.Bucket(name).Delete([]byte(id)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Close closes the files. Snapshots stay valid.
func (db *DB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	var err error
	if db.bolt != nil {
		err = db.bolt.Close()
	}
	return errors.Join(err, db.lock.Close())
}
