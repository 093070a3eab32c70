package streaming

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// lingerBound is how long a client that is still sending may take to see that its connection is closed.
const lingerBound = 10 * time.Second

var (
	errGone   = errors.New("the client is gone")
	errClosed = errors.New("the stream is closed")
)

// conn is a client's connection. It tells when the client is gone, which whoever waits for a process does not notice, and
// closes gently: a socket that is closed with unread data in it resets the connection, and the client loses what it has not
// read yet, which may be the last output and the exit code.
type conn struct {
	*net.TCPConn
	hijacked atomic.Bool                             // no longer HTTP
	tell     atomic.Pointer[context.CancelCauseFunc] // ends the context of its requests
	gone     atomic.Bool                             // the client sends no more
	closed   atomic.Bool
	closing  sync.Once
	ahead    ahead
	ended    chan struct{} // closed with its descriptor
	forget   func(*conn)
}

// lose ends the requests of the connection.
func (c *conn) lose(cause error) {
	if tell := c.tell.Load(); tell != nil {
		(*tell)(cause)
	}
}

// leave says that the client sends no more: nobody does that and still listens. It may take what is on its way.
func (c *conn) leave() {
	c.lose(errGone)
	_ = c.SetWriteDeadline(time.Now().Add(lingerBound)) // fails for a closed connection only
	c.gone.Store(true)
}

// Read fails for good when the client is gone. net/http interrupts reads of its own by deadlines; afterwards one is the idle
// timeout.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.ahead.read(p, c.TCPConn)
	if c.closed.Load() {
		return 0, io.EOF
	}
	var timeout net.Error
	if err != nil && (c.hijacked.Load() || !errors.As(err, &timeout) || !timeout.Timeout()) {
		c.lose(errGone)
	}
	return n, err
}

// SetDeadline does nothing once the client is gone, whose last deadline is set.
func (c *conn) SetDeadline(t time.Time) error {
	if c.gone.Load() {
		return nil
	}
	return c.TCPConn.SetDeadline(t)
}

// Close tells the client that there is no more, and waits in the background until it has heard.
func (c *conn) Close() error {
	c.closing.Do(func() {
		c.closed.Store(true)
		c.lose(errClosed)
		go func() {
			defer c.end()
			if c.CloseWrite() != nil {
				return // it has ended already
			}
			_ = c.TCPConn.SetDeadline(time.Now().Add(lingerBound))
			_, _ = io.Copy(io.Discard, c.TCPConn)
		}()
	})
	return nil
}

// end closes the connection at once. It may be repeated.
func (c *conn) end() {
	_ = c.TCPConn.Close() // whoever reads it ends
	c.forget(c)
}

// upgraded says that the connection is no longer HTTP.
func (c *conn) upgraded() {
	c.hijacked.Store(true)
	go c.ahead.run(c, c.ended)
}

// listener makes conns of what it accepts.
type listener struct {
	*net.TCPListener
	watch *watch

	mu   sync.Mutex
	open map[*conn]struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := &conn{TCPConn: tcp, ended: make(chan struct{}), forget: l.forget}
	l.mu.Lock()
	l.open[c] = struct{}{}
	l.mu.Unlock()
	l.watch.add(c)
	return c, nil
}

func (l *listener) forget(c *conn) {
	l.watch.remove(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.open[c]; known {
		delete(l.open, c)
		close(c.ended)
	}
}

// endAll closes all connections at once.
func (l *listener) endAll() {
	l.mu.Lock()
	all := make([]*conn, 0, len(l.open))
	for c := range l.open {
		all = append(all, c)
	}
	l.mu.Unlock()
	for _, c := range all {
		c.closed.Store(true)
		c.lose(errClosed)
		c.end()
	}
}
