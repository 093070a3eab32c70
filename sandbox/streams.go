package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/sandbox/stream"
)

// firstSizeBound is how long a command with a terminal waits for the size that its client sends first.
const firstSizeBound = 250 * time.Millisecond

// RunningContainer finds a container that must be running, and returns its full id.
func (s *Service) RunningContainer(id ContainerID) (ContainerID, error) {
	c, _, err := s.runningContainer(id)
	if err != nil {
		return "", err
	}
	return c.id, nil
}

// Exec runs cmd in a running container with the streams of a client, and returns its exit code. It is killed, with all its
// children, when ctx ends or the client takes no more output.
func (s *Service) Exec(ctx context.Context, id ContainerID, cmd []string, client stream.Client) (code int32, err error) {
	c, rt, err := s.runningContainer(id)
	if err != nil {
		return 0, err
	}
	link, exec, err := c.execLinked(ctx, rt, cmd, client)
	if err != nil {
		return 0, execError(ctx, c, 0, err)
	}
	defer exec.Close()
	ctx = link.Start(ctx)
	err = await(ctx, exec)
	until := time.Now()
	if err == nil {
		until = until.Add(drainBound)
	}
	link.Finish(until)
	if err != nil {
		return 0, execError(ctx, c, 0, err)
	}
	return exec.Code(), nil
}

// execLinked starts a command whose streams are linked to a client.
func (c *container) execLinked(ctx context.Context, rt RuntimeContainer, cmd []string, client stream.Client) (*stream.Link, RuntimeExec, error) {
	if len(cmd) == 0 {
		return nil, nil, fmt.Errorf("%w: cmd is empty", ErrInvalid)
	}
	config := ociruntime.ExecConfig{Args: cmd}
	var link *stream.Link
	if client.TTY {
		master, slave, err := rt.Terminal()
		if err != nil {
			return nil, nil, err
		}
		defer slave.Close()
		link, config.Terminal = stream.Terminal(client, master), slave
		link.FirstSize(ctx, firstSizeBound)
	} else {
		made, files, err := stream.Pipes(client, c.owner())
		if err != nil {
			return nil, nil, err
		}
		defer files.Close()
		link, config.Stdin, config.Stdout, config.Stderr = made, files.Stdin, files.Stdout, files.Stderr
	}
	exec, err := rt.Exec(ctx, config)
	if err != nil {
		link.Close()
		return nil, nil, err
	}
	return link, exec, nil
}

// ReadyPod finds a pod that must be ready, and returns its full id.
func (s *Service) ReadyPod(id ID) (ID, error) {
	p, _, err := s.readyPod(id)
	if err != nil {
		return "", err
	}
	return p.id, nil
}

func (s *Service) readyPod(id ID) (*pod, RuntimePod, error) {
	p, err := s.pod(id)
	if err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != podReady || p.rt == nil {
		return nil, nil, fmt.Errorf("%w: pod %s is not ready", ErrState, p.id)
	}
	return p, p.rt, nil
}

// DialPod connects to a port on a pod's localhost, which for a pod on the host's network is the host's.
func (s *Service) DialPod(ctx context.Context, id ID, port uint16) (*net.TCPConn, error) {
	p, rt, err := s.readyPod(id)
	if err != nil {
		return nil, err
	}
	var ns *os.File
	if !p.spec.hostNetwork {
		if ns, err = rt.NetNS(); err != nil {
			return nil, fmt.Errorf("open the network namespace of pod %s: %w", p.id, err)
		}
		defer ns.Close()
	}
	conn, err := s.netns.dial(ctx, ns, port)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.id, err)
	}
	return conn, nil
}

// Attach joins a client to the streams of a running container until that ends or the client is gone. A client that does not
// take the output is cut (ociruntime.ErrTooSlow). The end of what it sends, and its going, ends a stdin that was asked for once.
func (s *Service) Attach(ctx context.Context, id ContainerID, client stream.Client) error {
	c, rt, err := s.runningContainer(id)
	if err != nil {
		return err
	}
	config := c.status.Load().Config()
	a, err := rt.Attach(ctx, ociruntime.AttachConfig{
		Stdin: client.Stdin != nil && config.GetStdin(), Stdout: client.Stdout != nil, Stderr: client.Stderr != nil,
	})
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, ofProcess(err))
	}
	shared := stream.Shared{Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr, Exited: rt.Exited()}
	if config.GetTty() {
		shared.Resize = func(size stream.Size) error { return rt.Resize(ctx, size.Rows, size.Cols) }
	}
	if a.Stdin != nil && config.GetStdinOnce() {
		var once sync.Once
		shared.EndStdin = func(last byte) { once.Do(func() { c.endStdin(rt, a.Stdin, config.GetTty(), last) }) }
	}
	err = stream.Attach(ctx, client, shared)
	if shared.EndStdin != nil {
		shared.EndStdin(0)
	}
	if err = errors.Join(a.Detach(), err); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

// endStdinBound is for pause to close a descriptor.
const endStdinBound = 10 * time.Second

// endStdin ends a container's stdin for all clients.
func (c *container) endStdin(rt RuntimeContainer, stdin *os.File, tty bool, last byte) {
	if tty {
		stream.EndTerminalInput(stdin, last)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endStdinBound)
	defer cancel()
	if err := rt.EndStdin(ctx); err != nil {
		c.p.s.log.Warn("cannot end a container's stdin", "container", c.id, "error", err)
	}
}
