package cni

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/criserver/criserver/test/leak"
	"golang.org/x/sys/unix"
)

var podCount atomic.Int64

// testPod is a network namespace pinned like a pod's.
type testPod struct {
	t    testing.TB
	ns   *os.File
	path string
	id   string
}

// newPod makes a namespace with lo up, pinned under the test's directory.
func newPod(t testing.TB) *testPod {
	t.Helper()
	needHost(t)
	ns, err := newNetNS()
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	id := fmt.Sprintf("pod%d", podCount.Add(1))
	p := &testPod{t: t, ns: ns, id: id, path: filepath.Join("/run/netns", "cri-"+id)}
	t.Cleanup(func() {
		if err := UnpinNetNS(p.path); err != nil {
			t.Errorf("cleanup: %v", err)
		}
		_ = ns.Close()
	})
	if err := PinNetNS(ns, p.path); err != nil {
		t.Fatal(err)
	}
	if err := SetLoopbackUp(ns); err != nil {
		t.Fatal(err)
	}
	return p
}

// newNetNS makes a network namespace in a thread that ends afterwards.
func newNetNS() (*os.File, error) {
	type made struct {
		ns  *os.File
		err error
	}
	done := make(chan made)
	go inOtherThread(func() (keep bool) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: err}
			return true
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		done <- made{ns, err}
		return false
	})
	m := <-done
	return m.ns, m.err
}

func (p *testPod) attachment() Attachment {
	return Attachment{ContainerID: p.id, NetNS: p.path, PodNamespace: "default", PodName: "name-" + p.id, PodUID: "uid-" + p.id}
}

// listen serves one line, the pod's id, on port of every address of the pod until the test ends.
func (p *testPod) listen(port int) {
	p.t.Helper()
	var l net.Listener
	err := inNetNS(p.ns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port)) // dual stack
		return err
	})
	if err != nil {
		p.t.Fatalf("listen in the pod: %v", err)
	}
	p.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, p.id)
			_ = conn.Close()
		}
	}()
}

// hear connects to addr from the namespace ns, nil meaning the test host, and returns what the listener says.
func hear(ns *os.File, addr string) (string, error) {
	var said string
	dial := func() error {
		conn, err := dialHere(addr)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		data, err := io.ReadAll(conn)
		said = string(data)
		return err
	}
	var err error
	if ns == nil {
		err = dial()
	} else {
		err = inNetNS(ns, dial)
	}
	return said, err
}

// dialHere connects in the calling thread: net.Dial may do so in another goroutine and so another namespace.
func dialHere(addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), addr)
	defer func() { _ = f.Close() }()
	timeout := unix.NsecToTimeval(int64(3 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return net.FileConn(f)
}

func hostPort(ip netip.Addr, port int) string {
	return net.JoinHostPort(ip.String(), strconv.Itoa(port))
}

// testNetwork is a Network with the embedded default network, a bridge of the test's own and nothing in its ConfDir.
func testNetwork(t testing.TB, change ...func(*Config)) *Network {
	t.Helper()
	needHost(t)
	// In this host of our own nobody else leaves traces but in the kinds that are left out.
	leak.Check(t, leak.Without(leak.Process, leak.NetNS, leak.Cgroup), leak.Files("/run"),
		leak.Ignore(leak.PortmapResidue), leak.Ignore(`^/run/(netns|xtables\.lock) `))
	number := podCount.Add(1)
	conf := Config{
		ConfDir: filepath.Join(t.TempDir(), "net.d"),
		BinDirs: []string{pluginDir},
		Default: &DefaultNetwork{
			Name:   fmt.Sprintf("test%d", number),
			Bridge: fmt.Sprintf("tbr%d", number),
			Subnets: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", 100+number%100)),
				netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", number)),
			},
			DataDir: t.TempDir(),
		},
	}
	for _, c := range change {
		c(&conf)
	}
	return openNetwork(t, conf)
}

func openNetwork(t testing.TB, conf Config) *Network {
	t.Helper()
	n, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.RemoveDefault(); err != nil {
			t.Errorf("cleanup: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("cleanup: %v", err)
		}
	})
	return n
}

// attach plans and adds, and detaches when the test ends unless the test did.
func attach(t testing.TB, n *Network, a Attachment) (Debt, *Result) {
	t.Helper()
	debt, err := n.Plan(a)
	if err != nil {
		t.Fatal(err)
	}
	result, err := n.Add(context.Background(), debt)
	if err != nil {
		t.Fatal(err)
	}
	debt.Result = result.Raw
	t.Cleanup(func() {
		if err := n.Del(context.Background(), debt); err != nil {
			t.Errorf("cleanup: %v", err)
		}
	})
	return debt, result
}

func detach(t testing.TB, n *Network, debt Debt) {
	t.Helper()
	if err := n.Del(context.Background(), debt); err != nil {
		t.Fatal(err)
	}
}
