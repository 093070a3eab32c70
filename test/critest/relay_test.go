package critest

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// relay stands between a client and criserver, as the kubelet and the API server do. When it is cut, both see what they see
// when the other's process is killed, whatever either is doing.
type relay struct {
	listener net.Listener
	mu       sync.Mutex
	open     []net.Conn
	isCut    bool
}

// through makes a URL lead through a relay.
func through(t testing.TB, at string) (string, *relay) {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l}
	t.Cleanup(r.cut)
	go r.run(u.Host)
	u.Host = l.Addr().String()
	return u.String(), r
}

func (r *relay) run(server string) {
	for {
		from, err := r.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", server)
		if err != nil {
			_ = from.Close()
			return
		}
		r.mu.Lock()
		r.open = append(r.open, from, to)
		isCut := r.isCut
		r.mu.Unlock()
		if isCut {
			r.cut()
			return
		}
		go pass(to, from)
		go pass(from, to)
	}
}

// pass copies until the end, which it passes on.
func pass(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if err != nil {
		_ = to.Close()
		return
	}
	_ = to.(*net.TCPConn).CloseWrite()
}

func (r *relay) cut() {
	_ = r.listener.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isCut = true
	for _, c := range r.open {
		_ = c.Close()
	}
}
