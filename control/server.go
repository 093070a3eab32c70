package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/stage"
)

const (
	requestBound = 10 * time.Second       // for a client to send its request
	replyBound   = 30 * time.Second       // for a client to take a line
	period       = 200 * time.Millisecond // between two lines of progress
	acceptPause  = 100 * time.Millisecond // after a connection that could not be taken
)

// Config says what calls work on.
type Config struct {
	Images *imageservice.Service
	// Containers gives the id of each container's image, and Written what it has written; nil means there are none.
	Containers func() []string
	Written    func(container string) (bytes, inodes uint64, known bool)
	SpoolDir   string // for archives that cannot be read at any place
	Log        *slog.Logger
}

// Server answers calls.
type Server struct {
	config   Config
	listener *net.UnixListener
	base     context.Context // of all calls
	cancel   context.CancelFunc
	calls    sync.WaitGroup
}

// Serve answers on l until Close, which closes l.
func Serve(l *net.UnixListener, c Config) *Server {
	base, cancel := context.WithCancel(context.Background())
	s := &Server{config: c, listener: l, base: base, cancel: cancel}
	s.calls.Go(s.accept)
	return s
}

// Close ends all calls.
func (s *Server) Close() error {
	s.cancel()
	err := s.listener.Close()
	s.calls.Wait()
	return err
}

func (s *Server) accept() {
	failed := 0 // since the last connection that was taken
	for {
		conn, err := s.listener.AcceptUnix()
		switch {
		case err == nil:
			if failed > 0 {
				s.config.Log.Info("control socket takes connections again", "failed", failed)
			}
			failed = 0
			s.calls.Go(func() { s.serve(conn) })
		case s.base.Err() != nil:
			return
		default: // for want of descriptors or memory, which others give back
			if failed == 0 {
				s.config.Log.Error("control socket takes no connection", "error", err)
			}
			failed++
			select {
			case <-time.After(acceptPause):
			case <-s.base.Done():
			}
		}
	}
}

// serve answers one call.
func (s *Server) serve(conn *net.UnixConn) {
	defer func() { _ = conn.Close() }() // the client has its answer, or is gone
	ctx, cancel := context.WithCancel(s.base)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // ends reading
	r, file, err := receive(conn)
	if file != nil {
		defer func() { _ = file.Close() }()                         // also closed by who took it
		defer context.AfterFunc(ctx, func() { _ = file.Close() })() // ends reading and writing of a pipe
	}
	out := &replies{conn: conn}
	if err != nil {
		out.fail(err)
		return
	}
	gone := make(chan struct{})
	go func() { // whatever comes, the client is no longer there to say more
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	var result any
	err = stage.Protect(func() (err error) {
		result, err = s.call(ctx, r, file, out)
		return err
	})
	if err == nil {
		out.finish(result)
	} else {
		s.config.Log.Info("command failed", "call", r.Call, "error", err)
		out.fail(err)
	}
	_ = conn.CloseRead()
	<-gone
}

// receive reads the request and the descriptor that came with it.
func receive(conn *net.UnixConn) (r request, file *os.File, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(requestBound)); err != nil {
		return r, nil, err
	}
	in := &withFile{conn: conn}
	line, err := bufio.NewReader(io.LimitReader(in, maxRequest)).ReadBytes('\n')
	if err != nil {
		return r, in.file, fmt.Errorf("read request: %w", err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, in.file, fmt.Errorf("read request: %w", err)
	}
	return r, in.file, conn.SetReadDeadline(time.Time{})
}

// withFile reads a connection and keeps the first descriptor that comes.
type withFile struct {
	conn *net.UnixConn
	file *os.File
}

func (w *withFile) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(8*4))
	n, oobn, _, _, err := w.conn.ReadMsgUnix(p, oob)
	if n == 0 && err == nil {
		err = io.EOF
	}
	messages, parseErr := unix.ParseSocketControlMessage(oob[:oobn])
	if parseErr != nil {
		return n, errors.Join(err, parseErr)
	}
	for i := range messages {
		fds, rightsErr := unix.ParseUnixRights(&messages[i])
		if rightsErr != nil {
			continue
		}
		for _, fd := range fds {
			if w.file != nil {
				_ = unix.Close(fd) // more than one is not asked for
				continue
			}
			w.file, err = opened(fd)
		}
	}
	return n, err
}

// opened makes a file of a descriptor; reading and writing of a pipe ends when it is closed.
func opened(fd int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
	case unix.S_IFIFO:
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, errors.Join(err, unix.Close(fd))
		}
	default:
		return nil, errors.Join(errors.New("what came with the request is no file, directory or pipe"), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "file of the command"), nil
}

// replies are the lines of an answer.
type replies struct {
	conn *net.UnixConn
	mu   sync.Mutex // one line at a time
}

func (r *replies) send(line reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	data, err := json.Marshal(line)
	if err != nil {
		data = []byte(`{"error":"the answer cannot be encoded"}`)
	}
	_ = r.conn.SetWriteDeadline(time.Now().Add(replyBound)) // a client that is gone is found out by reading
	_, _ = r.conn.Write(append(data, '\n'))
}

func (r *replies) finish(result any) {
	data, err := json.Marshal(result)
	if err != nil {
		r.fail(err)
		return
	}
	r.send(reply{Result: data})
}

func (r *replies) fail(err error) {
	line := reply{Error: err.Error()}
	for kind, is := range kinds {
		if errors.Is(err, is) {
			line.Kind = kind
		}
	}
	r.send(line)
}

// show sends how far p is until the returned function is called, and then once more.
func (r *replies) show(p *imageservice.Progress) (stop func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	send := func() {
		if now := p.Now(); now.Total > 0 || now.Stage != "" {
			r.send(reply{Progress: &Progress{Done: now.Done, Total: now.Total, Image: now.Image, Ended: now.Ended, Layers: now.Layers, Stage: now.Stage}})
		}
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				send()
			case <-ended:
				send()
				return
			}
		}
	}()
	return func() { close(ended); <-done }
}
