package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/sandbox/stream"
)

const (
	// maxExecOutput is how much of each stream of an ExecSync is kept; the rest is read and dropped.
	maxExecOutput = 16 << 20
	// drainBound is how long output is still read after the command has ended, if a child keeps it open.
	drainBound = 2 * time.Second
	// execKillBound is how long a command may take to die.
	execKillBound = 10 * time.Second
)

// ExecSync runs cmd in a running container and returns its output and exit code; timeout 0 is none. It is killed, with
// all its children, when the timeout passes (ErrExecTimeout) or ctx ends. An exit code other than 0 is no error.
func (s *Service) ExecSync(ctx context.Context, id ContainerID, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if len(cmd) == 0 {
		return nil, nil, 0, fmt.Errorf("%w: cmd is empty", ErrInvalid)
	}
	c, rt, err := s.runningContainer(id)
	if err != nil {
		return nil, nil, 0, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, ErrExecTimeout)
		defer cancel()
	}
	var out, errs capture
	if err := errors.Join(out.open(c.owner()), errs.open(c.owner())); err != nil {
		return nil, nil, 0, errors.Join(err, out.close(), errs.close())
	}
	exec, err := rt.Exec(ctx, ociruntime.ExecConfig{Args: cmd, Stdout: out.w, Stderr: errs.w})
	out.start()
	errs.start()
	if err != nil {
		out.finish(time.Now())
		errs.finish(time.Now())
		return nil, nil, 0, execError(ctx, c, timeout, err)
	}
	defer exec.Close()
	err = await(ctx, exec)
	until := time.Now()
	if err == nil {
		until = until.Add(s.drain)
	}
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	stdout, stderr = out.finish(until), errs.finish(until)
	if err != nil {
		return stdout, stderr, 0, execError(ctx, c, timeout, err)
	}
	return stdout, stderr, exec.Code(), nil
}

// await waits for the end of a command, and kills it when ctx ends first.
func await(ctx context.Context, exec RuntimeExec) error {
	select {
	case <-exec.Done():
		return nil
	case <-ctx.Done():
	}
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), execKillBound)
	defer cancel()
	if err := exec.Kill(kill); err != nil {
		return fmt.Errorf("%w; killing the command: %w", context.Cause(ctx), err)
	}
	return context.Cause(ctx)
}

// execError tells a timeout from other failures.
func execError(ctx context.Context, c *container, timeout time.Duration, err error) error {
	if errors.Is(context.Cause(ctx), ErrExecTimeout) {
		return fmt.Errorf("exec in container %s: %w after %s", c.id, ErrExecTimeout, timeout)
	}
	return fmt.Errorf("exec in container %s: %w", c.id, ofProcess(err))
}

// capture reads one stream of a command.
type capture struct {
	r, w *os.File
	data []byte
	done sync.WaitGroup
}

// open makes the pipe.
func (c *capture) open(o stream.Owner) (err error) {
	c.r, c.w, err = stream.OutputPipe(o)
	return err
}

// owner is the container's user on the host.
func (c *container) owner() stream.Owner {
	user, m := c.status.Load().User, c.p.spec.userNS
	if m == nil {
		return stream.Owner{UID: user.UID, GID: user.GID}
	}
	return stream.Owner{UID: hostID(m.UIDs, user.UID), GID: hostID(m.GIDs, user.GID)}
}

// hostID maps an id of a user namespace to the host; one that is not mapped becomes the overflow id.
func hostID(maps []specs.LinuxIDMapping, id uint32) uint32 {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID)
		}
	}
	return 65534
}

// close is for a capture that was not started, or not even opened.
func (c *capture) close() error {
	if c.r == nil {
		return nil
	}
	return errors.Join(c.r.Close(), c.w.Close())
}

// start begins to read; the command has its own copy of the writing end.
func (c *capture) start() {
	_ = c.w.Close() // nothing was written through it
	c.done.Go(c.read)
}

// finish returns what was written until all writers have closed, or until.
func (c *capture) finish(until time.Time) []byte {
	_ = c.r.SetReadDeadline(until) // pipes have deadlines
	c.done.Wait()
	c.takeRest()
	_ = c.r.Close()
	return c.data
}

// takeRest reads what is in the pipe: at its deadline a read returns nothing, also if there is something.
func (c *capture) takeRest() {
	raw, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // fails for a closed file only
		have, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		rest := make([]byte, min(have, maxExecOutput-len(c.data)))
		if n, err := unix.Read(int(fd), rest); err == nil {
			c.data = append(c.data, rest[:n]...)
		}
	})
}

func (c *capture) read() {
	data := make([]byte, 0, 512)
	for len(data) < maxExecOutput {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := c.r.Read(data[len(data):min(cap(data), maxExecOutput)])
		data = data[:len(data)+n]
		if err != nil {
			c.data = data
			return
		}
	}
	c.data = data
	_, _ = io.Copy(io.Discard, c.r) // ends with the writers or the deadline
}
