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

// bufferSize is what one read takes: as much as a pipe holds.
const bufferSize = 64 << 10

// Link joins a client to one command.
type Link struct {
	client  Client
	lost    context.CancelCauseFunc
	outputs []output
	stdin   *os.File // writing end of a pipe, or nil
	master  *os.File // of a terminal instead of all pipes, or nil
	copying sync.WaitGroup
	ended   chan struct{}
}

// output is one stream from the command to the client.
type output struct {
	from *os.File
	to   io.Writer
}

// Files are the ends of a Link that the command gets. Those of streams that the client did not ask for are nil.
type Files struct{ Stdin, Stdout, Stderr *os.File }

// Close closes them.
func (f Files) Close() { closeAll(f.Stdin, f.Stdout, f.Stderr) }

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Pipes makes the pipes of a command. The caller closes the files when the command has been started or was not.
func Pipes(client Client, o Owner) (l *Link, files Files, err error) {
	l = &Link{client: client, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			l.closeFiles()
			files.Close()
		}
	}()
	if client.Stdin != nil {
		if files.Stdin, l.stdin, err = inputPipe(o); err != nil {
			return nil, files, err
		}
	}
	for _, s := range []struct {
		to    io.Writer
		child **os.File
	}{{client.Stdout, &files.Stdout}, {client.Stderr, &files.Stderr}} {
		if s.to == nil {
			continue
		}
		r, w, err := OutputPipe(o)
		if err != nil {
			return nil, files, err
		}
		*s.child = w
		l.outputs = append(l.outputs, output{r, s.to})
	}
	return l, files, nil
}

// Terminal links a client to a terminal, whose master it takes over.
func Terminal(client Client, master *os.File) *Link {
	to := client.Stdout
	if to == nil {
		to = io.Discard // or the command would wait for a reader some day
	}
	return &Link{client: client, master: master, outputs: []output{{master, to}}, ended: make(chan struct{})}
}

// FirstSize waits, for at most bound, for the size that a client sends first, and gives it to the terminal, so that the command
// finds it there when it begins.
func (l *Link) FirstSize(ctx context.Context, bound time.Duration) {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case size := <-l.client.Resize:
		l.resize(size)
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Start begins to copy. The context that it returns ends with ctx, and when the client takes no more output.
func (l *Link) Start(ctx context.Context) context.Context {
	ctx, l.lost = context.WithCancelCause(ctx)
	for _, o := range l.outputs {
		l.copying.Go(func() { l.deliver(o) })
	}
	if l.client.Stdin != nil { // it ends with the client's connection, perhaps after Finish
		go l.feed(ctx, l.client.Stdin)
	}
	if l.client.Resize != nil {
		go l.follow(l.client.Resize)
	}
	return ctx
}

// Finish delivers what the command, which has ended, has written, and what its children write until until. Then it closes
// everything of the Link.
func (l *Link) Finish(until time.Time) {
	for _, o := range l.outputs {
		_ = o.from.SetReadDeadline(until) // pipes and terminals have deadlines
	}
	l.copying.Wait()
	l.Close()
}

// Close closes everything of the Link; it is for one that was not started.
func (l *Link) Close() {
	if l.lost != nil {
		l.lost(nil)
	}
	close(l.ended)
	l.closeFiles()
}

func (l *Link) closeFiles() {
	for _, o := range l.outputs {
		_ = o.from.Close()
	}
	closeAll(l.stdin)
}

// deliver copies output until it ends, its deadline has passed or the client is gone.
func (l *Link) deliver(o output) {
	buffer := make([]byte, bufferSize)
	for {
		n, err := o.from.Read(buffer)
		if n > 0 && !l.write(o.to, buffer[:n]) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			rest(o.from, buffer, func(data []byte) bool { return l.write(o.to, data) })
		}
		if err != nil { // EIO of a terminal: nobody has its other end open
			return
		}
	}
}

func (l *Link) write(to io.Writer, data []byte) bool {
	if _, err := to.Write(data); err != nil {
		l.lost(fmt.Errorf("send output to the client: %w", err))
		return false
	}
	return true
}

// feed copies what the client sends. A command that takes no more of it does not keep the client from sending.
func (l *Link) feed(ctx context.Context, from io.Reader) {
	buffer := make([]byte, bufferSize)
	to := l.stdin
	if to == nil {
		to = l.master
	}
	var last byte
	for taken := true; ; {
		n, err := from.Read(buffer)
		if n > 0 && taken {
			_, werr := to.Write(buffer[:n])
			taken, last = werr == nil, buffer[n-1]
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) && ctx.Err() == nil {
			l.endInput(last)
		}
		return
	}
}

// endInput tells the command that there will be no more; last is the last byte of what there was.
func (l *Link) endInput(last byte) {
	if l.stdin != nil {
		_ = l.stdin.Close()
		return
	}
	EndTerminalInput(l.master, last)
}

func (l *Link) follow(sizes <-chan Size) {
	for {
		select {
		case size, more := <-sizes:
			if !more {
				return
			}
			l.resize(size)
		case <-l.ended:
			return
		}
	}
}

func (l *Link) resize(size Size) {
	if l.master != nil && size.Set() {
		_ = SetSize(l.master, size) // fails for a terminal that is closed only
	}
}
