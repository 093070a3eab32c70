package stream

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Owner is the user, on the host, of the processes that get a pipe: they may open /dev/stdout again.
type Owner struct{ UID, GID uint32 }

// OutputPipe makes a pipe that a process writes: r has deadlines, w blocks.
func OutputPipe(o Owner) (r, w *os.File, err error) { return newPipe(o, 0) }

// inputPipe makes a pipe that a process reads: r blocks, w has deadlines.
func inputPipe(o Owner) (r, w *os.File, err error) { return newPipe(o, 1) }

func newPipe(o Owner, ours int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	err = unix.SetNonblock(fds[ours], true)
	r, w = os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	if err == nil && o != (Owner{}) {
		err = unix.Fchown(fds[1], int(o.UID), int(o.GID))
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make a pipe for user %d: %w", o.UID, err), r.Close(), w.Close())
	}
	return r, w, nil
}

// rest passes on what a file holds whose deadline has passed: then a read returns nothing, also if there is something, which a
// slow client may not have taken by then.
func rest(from *os.File, buffer []byte, pass func([]byte) bool) {
	left := 0
	err := control(from, func(fd int) (err error) {
		left, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	for err == nil && left > 0 {
		n := 0
		err = control(from, func(fd int) (err error) {
			n, err = unix.Read(fd, buffer[:min(left, len(buffer))])
			return err
		})
		if n <= 0 || !pass(buffer[:n]) {
			return
		}
		left -= n
	}
}
