package pause

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrTooOld is returned for what an older pause does not know. A newer binary in its place does, see Reexec.
var ErrTooOld = errors.New("the pod's pause is too old for this")

// Attach makes pause copy a container's output into pipes, from its next read on. A pipe ends with its stream. A client whose pipe
// is full is cut: all its pipes end, and Detach tells how much did not fit.
type Attach struct {
	Task           uint64
	Client         uint64   // chosen by the caller, unique in the pod, not 0
	Stdout, Stderr *os.File // writing ends, or nil; a container with a terminal has only the first stream
	Stdin          bool     // the answer shall have what the container's stdin is written by
}

const attachStdin = 1

// Attach returns what a.Stdin asks for, or nil if the container has no stdin or it was ended: the writing end of a pipe, or the
// master of the terminal. It belongs to the caller.
func (c *Conn) Attach(ctx context.Context, a Attach) (stdin *os.File, err error) {
	body := attachBody{Task: a.Task, Client: a.Client}
	var files []*os.File
	for bit, f := range []*os.File{a.Stdout, a.Stderr} {
		if f != nil {
			body.FDs |= 1 << bit
			files = append(files, f)
		}
	}
	if a.Stdin {
		body.Flags |= attachStdin
	}
	packets, err := c.request(ctx, msgAttach, body, files)
	if err != nil {
		return nil, known(err)
	}
	last := packets[len(packets)-1]
	if last.header.Type != msgAttached || len(last.files) > 1 {
		closeAll(packets)
		return nil, fmt.Errorf("pause answered an attach with message %d and %d descriptors", last.header.Type, len(last.files))
	}
	if len(last.files) == 1 {
		stdin = last.files[0]
	}
	return stdin, nil
}

// Detach ends the copies for a client. lost is not 0 if the client was cut: so many bytes did not fit into its pipe. ENOENT says
// that pause has forgotten it: another connection took over, or another binary.
func (c *Conn) Detach(ctx context.Context, client uint64) (lost uint64, err error) {
	packets, err := c.request(ctx, msgDetach, detachBody{client}, nil)
	if err != nil {
		return 0, known(err)
	}
	defer closeAll(packets)
	var b detachedBody
	if err := decodeBody(packets[len(packets)-1].body, &b); err != nil {
		return 0, err
	}
	return b.Lost, nil
}

// EndStdin closes what pause keeps open for a container's stdin.
func (c *Conn) EndStdin(ctx context.Context, task uint64) error {
	_, err := c.request(ctx, msgEndStdin, taskBody{task}, nil)
	return known(err)
}

// known tells an old pause from one that refuses.
func known(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrTooOld, err)
	}
	return err
}
