package imageservice

import (
	"io"

	"github.com/criserver/criserver/stage"
)

const (
	pumpBuffer = 256 << 10 // bytes
	pumpDepth  = 4         // buffers, one of which is being filled and one being read
)

// pump reads ahead in a goroutine of its own, so that what is before it and what is after it run at the same time.
type pump struct {
	full   chan chunk
	free   chan []byte
	stop   chan struct{}
	ended  chan struct{}
	buffer []byte // the chunk that is being read
	rest   []byte // of buffer
	err    error  // that came with buffer
}

type chunk struct {
	data []byte
	err  error // after data
}

// fill reads until data is full or src ends. A panic of src, which may be a decompressor at odds with a hostile stream,
// is an error: in this goroutine it would end the process.
func (c *chunk) fill(src io.Reader) {
	n := 0
	panicked := stage.Protect(func() error {
		for n < len(c.data) && c.err == nil {
			var m int
			m, c.err = src.Read(c.data[n:])
			n += m
		}
		return nil
	})
	c.data = c.data[:n]
	if panicked != nil {
		c.err = panicked
	}
}

func newPump(src io.Reader) *pump {
	p := &pump{full: make(chan chunk, pumpDepth), free: make(chan []byte, pumpDepth), stop: make(chan struct{}), ended: make(chan struct{})}
	for range pumpDepth {
		p.free <- make([]byte, pumpBuffer)
	}
	go p.run(src)
	return p
}

func (p *pump) run(src io.Reader) {
	defer close(p.ended)
	for {
		var c chunk
		select {
		case c.data = <-p.free:
		case <-p.stop:
			return
		}
		c.fill(src)
		p.full <- c // has room for all buffers that there are
		if c.err != nil {
			return
		}
	}
}

func (p *pump) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		if p.buffer != nil {
			p.free <- p.buffer[:cap(p.buffer)]
		}
		c := <-p.full
		p.buffer, p.rest, p.err = c.data, c.data, c.err
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Close ends the reading ahead. It returns when the source is no longer used, which must not be blocked for ever.
func (p *pump) Close() {
	close(p.stop)
	<-p.ended
}
