package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// Peer is the client's end of a forwarded connection.
type Peer struct {
	io.Reader // ends with io.EOF when the client sends no more
	io.Writer // fails once the client takes no more

	// CloseWrite tells the client that nothing more will come, while it may still send. nil: there is no way to, and the end
	// of what the pod sends ends the connection.
	CloseWrite func() error
}

// Forward copies between a connection into a pod, which it takes over, and a client, until both directions have ended. An
// error says that one of them was cut; what the other direction still had to say has been said.
func Forward(ctx context.Context, pod *net.TCPConn, client Peer) error {
	defer pod.Close()
	stop := context.AfterFunc(ctx, func() { _ = pod.Close() })
	defer stop()
	to := &sink{conn: pod}
	sent := make(chan error, 1) // its goroutine ends with the client's stream, perhaps after Forward
	go func() { sent <- send(ctx, to, client) }()
	buffer := make([]byte, bufferSize)
	_, err := io.CopyBuffer(onlyWriter{client}, onlyReader{pod}, buffer)
	if err == nil {
		err = to.cut()
	}
	if err == nil && client.CloseWrite != nil {
		if err = client.CloseWrite(); err == nil {
			select {
			case err = <-sent:
			case <-ctx.Done():
			}
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// send copies from the client to the pod. What a pod no longer takes is read all the same: the client's other streams come
// by the same connection.
func send(ctx context.Context, pod *sink, client Peer) error {
	buffer := make([]byte, bufferSize)
	for {
		n, err := client.Read(buffer)
		if n > 0 {
			if _, werr := pod.Write(buffer[:n]); werr != nil {
				go func() { _, _ = io.Copy(io.Discard, client) }() // until the client's stream ends
				return werr
			}
		}
		if errors.Is(err, io.EOF) && ctx.Err() == nil {
			return pod.conn.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

// sink is what is written to a pod. The kernel tells a reset once: a write that meets it leaves the reader nothing but an end.
type sink struct {
	conn *net.TCPConn
	mu   sync.Mutex
	err  error // of a Write
}

func (s *sink) Write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, s.err = s.conn.Write(p)
	return n, s.err
}

// cut says, after a read that met the end, whether that was a reset.
func (s *sink) cut() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) { info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return err
	}
	if infoErr != nil || info.State != unix.BPF_TCP_CLOSE {
		return infoErr
	}
	s.mu.Lock() // no write waits for a connection that is gone
	defer s.mu.Unlock()
	if errors.Is(s.err, unix.ECONNRESET) {
		return s.err
	}
	return nil
}

// onlyReader and onlyWriter hide shortcuts of io.Copy, which would not use our buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
