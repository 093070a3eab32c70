package streaming

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watch notices clients that are gone, also those whose connection nobody reads at the moment because a process does not
// take its input. One goroutine waits for all, in the runtime's poller: an epoll can be polled itself.
type watch struct {
	epoll *os.File

	mu   sync.Mutex
	next int32
	all  map[int32]*conn
	ids  map[*conn]int32
}

func newWatch() (*watch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("watch connections: %w", err)
	}
	return &watch{epoll: os.NewFile(uintptr(fd), "epoll"), all: map[int32]*conn{}, ids: map[*conn]int32{}}, nil
}

// add begins to watch c. Without a watch, which costs kernel memory, a client that is gone is noticed by reading and writing.
func (w *watch) add(c *conn) {
	w.mu.Lock()
	w.next++
	id := w.next
	w.all[id], w.ids[c] = c, id
	w.mu.Unlock()
	event := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: id}
	_ = control(w.epoll, func(epoll int) error {
		return control(c.TCPConn, func(fd int) error { return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event) })
	})
}

// remove forgets c, whose descriptor is closed.
func (w *watch) remove(c *conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, w.ids[c])
	delete(w.ids, c)
}

// run tells connections until close.
func (w *watch) run() {
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		return
	}
	for err == nil {
		var events [16]unix.EpollEvent
		n := 0
		err = raw.Read(func(fd uintptr) bool {
			var failed error
			n, failed = unix.EpollWait(int(fd), events[:], 0)
			return n > 0 || failed != nil && !errors.Is(failed, unix.EINTR)
		})
		for _, e := range events[:max(n, 0)] {
			w.mu.Lock()
			c := w.all[e.Fd]
			w.mu.Unlock()
			if c != nil {
				c.leave()
			}
		}
	}
}

func (w *watch) close() error { return w.epoll.Close() }
