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

// pump digests what is read through it. As long as there are processors to spare it also reads ahead in a goroutine of its own
// and digests in another, so that what is before it, what is after it and the digest run at the same time. Else whoever reads
// does all of it, while a buffer is in the processor's cache. Buffers are passed on, not copied; one is free when all have done
// with it.
type pump struct {
	src    io.Reader
	hash   hash.Hash   // of everything that was read, once finish has returned
	spare  func() bool // says whether there are processors to spare
	times  pumpTimes
	ahead  *readAhead // nil while nobody reads ahead
	free   chan *chunk
	waited atomic.Int64 // nanoseconds that the reader waited for

	chunk *chunk // that is being read
	rest  []byte // of chunk
	err   error  // that came with chunk
	got   time.Time
}

// pumpTimes are told how long filling, digesting and using a buffer took; any may be nil.
type pumpTimes struct{ fill, hash, use func(time.Duration) }

// readAhead is what two goroutines do while there are processors to spare.
type readAhead struct {
	full    chan *chunk // closed when no more come
	hashing chan *chunk
	stop    chan struct{}
	hashed  chan struct{} // both goroutines have ended
}

type chunk struct {
	data  []byte
	err   error        // after data
	users atomic.Int32 // reader and digest
}

// fill reads until the chunk is full or src ends. A panic of src, which may be a decompressor at odds with a hostile stream,
// is an error: in a goroutine of its own it would end the process.
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

func newPump(src io.Reader, h hash.Hash, spare func() bool, times pumpTimes) *pump {
	p := &pump{src: src, hash: h, spare: spare, times: times, free: make(chan *chunk, pumpDepth)}
	for range pumpDepth {
		p.free <- nil // made when it is needed: many layers are small
	}
	return p
}

// fill fills a free buffer for some users.
func (p *pump) fill(c *chunk, users int32) *chunk {
	if c == nil {
		c = &chunk{data: make([]byte, pumpBuffer)}
	}
	began := time.Now()
	c.fill(p.src)
	tell(p.times.fill, time.Since(began))
	c.users.Store(users)
	return c
}

func (p *pump) digest(c *chunk) {
	began := time.Now()
	p.hash.Write(c.data) // never fails
	tell(p.times.hash, time.Since(began))
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

// readAhead begins to read ahead.
func (p *pump) readAhead() *readAhead {
	a := &readAhead{full: make(chan *chunk, pumpDepth), hashing: make(chan *chunk, pumpDepth), stop: make(chan struct{}), hashed: make(chan struct{})}
	go func() {
		defer close(a.hashing)
		defer close(a.full)
		for p.spare() && p.readInto(a) {
		}
	}()
	go func() {
		defer close(a.hashed)
		for c := range a.hashing {
			p.digest(c)
			p.done(c)
		}
	}()
	return a
}

// readInto reads a buffer ahead and says whether there are more.
func (p *pump) readInto(a *readAhead) bool {
	select {
	case c := <-p.free:
		c = p.fill(c, 2)
		more := c.err == nil // c is others' from here on
		a.hashing <- c       // both have room for all buffers that there are
		a.full <- c
		return more
	case <-a.stop:
		return false
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

// turn goes on to the next buffer.
func (p *pump) turn() {
	began := time.Now()
	if p.chunk != nil {
		tell(p.times.use, began.Sub(p.got))
		p.done(p.chunk)
	}
	p.chunk = p.next()
	p.rest, p.err = p.chunk.data, p.chunk.err
	p.got = time.Now()
	p.waited.Add(int64(p.got.Sub(began)))
}

// next waits for a buffer that was read ahead, or fills one.
func (p *pump) next() *chunk {
	if p.ahead == nil && p.spare() {
		p.ahead = p.readAhead()
	}
	if p.ahead != nil {
		if c := <-p.ahead.full; c != nil {
			return c
		}
		<-p.ahead.hashed
		p.ahead = nil
	}
	c := p.fill(<-p.free, 1)
	p.digest(c)
	return c
}

// finish reads what nobody wanted. Unless that is an error, the digest is complete when it returns.
func (p *pump) finish() error {
	if _, err := io.Copy(io.Discard, p); err != nil {
		return err
	}
	if p.ahead != nil {
		<-p.ahead.hashed
	}
	return nil
}

// Close ends the reading ahead. It returns when the source is no longer used, which must not be blocked for ever.
func (p *pump) Close() {
	if p.ahead != nil {
		close(p.ahead.stop)
		<-p.ahead.hashed // which comes after the end of reading
	}
}
