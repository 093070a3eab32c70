package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// lastOutputBound is how long the output of a container that has exited may take to end.
const lastOutputBound = 5 * time.Second

// Shared is a client's share in the streams of a container.
type Shared struct {
	Stdin          *os.File         // nil: what the client sends is dropped
	Stdout, Stderr *os.File         // nil: not asked for
	Exited         <-chan struct{}  // closed when the container has ended
	Resize         func(Size) error // nil: it has no terminal
	EndStdin       func(last byte)  // no more will come, after this byte; nil: stdin outlives its clients
}

// Attach copies between a client and a container until the container's output has ended or the client is gone, of which only the
// latter is an error. The files stay the caller's; when they are closed, all that Attach began ends with the client's streams.
func Attach(ctx context.Context, client Client, c Shared) error {
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	var copying sync.WaitGroup
	outputs := 0
	for _, o := range []struct {
		from *os.File
		to   io.Writer
	}{{c.Stdout, client.Stdout}, {c.Stderr, client.Stderr}} {
		if o.from == nil || o.to == nil {
			continue
		}
		outputs++
		s := newSpool()
		go s.fill(o.from)
		context.AfterFunc(ctx, s.end)
		copying.Go(func() {
			if err := s.drain(o.to); err != nil {
				lost(fmt.Errorf("send output to the client: %w", err))
			}
		})
	}
	if client.Stdin != nil {
		go share(ctx, client.Stdin, c)
	}
	if client.Resize != nil {
		go resizeShared(ctx, client.Resize, c.Resize)
	}
	var ended chan struct{} // for ever nil if only the container's end ends this
	if outputs > 0 {
		ended = make(chan struct{})
		go func() { copying.Wait(); close(ended) }()
	}
	return c.wait(ctx, ended)
}

// wait waits for the end of all output, which may be late but not by much when the container has ended.
func (c Shared) wait(ctx context.Context, ended <-chan struct{}) error {
	for exited := c.Exited; ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ended:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return nil
		case <-exited:
			if ended == nil {
				return nil
			}
			exited = nil
			for _, f := range []*os.File{c.Stdout, c.Stderr} {
				if f != nil {
					_ = f.SetReadDeadline(time.Now().Add(lastOutputBound)) // fails for a closed one only
				}
			}
		}
	}
}

// share copies what the client sends. What the container does not take any more is read all the same.
func share(ctx context.Context, from io.Reader, c Shared) {
	buffer := make([]byte, bufferSize)
	var last byte
	for taken := c.Stdin != nil; ; {
		n, err := from.Read(buffer)
		if n > 0 && taken {
			_, werr := c.Stdin.Write(buffer[:n])
			taken, last = werr == nil, buffer[n-1]
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) && ctx.Err() == nil && c.EndStdin != nil {
			c.EndStdin(last)
		}
		return
	}
}

func resizeShared(ctx context.Context, sizes <-chan Size, resize func(Size) error) {
	for {
		select {
		case size, more := <-sizes:
			if !more {
				return
			}
			if resize != nil && size.Set() {
				_ = resize(size) // fails when the container has ended
			}
		case <-ctx.Done():
			return
		}
	}
}
