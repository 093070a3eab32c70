package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// server is the criserver of the demonstration: our own, and not one that happens to serve on the same socket.
type server struct {
	command *exec.Cmd
	notify  *net.UnixConn // where it says that it is ready, as to systemd
	ended   chan struct{} // closed when err is set
	err     error         // how it ended
}

// startServer starts command, out of reach of the terminal's Ctrl-C. path is for its notifications.
func startServer(path string, command []string) (*server, error) {
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	s := &server{command: exec.Command(command[0], command[1:]...), notify: notify, ended: make(chan struct{})}
	s.command.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	s.command.Stdout, s.command.Stderr = os.Stdout, os.Stderr
	s.command.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := s.command.Start(); err != nil {
		return nil, errors.Join(err, notify.Close())
	}
	go func() {
		s.err = s.command.Wait()
		close(s.ended)
	}()
	return s, nil
}

// ready waits until the server says that it is.
func (s *server) ready(ctx context.Context) error {
	said := make(chan error, 1)
	go func() {
		buffer := make([]byte, 256)
		n, err := s.notify.Read(buffer)
		if err == nil && string(buffer[:n]) != "READY=1" {
			err = fmt.Errorf("criserver says %q instead of being ready", buffer[:n])
		}
		said <- err
	}()
	select {
	case err := <-said:
		return err
	case <-s.ended:
		return errors.New("criserver ended before it was ready")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *server) alive() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// stop ends the server and waits for it.
func (s *server) stop() error {
	if err := s.command.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.ended
	return errors.Join(s.err, s.notify.Close())
}
