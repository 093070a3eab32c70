package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pause"
)

// AttachConfig says which streams of a container a client wants.
type AttachConfig struct {
	Stdin, Stdout, Stderr bool
}

// Attachment is a client's share in the streams of a running container. Stdout and Stderr end with the container, or when the
// client is too slow; both can be waited for. A container with a terminal has all output on Stdout, and takes input at its master.
type Attachment struct {
	Stdin          *os.File // nil: the container has none, or it was ended
	Stdout, Stderr *os.File // nil: not asked for

	c      *Container
	client uint64
}

// ErrTooSlow says that an attached client was cut, because it was behind by more than can be kept for it.
var ErrTooSlow = errors.New("attach client too slow")

// pipeSizes are tried for a client's backlog. More than the second needs CAP_SYS_RESOURCE, with the usual limit of the kernel.
var pipeSizes = []int{4 << 20, 1 << 20}

// Attach gives a client copies of what the container writes from now on, and a way to write to it.
func (c *Container) Attach(ctx context.Context, want AttachConfig) (_ *Attachment, err error) {
	c.mu.Lock()
	task := c.task
	c.mu.Unlock()
	if _, exited := c.Exit(); task == 0 || exited {
		return nil, ErrNotRunning
	}
	a := &Attachment{c: c, client: c.pod.runtime.newTask()}
	request := pause.Attach{Task: task, Client: a.client, Stdin: want.Stdin}
	defer func() {
		closeFiles([]*os.File{request.Stdout, request.Stderr})
		if err != nil {
			closeFiles([]*os.File{a.Stdout, a.Stderr})
		}
	}()
	if want.Stdout {
		if a.Stdout, request.Stdout, err = outputPipe(); err != nil {
			return nil, err
		}
	}
	if want.Stderr && !c.record.Process.Terminal {
		if a.Stderr, request.Stderr, err = outputPipe(); err != nil {
			return nil, err
		}
	}
	stdin, err := c.pod.conn.Attach(ctx, request)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, ErrNotRunning
	case errors.Is(err, unix.ENOSPC):
		return nil, fmt.Errorf("too many clients are attached to the pod: %w", err)
	case err != nil:
		return nil, err
	}
	if a.Stdin, err = c.takeStdin(stdin); err != nil {
		_, _ = c.pod.conn.Detach(ctx, a.client)
		return nil, err
	}
	return a, nil
}

func outputPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	for _, size := range pipeSizes {
		if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, size); err == nil {
			break // else it has its usual size
		}
	}
	return os.NewFile(uintptr(fds[0]), "attach"), os.NewFile(uintptr(fds[1]), "attach"), nil
}

// takeStdin makes what pause has given out a file that writes to it can be interrupted on, and that EndStdin closes.
func (c *Container) takeStdin(given *os.File) (*os.File, error) {
	if given == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(given.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = given.Close()
	if err != nil {
		return nil, fmt.Errorf("take over stdin: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("take over stdin: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stdins == nil {
		c.stdins = map[*os.File]struct{}{}
	}
	c.stdins[f] = struct{}{}
	return f, nil
}

// detachBound is for pause to answer; it never waits for anything.
const detachBound = 10 * time.Second

// Detach ends the attachment and closes its files. Its error is ErrTooSlow if the client was cut.
func (a *Attachment) Detach() error {
	ctx, cancel := context.WithTimeout(context.Background(), detachBound)
	defer cancel()
	lost, err := a.c.pod.conn.Detach(ctx, a.client)
	if lost > 0 {
		lost += a.capacity()
	}
	closeFiles([]*os.File{a.Stdout, a.Stderr})
	if a.Stdin != nil {
		a.c.closeStdin(a.Stdin)
	}
	switch {
	case errors.Is(err, pause.ErrGone): // with its containers
		return nil
	case errors.Is(err, unix.ENOENT):
		return errors.New("the pod's pause was replaced: attach again")
	case err != nil:
		return fmt.Errorf("detach: %w", err)
	case lost > 0:
		return fmt.Errorf("%w, at least %d bytes behind", ErrTooSlow, lost)
	}
	return nil
}

// capacity is how much a pipe of the client held when it was full.
func (a *Attachment) capacity() uint64 {
	for _, f := range []*os.File{a.Stdout, a.Stderr} {
		if f == nil {
			continue
		}
		if n, err := unix.FcntlInt(f.Fd(), unix.F_GETPIPE_SZ, 0); err == nil {
			return uint64(n)
		}
	}
	return 0
}

func (c *Container) closeStdin(f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.stdins, f)
	_ = f.Close() // EndStdin may have closed it
}

// EndStdin closes the container's stdin for good, or does nothing if that is a terminal.
func (c *Container) EndStdin(ctx context.Context) error {
	c.mu.Lock()
	task := c.task
	if !c.record.Process.Terminal {
		for f := range c.stdins {
			_ = f.Close() // whoever writes it gets an error
		}
		c.stdins = nil
	}
	c.mu.Unlock()
	err := c.pod.conn.EndStdin(ctx, task)
	if errors.Is(err, pause.ErrGone) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Resize sets the size of the container's terminal.
func (c *Container) Resize(ctx context.Context, rows, cols uint16) error {
	c.mu.Lock()
	task := c.task
	c.mu.Unlock()
	return c.pod.conn.Resize(ctx, task, rows, cols)
}
