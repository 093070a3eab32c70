package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watcher calls look after every change of a directory and at least every period. It watches the directory and its
// nearest ancestor that exists, and finds them again when they are replaced.
type watcher struct {
	dir    string
	period time.Duration
	look   func() time.Duration // returns when to look again at the latest; 0: after a period
	events *os.File             // inotify, read through Go's poller

	self, parent int    // watch descriptors; -1: none
	child        string // name in the parent that leads to dir

	done chan struct{}
}

const (
	changes  = unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
	vanishes = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

func startWatcher(dir string, period time.Duration, look func() time.Duration) (*watcher, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init: %w", err)
	}
	w := &watcher{dir: dir, period: period, look: look, self: -1, parent: -1, done: make(chan struct{})}
	w.events = os.NewFile(uintptr(fd), "inotify")
	w.arm()
	go w.run()
	return w, nil
}

func (w *watcher) close() error {
	err := w.events.Close() // wakes the reader
	<-w.done
	return err
}

// run waits for events or for the time of the next look. What happened before arm is found by the look after it.
func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 16<<10)
	for {
		wait := w.look()
		if wait == 0 {
			wait = w.period
		}
		if !w.await(time.Now().Add(wait), buf) {
			return
		}
		w.arm()
	}
}

// await returns true when something that matters happened or at the deadline, and false when the watcher was closed.
func (w *watcher) await(deadline time.Time, buf []byte) bool {
	if err := w.events.SetReadDeadline(deadline); err != nil {
		return false
	}
	for {
		size, err := w.events.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return true
		case err != nil:
			return false
		case w.matters(buf[:size]):
			return true
		}
	}
}

// matters reports whether one of the events concerns the directory. The ancestor may be a busy place such as /run.
func (w *watcher) matters(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		event := (*unix.InotifyEvent)(unsafe.Pointer(&events[0]))
		end := unix.SizeofInotifyEvent + int(event.Len)
		if end > len(events) {
			return true
		}
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:end]), "\x00")
		if int(event.Wd) != w.parent || name == w.child || name == "" {
			return true // IN_Q_OVERFLOW and events of the directory itself come here too
		}
		events = events[end:]
	}
	return false
}

// arm watches what lies at the directory's path and at its nearest existing ancestor now. Adding a watch that exists
// changes nothing; one that led elsewhere is removed. Failures are made up for by the periodic look.
func (w *watcher) arm() {
	w.self = w.watch(w.self, w.dir)
	above, child := filepath.Dir(w.dir), filepath.Base(w.dir)
	for {
		if _, err := os.Stat(above); err == nil || above == filepath.Dir(above) {
			break
		}
		above, child = filepath.Dir(above), filepath.Base(above)
	}
	w.child = child
	w.parent = w.watch(w.parent, above)
}

func (w *watcher) watch(old int, path string) int {
	raw, err := w.events.SyscallConn()
	if err != nil {
		return -1
	}
	wd := -1
	_ = raw.Control(func(fd uintptr) {
		if wd, err = unix.InotifyAddWatch(int(fd), path, changes|vanishes|unix.IN_ONLYDIR); err != nil {
			wd = -1
		}
		if old >= 0 && old != wd {
			_, _ = unix.InotifyRmWatch(int(fd), uint32(old)) // EINVAL: it ended with its directory
		}
	})
	return wd
}

// describe appends what identifies the file at path and its content.
func describe(b *strings.Builder, path string) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		fmt.Fprintf(b, "%q %v\n", path, err)
		return
	}
	fmt.Fprintf(b, "%q %d:%d %d %d.%d %d.%d\n", path, st.Dev, st.Ino, st.Size,
		st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
}
