package cri

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tapped keeps what is read from a connection, which one goroutine does.
type tapped struct {
	net.Conn
	read  bytes.Buffer
	ended chan struct{} // closed when nothing is read any more
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Write(p[:n])
	if err != nil {
		close(c.ended)
	}
	return n, err
}

// The server does not measure how far its client is: that would be a ping with most requests, each of which wakes both sides.
func TestNoPings(t *testing.T) {
	g := newClient(t).server.GRPC()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	said := &tapped{ended: make(chan struct{})}
	dial := func(context.Context, string) (c net.Conn, err error) {
		said.Conn, err = net.Dial("unix", path)
		return said, err
	}
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := runtimev1.NewRuntimeServiceClient(conn).Version(t.Context(), &runtimev1.VersionRequest{}); err != nil {
			t.Error(err)
		}
	}
	_ = conn.Close()
	<-said.ended
	g.Stop()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	answers, pings := 0, 0
	for frames := http2.NewFramer(nil, &said.read); ; {
		f, err := frames.ReadFrame()
		if err != nil {
			break
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			if !f.IsAck() {
				pings++
			}
		case *http2.DataFrame:
			answers++
		}
	}
	if answers != 20 || pings != 0 {
		t.Errorf("%d answers came with %d pings", answers, pings)
	}
}
