package erofs

import (
	"errors"
	"fmt"
	"io"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// Device is a new, empty file. It is written in whole blocks of 4 KiB, at their borders.
type Device interface {
	io.WriterAt
	Truncate(size int64) error
}

const (
	bufferSize  = 1 << 20
	bufferCount = 3
)

// dataWriter appends contents to the data device. A goroutine of its own writes, so that reading the stream and the
// disk overlap.
type dataWriter struct {
	dev    Device
	buf    []byte // being filled
	off    int64  // of buf in the device
	work   chan chunk
	free   chan []byte
	failed chan error // at most one
	done   chan struct{}
	err    error
}

type chunk struct {
	p   []byte
	off int64
}

func newDataWriter(dev Device) *dataWriter {
	d := &dataWriter{
		dev:    dev,
		work:   make(chan chunk, bufferCount),
		free:   make(chan []byte, bufferCount),
		failed: make(chan error, 1),
		done:   make(chan struct{}),
	}
	for range bufferCount {
		d.free <- nil // made when it is needed: many layers are small
	}
	go d.write()
	return d
}

func (d *dataWriter) write() {
	defer close(d.done)
	var err error
	for c := range d.work {
		if err == nil {
			if err = tarstream.WriteSparse(d.dev, c.p, c.off); err != nil {
				d.failed <- err
			}
		}
		d.free <- c.p[:0]
	}
}

// append copies size bytes of r to the device and gives the first block.
func (d *dataWriter) append(r io.Reader, size int64) (block uint32, err error) {
	at := d.off + int64(len(d.buf))
	if blocks := (at + size + blockSize - 1) >> blockBits; blocks > maxBlocks {
		return 0, fmt.Errorf("%w: contents need %d blocks of 4 KiB, an image holds %d", tarstream.ErrInvalid, blocks, int64(maxBlocks))
	}
	for left := size; left > 0; {
		if err := d.room(); err != nil {
			return 0, err
		}
		n := len(d.buf)
		m, err := io.ReadFull(r, d.buf[n:n+int(min(left, int64(bufferSize-n)))])
		d.buf, left = d.buf[:n+m], left-int64(m)
		if err != nil {
			return 0, err
		}
	}
	n := len(d.buf)
	pad := -n & (blockSize - 1)
	d.buf = d.buf[:n+pad] // a buffer is a whole number of blocks
	clear(d.buf[n:])
	return uint32(at >> blockBits), nil
}

// room sees to it that buf has space, handing a full one to the goroutine.
func (d *dataWriter) room() error {
	if d.buf != nil && len(d.buf) < bufferSize {
		return nil
	}
	d.flush()
	d.buf = <-d.free
	if d.buf == nil {
		d.buf = make([]byte, 0, bufferSize)
	}
	return d.fault()
}

func (d *dataWriter) flush() {
	if len(d.buf) > 0 {
		d.work <- chunk{d.buf, d.off}
		d.off += int64(len(d.buf))
	}
	d.buf = nil
}

func (d *dataWriter) fault() error {
	select {
	case err := <-d.failed:
		d.err = fmt.Errorf("write layer data: %w", err)
	default:
	}
	return d.err
}

// finish writes what is buffered and gives the device its size in blocks.
func (d *dataWriter) finish() (blocks uint32, err error) {
	d.flush()
	d.stop()
	if err := d.fault(); err != nil {
		return 0, err
	}
	if err := d.dev.Truncate(d.off); err != nil {
		return 0, fmt.Errorf("size layer data: %w", err)
	}
	return uint32(d.off >> blockBits), nil
}

// stop ends the goroutine; it may be called again.
func (d *dataWriter) stop() {
	if d.work != nil {
		close(d.work)
		<-d.done
		d.work, d.free = nil, nil
	}
}

var errFinished = errors.New("erofs image is finished already")
