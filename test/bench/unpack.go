package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/store/layer"
)

const (
	unpackFiles  = 15_000
	unpackLayers = 7
	unpackTarget = 1.3
)

// Laps of unpacking. CPU is that of this process, which has the registry too.
const (
	lapWall = "wall"
	lapCPU  = "CPU"
)

// unpacking is an image of many files, in one layer and in several.
type unpacking struct {
	one, several *image
	ref          string // of several
}

// measureUnpack compares what a pull does with what no pull can do without: inflating and both digests.
func measureUnpack(ctx context.Context, b *bench) error {
	u, err := newUnpacking(b)
	if err != nil {
		return err
	}
	unpack, pull, err := b.unpacker(u)
	if err != nil {
		return err
	}
	one := []contender{{"inflate and hash, one layer", timed(u.inflateOne)}, {"EROFS, one layer", unpack}}
	several := []contender{{"inflate and hash, seven layers on all cores", timed(u.inflateAll)}, {"EROFS, pull of seven layers", pull}}
	rounds := max(b.rounds(5), 2)
	r, err := inTurns(ctx, rounds, 0, one)
	if err != nil {
		return err
	}
	p, err := inTurns(ctx, rounds, 0, several)
	if err != nil {
		return err
	}
	heading(fmt.Sprintf("Unpacking gzip layers with %d files, %d MB inflated, ms", unpackFiles, u.several.plain>>20))
	printTimes(append(r, p...), nil)
	b.compare("unpack one layer into EROFS / inflate and hash", r.find(one[1].name, lapWall), r.find(one[0].name, lapWall), unpackTarget)
	b.compare("pull into EROFS / inflate and hash on all cores", p.find(several[1].name, lapWall), p.find(several[0].name, lapWall), unpackTarget)
	return nil
}

func newUnpacking(b *bench) (*unpacking, error) {
	u := &unpacking{}
	var parts [][]byte
	for i := range unpackLayers {
		a, err := manyFiles(unpackFiles/unpackLayers, uint64(i))
		if err != nil {
			return nil, err
		}
		parts = append(parts, a)
	}
	all, err := manyFiles(unpackFiles, unpackLayers)
	if err != nil {
		return nil, err
	}
	if u.one, err = newImage(ocispec.ImageConfig{}, all); err != nil {
		return nil, err
	}
	if u.several, err = newImage(ocispec.ImageConfig{}, parts...); err != nil {
		return nil, err
	}
	u.ref, err = u.several.serve(b)
	return u, err
}

// timed measures wall and CPU time of a function.
func timed(f func(context.Context) error) func(context.Context) ([]lap, error) {
	return func(ctx context.Context) ([]lap, error) {
		began, cpu := time.Now(), cpuTime()
		err := f(ctx)
		return []lap{{lapWall, time.Since(began)}, {lapCPU, cpuTime() - cpu}}, err
	}
}

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail with these arguments
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inflated reads a layer's content, through both digests.
func inflated(blob []byte) (io.Reader, hash.Hash, error) {
	z, err := gzip.NewReader(io.TeeReader(bytes.NewReader(blob), sha256.New()))
	diff := sha256.New()
	return io.TeeReader(z, diff), diff, err
}

func (u *unpacking) inflateOne(context.Context) error {
	return inflate(u.one.blobs[u.one.layers[0].Digest])
}

func inflate(blob []byte) error {
	r, _, err := inflated(blob)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	return err
}

func (u *unpacking) inflateAll(context.Context) error {
	errs := make([]error, len(u.several.layers))
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i, l := range u.several.layers {
		wg.Go(func() {
			slots <- struct{}{}
			errs[i] = inflate(u.several.blobs[l.Digest])
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// unpacker returns what unpacks one layer into EROFS, and what pulls the image of several.
func (b *bench) unpacker(u *unpacking) (unpack, pull func(context.Context) ([]lap, error), err error) {
	dir, err := b.mkdir("unpack")
	if err != nil {
		return nil, nil, err
	}
	store, err := layer.Open(layer.Config{Root: filepath.Join(dir, "layers"), Format: layer.EROFS})
	if err != nil {
		return nil, nil, err
	}
	b.later(store.Close)
	images, err := imageservice.New(imageservice.Config{Dir: filepath.Join(dir, "images"), Layers: store})
	if err != nil {
		return nil, nil, err
	}
	b.later(images.Close)
	unpack = func(ctx context.Context) ([]lap, error) {
		var id digest.Digest
		all, err := timed(func(ctx context.Context) (err error) {
			id, err = unpackLayer(ctx, store, u.one.blobs[u.one.layers[0].Digest])
			return err
		})(ctx)
		if err == nil {
			_, err = store.Remove(id)
		}
		return all, err
	}
	pull = func(ctx context.Context) ([]lap, error) {
		var id string
		all, err := timed(func(ctx context.Context) (err error) {
			id, err = images.Pull(ctx, imageservice.PullRequest{Ref: u.ref})
			return err
		})(ctx)
		if err == nil {
			err = images.Remove(ctx, id)
		}
		return all, err
	}
	return unpack, pull, nil
}

// unpackLayer does all of it in one goroutine.
func unpackLayer(ctx context.Context, store *layer.Store, blob []byte) (digest.Digest, error) {
	w, err := store.Begin(ctx)
	if err != nil {
		return "", err
	}
	r, diff, err := inflated(blob)
	if err == nil {
		_, err = w.ReadFrom(r)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err != nil {
		return "", errors.Join(err, w.Discard())
	}
	id := digest.NewDigest(digest.SHA256, diff)
	_, err = w.Commit(id)
	return id, err
}
