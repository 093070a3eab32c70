package imageservice

import (
	"hash"
	"io"
	"sync/atomic"
	"time"

	"github.com/criserver/criserver/stage"
)

const (
	pumpBuffer = 128 << 10 // bytes
	pumpDepth  = 4         // buffers, one of which is being filled and one being read
)

// pump reads ahead in a goroutine of its own, and digests what it has read in another, so that what is before it, what is
// after it and the digest run at the same time. Buffers are passed on, not copied; one is free when both have done with it.
type pump struct {
	full    chan *chunk
	hashing chan *chunk
	free    chan *chunk
	stop    chan struct{}
	ended   chan struct{} // nothing is read any more
	hashed  chan struct{} // nothing is digested any more
	hash    hash.Hash     // of everything that was read, once hashed is closed
	times   pumpTimes
	waited  atomic.Int64 // nanoseconds that the reader waited for

	chunk *chunk // that is being read
	rest  []byte // of chunk
	err   error  // that came with chunk
	got   time.Time
}

// pumpTimes are told how long filling, digesting and using a buffer took; any may be nil.
type pumpTimes struct{ fill, hash, use func(time.Duration) }

type chunk struct {
	data  []byte
	err   error        // after data
	users atomic.Int32 // reader and digest
}

// fill reads until the chunk is full or src ends. A panic of src, which may be a decompressor at odds with a hostile stream,
// is an error: in this goroutine it would end the process.
func (c *chunk) fill(src io.Reader) {
	n := 0
	c.data = c.data[:cap(c.data)]
	c.err = stage.Protect(func() error {
		for n < len(c.data) {
			m, err := src.Read(c.data[n:])
			if n += m; err != nil {
				return err
			}
		}
		return nil
	})
	c.data = c.data[:n]
}

func newPump(src io.Reader, h hash.Hash, times pumpTimes) *pump {
	p := &pump{
		full: make(chan *chunk, pumpDepth), hashing: make(chan *chunk, pumpDepth), free: make(chan *chunk, pumpDepth),
		stop: make(chan struct{}), ended: make(chan struct{}), hashed: make(chan struct{}), hash: h, times: times,
	}
	for range pumpDepth {
		p.free <- nil // made when it is needed: many layers are small
	}
	go p.run(src)
	go p.digest()
	return p
}

func (p *pump) run(src io.Reader) {
	defer close(p.ended)
	defer close(p.hashing)
	for {
		var c *chunk
		select {
		case c = <-p.free:
		case <-p.stop:
			return
		}
		if c == nil {
			c = &chunk{data: make([]byte, pumpBuffer)}
		}
		began := time.Now()
		c.fill(src)
		tell(p.times.fill, time.Since(began))
		c.users.Store(2)
		ended := c.err != nil // c is others' from here on
		p.hashing <- c        // both have room for all buffers that there are
		p.full <- c
		if ended {
			return
		}
	}
}

func (p *pump) digest() {
	defer close(p.hashed)
	for c := range p.hashing {
		began := time.Now()
		p.hash.Write(c.data) // never fails
		tell(p.times.hash, time.Since(began))
		p.done(c)
	}
}

func tell(f func(time.Duration), d time.Duration) {
	if f != nil {
		f(d)
	}
}

// done ends one use of a buffer.
func (p *pump) done(c *chunk) {
	if c.users.Add(-1) == 0 {
		p.free <- c
	}
}

func (p *pump) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		p.turn()
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// turn waits for the next buffer.
func (p *pump) turn() {
	began := time.Now()
	if p.chunk != nil {
		tell(p.times.use, began.Sub(p.got))
		p.done(p.chunk)
	}
	p.chunk = <-p.full
	p.rest, p.err = p.chunk.data, p.chunk.err
	p.got = time.Now()
	p.waited.Add(int64(p.got.Sub(began)))
}

// finish reads what nobody wanted. Unless that is an error, the digest is complete when it returns.
func (p *pump) finish() error {
	if _, err := io.Copy(io.Discard, p); err != nil {
		return err
	}
	<-p.hashed
	return nil
}

// Close ends the reading ahead. It returns when the source is no longer used, which must not be blocked for ever.
func (p *pump) Close() {
	close(p.stop)
	<-p.ended
	<-p.hashed
}
