package streaming

import (
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// aheadLimit is more than a client's kernel holds of what it has sent and we have not taken (tcp_wmem is 4 MiB).
	aheadLimit = 8 << 20
	aheadTick  = time.Second
)

// ahead is what was read of a connection and nobody wanted yet. A command that does not read its stdin stops the reading of
// its connection, and the end of a client that has died stands behind all that it had sent: after a while of that, as
// much is read as the client's kernel can have held.
type ahead struct {
	reading sync.Mutex // held while the connection is read; guards the rest
	data    []byte
	reads   uint64
}

// read takes from what was read ahead, or else reads.
func (a *ahead) read(p []byte, from io.Reader) (int, error) {
	a.reading.Lock()
	defer a.reading.Unlock()
	a.reads++
	if len(a.data) == 0 {
		a.data = nil
		return from.Read(p)
	}
	n := copy(p, a.data)
	a.data = a.data[n:]
	return n, nil
}

// run reads ahead of a reader that has stopped, until ended is closed.
func (a *ahead) run(c *conn, ended <-chan struct{}) {
	tick := time.NewTicker(aheadTick)
	defer tick.Stop()
	for seen := uint64(0); ; {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		if !a.reading.TryLock() { // the reader waits for the client, not for the command
			continue
		}
		if a.reads == seen {
			a.fill(c)
		}
		seen = a.reads
		a.reading.Unlock()
	}
}

// fill reads what there is. reading is held.
func (a *ahead) fill(c *conn) {
	for buffer := make([]byte, 64<<10); len(a.data) < aheadLimit; {
		n := 0
		err := control(c.TCPConn, func(fd int) (err error) {
			n, _, err = unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT)
			return err
		})
		if n > 0 {
			a.data = append(a.data, buffer[:n]...)
		}
		if n <= 0 && !errors.Is(err, unix.EINTR) {
			return // the end is noticed by the watch, and by the reader when it comes to it
		}
	}
}
