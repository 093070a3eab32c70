//lint:file-ignore SA1019 client-go still has the deprecated package in its signatures

package critest

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listenIn listens in the network namespace of a container.
func listenIn(t *testing.T, c *container, address string) (l net.Listener) {
	t.Helper()
	at := fmt.Sprintf("/proc/%d/ns/net", c.pid(t))
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(own)
		fd, err := unix.Open(at, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Setns(fd, unix.CLONE_NEWNET)
		}
		if err == nil {
			l, err = net.Listen("tcp", address)
			err = errors.Join(err, unix.Setns(own, unix.CLONE_NEWNET))
		}
		if err == nil {
			runtime.UnlockOSThread() // the end of a thread would be the end of what it has started with Pdeathsig
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// each serves the connections of a listener.
func each(l net.Listener, serve func(*net.TCPConn)) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
}

// reverse answers, once it has heard everything, with the same bytes in reverse order.
func reverse(c *net.TCPConn) {
	all, err := io.ReadAll(c)
	if err != nil {
		return
	}
	for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 {
		all[i], all[j] = all[j], all[i]
	}
	_, _ = c.Write(all)
}

// forwarding is kubectl's client at work.
type forwarding struct {
	local string // address
	ended chan error
	cut   func()
}

// dialer connects to a URL in one of the ways that kubectl has.
type dialer struct {
	name string
	open func(*url.URL) (httpstream.Dialer, error)
}

var dialers = []dialer{
	{"SPDY", func(at *url.URL) (httpstream.Dialer, error) {
		transport, upgrader, err := spdy.RoundTripperFor(insecureConfig())
		return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", at), err
	}},
	{"SPDY in WebSocket", func(at *url.URL) (httpstream.Dialer, error) {
		return portforward.NewSPDYOverWebsocketDialer(at, insecureConfig())
	}},
}

// eachDialer runs a test with all ways to connect.
func eachDialer(t *testing.T, test func(*testing.T, dialer)) {
	t.Helper()
	for _, d := range dialers {
		t.Run(d.name, func(t *testing.T) { test(t, d) })
	}
}

func (d dialer) forward(t *testing.T, p *pod, l net.Listener) *forwarding {
	t.Helper()
	port := l.Addr().(*net.TCPAddr).Port
	answer, err := p.d.runtime.PortForward(bounded(t), &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{int32(port)}})
	if err != nil {
		t.Fatal(err)
	}
	at, relay := through(t, answer.GetUrl())
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	dial, err := d.open(u)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(dial, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	t.Cleanup(func() { close(stop) })
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return &forwarding{local: fmt.Sprintf("127.0.0.1:%d", ports[0].Local), ended: ended, cut: relay.cut}
}

func (f *forwarding) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", f.local)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// ask sends random bytes, ends that direction, and wants them back in reverse.
func ask(c *net.TCPConn, size int) error {
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	if _, err := c.Write(sent); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	for i, j := 0, len(got)-1; i < j; i, j = i+1, j-1 {
		got[i], got[j] = got[j], got[i]
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes have come back of %d, or they are others", len(got), len(sent))
	}
	return nil
}

// Each direction of a connection ends by itself.
func TestPortForward(t *testing.T) {
	d := use(t)
	for _, row := range []struct {
		name, address string
		change        func(*cri.PodSandboxConfig)
	}{
		{"IPv4", "127.0.0.1:0", podNetwork},
		{"IPv6 alone", "[::1]:0", podNetwork},
		{"host network", "127.0.0.1:0", func(*cri.PodSandboxConfig) {}},
		{"host network, IPv6", "[::1]:0", func(*cri.PodSandboxConfig) {}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := runPod(t, d, row.change)
			l := listenIn(t, p.start(t, idle), row.address)
			each(l, reverse)
			eachDialer(t, func(t *testing.T, by dialer) {
				f := by.forward(t, p, l)
				for _, size := range []int{0, 1, 3_000_000} {
					if err := ask(f.dial(t), size); err != nil {
						t.Errorf("%d bytes: %v", size, err)
					}
				}
			})
		})
	}
}

// Many connections of one client go on independently, also beside one whose server takes nothing, and one that is reset.
func TestPortForwardParallel(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	eachDialer(t, func(t *testing.T, by dialer) {
		l := listenIn(t, p.start(t, idle), "127.0.0.1:0")
		stalled, reset := make(chan struct{}), make(chan struct{})
		defer close(stalled)
		each(l, func(c *net.TCPConn) {
			kind := make([]byte, 1)
			_, _ = io.ReadFull(c, kind)
			switch kind[0] {
			case 's':
				<-stalled
			case 'r':
				_, _ = c.Write([]byte("x"))
				<-reset
				_ = c.SetLinger(0)
			default:
				reverse(c)
			}
		})
		f := by.forward(t, p, l)
		stall, broken := f.dial(t), f.dial(t)
		_, _ = stall.Write(append([]byte("s"), make([]byte, 100_000)...))
		_, _ = broken.Write([]byte("r"))
		_, _ = io.ReadFull(broken, make([]byte, 1))
		close(reset)
		if n, err := broken.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("read %d bytes, %v, of a connection that was reset", n, err)
		}
		var all sync.WaitGroup
		for range 50 {
			c := f.dial(t)
			all.Go(func() {
				_, _ = c.Write([]byte("-"))
				if err := ask(c, 200_000); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		select {
		case err := <-f.ended:
			t.Errorf("the client has ended: %v", err)
		default:
		}
	})
}

// A client that vanishes ends its connections in the pod.
func TestPortForwardClientVanishes(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	eachDialer(t, func(t *testing.T, by dialer) {
		l := listenIn(t, p.start(t, idle), "127.0.0.1:0")
		begun, ended := make(chan struct{}), make(chan struct{})
		each(l, func(c *net.TCPConn) {
			close(begun)
			_, _ = io.Copy(io.Discard, c)
			close(ended)
		})
		f := by.forward(t, p, l)
		f.dial(t)
		<-begun
		f.cut()
		<-ended
		if err := <-f.ended; err == nil {
			t.Error("the client has not lost its connection")
		}
	})
}

// A port that nobody listens on is told to the client, which leaves.
func TestPortForwardUnreachable(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	eachDialer(t, func(t *testing.T, by dialer) {
		l := listenIn(t, p.start(t, idle), "127.0.0.1:0")
		_ = l.Close()
		f := by.forward(t, p, l)
		if n, err := f.dial(t).Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if err := <-f.ended; err == nil {
			t.Error("the client goes on")
		}
		if log := d.lastLog(); !strings.Contains(log, "connection refused") {
			t.Errorf("no word of it in the log: %s", log)
		}
	})
}

func TestPortForwardWebSocket(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork)
	l := listenIn(t, p.start(t, idle), "127.0.0.1:0")
	each(l, func(c *net.TCPConn) {
		line := make([]byte, 5)
		_, _ = io.ReadFull(c, line)
		_, _ = c.Write(append([]byte("got "), line...))
	})
	port := l.Addr().(*net.TCPAddr).Port
	answer, err := d.runtime.PortForward(bounded(t), &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{int32(port)}})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.Dial(strings.Replace(answer.GetUrl(), "http", "ws", 1), "v4.channel.k8s.io", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := websocket.Message.Send(ws, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	var data []byte
	for first := true; ; first = false {
		var message []byte
		if websocket.Message.Receive(ws, &message) != nil { // the end
			break
		}
		if len(message) > 0 && message[0] == 0 {
			data = append(data, message[1:]...)
		}
		if first && (len(message) != 3 || int(binary.LittleEndian.Uint16(message[1:])) != port) {
			t.Errorf("the first message is %q", message)
		}
	}
	if string(data[min(2, len(data)):]) != "got hello" {
		t.Errorf("got %q", data)
	}
}

func TestPortForwardRefused(t *testing.T) {
	d := use(t)
	stopped := runPod(t, d)
	stopped.stop(t)
	ready := runPod(t, d)
	for _, row := range []struct {
		name, id string
		port     int32
		code     codes.Code
		text     string
	}{
		{"no pod", "", 80, codes.InvalidArgument, "pod_sandbox_id"},
		{"unknown pod", strings.Repeat("1", 64), 80, codes.NotFound, strings.Repeat("1", 64)},
		{"stopped pod", stopped.id, 80, codes.FailedPrecondition, "is not ready"},
		{"no port", ready.id, 0, codes.InvalidArgument, "port[0]"},
		{"too high a port", ready.id, 65536, codes.InvalidArgument, "port[0]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := d.runtime.PortForward(bounded(t), &cri.PortForwardRequest{PodSandboxId: row.id, Port: []int32{row.port}})
			refused(t, err, row.code, row.text)
		})
	}
}
