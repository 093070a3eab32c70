package ociruntime

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// meeting is our end of a socket at which a child that is being started waits until something is done for it.
type meeting struct{ sync *os.File }

// meet opens a meeting; theirs is the child's end. The start closes both.
func (p *passing) meet() (m meeting, theirs *os.File, err error) {
	ours, theirs, err := syncPair()
	if err != nil {
		return m, nil, err
	}
	p.owned = append(p.owned, ours, theirs)
	if err := unix.SetsockoptInt(int(ours.Fd()), unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil { // who writes is told with what is written
		return m, nil, fmt.Errorf("ask for credentials: %w", err)
	}
	return meeting{ours}, theirs, nil
}

// ready waits for the child and returns its pid; 0: it is dead, or we hung up.
func (m meeting) ready() (int, error) {
	var data [1]byte
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, got, _, _, err := unix.Recvmsg(int(m.sync.Fd()), data[:], oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("wait for the child: %w", err)
		case n == 0:
			return 0, nil
		}
		messages, err := unix.ParseSocketControlMessage(oob[:got])
		if err == nil && len(messages) != 1 {
			err = fmt.Errorf("%d control messages", len(messages))
		}
		if err != nil {
			return 0, fmt.Errorf("learn who waits: %w", err)
		}
		who, err := unix.ParseUnixCredentials(&messages[0])
		if err != nil {
			return 0, fmt.Errorf("learn who waits: %w", err)
		}
		return int(who.Pid), nil
	}
}

func (m meeting) goOn() error {
	if _, err := unix.Write(int(m.sync.Fd()), []byte{1}); err != nil && !errors.Is(err, unix.EPIPE) { // a child that is dead says so itself
		return fmt.Errorf("let the child go on: %w", err)
	}
	return nil
}

// hangUp ends the child if it waits, and wakes ready.
func (m meeting) hangUp() { _ = unix.Shutdown(int(m.sync.Fd()), unix.SHUT_RDWR) }
