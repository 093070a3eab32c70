package remote

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// Sizes of a blob in parts, in bytes.
const (
	HeadSize = 8 << 20 // what is fetched before deciding; a blob of less than two of them comes over one connection
	PartSize = 2 << 20 // of memory that each connection fills
)

// Lanes bounds the connections and the memory that all blobs together take beyond one connection and one part each.
type Lanes struct {
	connections, memory *semaphore.Weighted
	perBlob             int
	head, part          int64
	share               float64 // of the time for the head that its reader must have waited for the network
}

// NewLanes shares connections, and memory of which a part takes PartSize; a blob uses at most perBlob connections. Who
// fetches a blob sees to it that there is one connection and one part for it in any case.
func NewLanes(connections, memory *semaphore.Weighted, perBlob int) *Lanes {
	return &Lanes{connections: connections, memory: memory, perBlob: perBlob, head: HeadSize, part: PartSize, share: 0.5}
}

// take says whether there is a connection and memory for one part more, now.
func (l *Lanes) take() bool {
	if !l.connections.TryAcquire(1) {
		return false
	}
	if !l.memory.TryAcquire(l.part) {
		l.connections.Release(1)
		return false
	}
	return true
}

func (l *Lanes) give() {
	l.connections.Release(1)
	l.memory.Release(l.part)
}

// parts is the rest of a blob, fetched over several connections, given in order. No connection waits for the reader: a part is
// asked for when there is memory for all of it. Whenever the reader had to wait for a part, one more is fetched at a time, as
// long as Lanes has room; so a reader that is slower than the network soon has what it needs and takes nothing from others.
type parts struct {
	blob    *Blob
	ctx     context.Context
	cancel  context.CancelFunc
	next    int64   // where the part to be asked for next begins
	queue   []*part // in order; the first is the one that is read, if reading
	reading bool
	rest    []byte   // of the one that is read
	most    int      // parts at a time
	own     bool     // the lane that every blob has is free
	spare   [][]byte // free memory; not Go's: it goes with the blob, and the collector does not let twice as much grow
	wg      sync.WaitGroup
}

// part is written by the goroutine that fetches it until done is closed.
type part struct {
	data []byte
	own  bool // in the lane that every blob has
	done chan struct{}
	err  error
}

func newParts(b *Blob) *parts {
	p := &parts{blob: b, next: b.offset, most: 2, own: true}
	p.ctx, p.cancel = context.WithCancel(b.ctx)
	return p
}

func (p *parts) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if err := p.turn(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// turn gives back the part that was read and waits for the next.
func (p *parts) turn() error {
	if p.reading {
		p.reading = false
		p.giveBack(p.queue[0])
		p.queue = p.queue[1:]
	}
	p.ask()
	p.unmap() // what no lane was left for
	if len(p.queue) == 0 {
		return io.EOF
	}
	first := p.queue[0]
	select {
	case <-first.done:
	default:
		p.most = min(p.most+1, p.blob.s.cfg.Lanes.perBlob)
		p.ask()
		<-first.done
	}
	if first.err != nil {
		return first.err
	}
	p.reading, p.rest = true, first.data
	return nil
}

// ask begins as many parts as there is room for. One always is, if none is under way.
func (p *parts) ask() {
	size, lanes := p.blob.desc.Size, p.blob.s.cfg.Lanes
	for len(p.queue) < p.most && p.next < size {
		own := p.own
		if !own && !lanes.take() {
			return
		}
		if own {
			p.own = false
		}
		end := min(p.next+lanes.part, size)
		one := &part{own: own, done: make(chan struct{})}
		if one.data, one.err = p.buffer(lanes.part); one.err != nil {
			close(one.done)
			p.queue, p.next = append(p.queue, one), end
			continue
		}
		one.data = one.data[:end-p.next]
		from := p.blob.part(p.ctx, p.next, end)
		p.queue = append(p.queue, one)
		p.next = end
		p.wg.Go(func() {
			defer close(one.done)
			_, one.err = io.ReadFull(from, one.data)
			_ = from.Close() // read to its end, or failed
		})
	}
}

// part is what fetches one.
func (b *Blob) part(ctx context.Context, offset, end int64) *stretch {
	plan := b.s.schedule(fmt.Sprintf("bytes %d-%d of %s", offset, end-1, b.plan.what), b.plan.hosts)
	plan.next = max(0, slices.Index(plan.hosts, b.from))
	return &stretch{ctx: ctx, s: b.s, desc: b.desc, plan: plan, strict: true, lost: b.lost, offset: offset, safe: offset, end: end}
}

func (p *parts) buffer(size int64) ([]byte, error) {
	if n := len(p.spare); n > 0 {
		data := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return data[:size], nil
	}
	data, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map memory for a part of %d bytes: %w", size, err)
	}
	return data, nil
}

// giveBack ends the use of a part.
func (p *parts) giveBack(one *part) {
	if one.own {
		p.own = true
	} else {
		p.blob.s.cfg.Lanes.give()
	}
	if one.data != nil {
		p.spare = append(p.spare, one.data)
	}
}

// Close ends what is under way and waits for it.
func (p *parts) Close() {
	p.cancel()
	p.wg.Wait()
	for _, one := range p.queue {
		p.giveBack(one)
	}
	p.unmap()
	p.queue, p.rest = nil, nil
}

// unmap gives the memory of free parts back.
func (p *parts) unmap() {
	for _, data := range p.spare {
		_ = unix.Munmap(data[:cap(data)]) // cannot fail: it is one of ours
	}
	p.spare = nil
}
