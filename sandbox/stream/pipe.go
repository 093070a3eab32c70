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
