package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gate is a client that takes nothing before it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	got  bytes.Buffer
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.got.Write(p)
}

// What a command wrote before it ended reaches a client that takes it long after.
func TestOutputForASlowClient(t *testing.T) {
	client := newGate()
	l, files, err := Pipes(Client{Stdout: client}, Owner{})
	must(t, err)
	l.Start(t.Context())
	text := strings.Repeat("x", 60_000)
	for range 2 { // one is read, one stays in the pipe
		_, err = io.WriteString(files.Stdout, text)
		must(t, err)
	}
	keeps, err := unix.Dup(int(files.Stdout.Fd())) // as a child that goes on
	must(t, err)
	defer unix.Close(keeps)
	files.Close()
	done := make(chan struct{})
	go func() { defer close(done); l.Finish(time.Now().Add(-time.Second)) }()
	close(client.open)
	<-done
	if client.got.String() != text+text {
		t.Errorf("%d bytes have come", client.got.Len())
	}
}

// The end of a client's stdin is that of the command's; one that ends because the client is gone is not.
func TestEndOfStdin(t *testing.T) {
	for _, gone := range []bool{false, true} {
		client, sends := io.Pipe()
		l, files, err := Pipes(Client{Stdin: client}, Owner{})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l.Start(ctx)
		_, err = io.WriteString(sends, "hello")
		must(t, err)
		got := make([]byte, 5)
		_, err = io.ReadFull(files.Stdin, got)
		must(t, err)
		if gone {
			cancel()
		}
		must(t, sends.Close())
		if !gone {
			if n, err := files.Stdin.Read(got); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("read %d bytes, %v, at the end", n, err)
			}
		} else {
			must(t, unix.SetNonblock(int(files.Stdin.Fd()), true))
			time.Sleep(10 * time.Millisecond) // for what must not happen
			if _, err := unix.Read(int(files.Stdin.Fd()), got); err != unix.EAGAIN {
				t.Errorf("stdin of a command whose client is gone: %v", err)
			}
		}
		l.Close()
		files.Close()
	}
}

// A client that takes nothing has a bounded backlog, and its pipe fills then.
func TestSpoolIsBounded(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	s, client := newSpool(), newGate()
	filled := make(chan struct{})
	go func() { defer close(filled); s.fill(r) }()
	drained := make(chan error)
	go func() { drained <- s.drain(client) }()
	fd := int(w.Fd()) // which makes it block
	must(t, unix.SetNonblock(fd, true))
	chunk, total := bytes.Repeat([]byte("0123456789abcdef"), 4096), 0
	for stalled := 0; stalled < 200; {
		n, err := unix.Write(fd, chunk)
		if err == unix.EAGAIN {
			stalled++
			time.Sleep(time.Millisecond)
			continue
		}
		must(t, err)
		stalled, total = 0, total+n
	}
	if total < spoolLimit || total > spoolLimit+1<<20 {
		t.Errorf("%d bytes are kept for the client", total)
	}
	must(t, w.Close())
	close(client.open)
	must(t, <-drained)
	<-filled
	if client.got.Len() != total {
		t.Errorf("%d bytes have come of %d", client.got.Len(), total)
	}
}

// Each direction of a forwarded connection ends by itself, and what is reset is an error.
func TestForward(t *testing.T) {
	for _, row := range []struct {
		name  string
		serve func(*net.TCPConn)
		want  string
		fails bool
	}{
		{"answers at the end", func(c *net.TCPConn) {
			all, _ := io.ReadAll(c)
			_, _ = c.Write(bytes.ToUpper(all))
			_ = c.Close()
		}, "HELLO", false},
		{"does not read", func(c *net.TCPConn) { _ = c.CloseWrite() }, "", false},
		{"reset", func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() }, "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer l.Close()
			conn, err := net.Dial("tcp", l.Addr().String())
			must(t, err)
			server, err := l.Accept()
			must(t, err)
			defer server.Close()
			var got bytes.Buffer
			closed := false
			go row.serve(server.(*net.TCPConn))
			err = Forward(t.Context(), conn.(*net.TCPConn), Peer{Reader: strings.NewReader("hello"), Writer: &got, CloseWrite: func() error { closed = true; return nil }})
			if (err != nil) != row.fails || got.String() != row.want || closed == row.fails {
				t.Errorf("got %q, closed %v, error %v", got.String(), closed, err)
			}
		})
	}
}
