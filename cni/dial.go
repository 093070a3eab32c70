package cni

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dialBound is for one connection to localhost: what takes longer has a full backlog.
const dialBound = 30 * time.Second

// DialLocalhost connects to a TCP port on the localhost of a network namespace, by IPv4 or else by IPv6; nil is criserver's own.
// Only the making of a socket happens inside.
func DialLocalhost(ctx context.Context, ns *os.File, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialBound)
	defer cancel()
	c, err4 := dial(ctx, ns, unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
	if err4 == nil {
		return c, nil
	}
	c, err6 := dial(ctx, ns, unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}})
	if err6 == nil {
		return c, nil
	}
	p := strconv.Itoa(int(port))
	return nil, fmt.Errorf("connect to 127.0.0.1:%s: %w; to [::1]:%s: %w", p, err4, p, err6)
}

func dial(ctx context.Context, ns *os.File, family int, to unix.Sockaddr) (*net.TCPConn, error) {
	fd, err := socketIn(ns, family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer func() { _ = f.Close() }() // a connection has a descriptor of its own
	if err := connect(ctx, f, to); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// socketIn makes a TCP socket that belongs to a namespace, whoever uses it afterwards.
func socketIn(ns *os.File, family int) (fd int, err error) {
	open := func() error {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		return nil
	}
	if ns == nil {
		return fd, open()
	}
	if err := inNetNS(ns, open); err != nil {
		return -1, err
	}
	return fd, nil
}

// connect waits for a connection in the runtime's poller.
func connect(ctx context.Context, socket *os.File, to unix.Sockaddr) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.SetWriteDeadline(time.Unix(1, 0)) }) // fails once it is closed
	defer stop()
	var result error
	begun := false
	err = raw.Write(func(fd uintptr) (done bool) {
		if !begun {
			begun = true
			result = unix.Connect(int(fd), to)
			return result != unix.EINPROGRESS
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, _ := unix.Poll(ready, 0); n == 0 {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if result = err; err == nil && code != 0 {
			result = unix.Errno(code)
		}
		return true
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return result
}
