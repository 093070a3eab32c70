package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stream"
)

// PortForwardRequest is a pod to whose ports a client will connect.
type PortForwardRequest struct {
	Pod   sandbox.ID
	Ports []int32 // those that a client gets that speaks WebSocket only; with SPDY it names them itself
}

// PortForward returns a URL that forwards connections into a ready pod.
func (s *Server) PortForward(r PortForwardRequest) (url string, err error) {
	if r.Pod, err = s.runtime.ReadyPod(r.Pod); err != nil {
		return "", err
	}
	return s.url("portforward", r)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, request PortForwardRequest) {
	to := func(port uint16, client io.ReadWriteCloser) error {
		return s.forward(r.Context(), request.Pod, port, client)
	}
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, forwarder(to), string(request.Pod), "", &portforward.V4Options{Ports: request.Ports},
			s.config.IdleTimeout, s.config.CreationTimeout, portforward.SupportedProtocols)
	}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		serveTunnel(w, r, serve)
		return
	}
	serve(w, r)
}

// forwarder connects a client's stream to a port. The library's context never ends.
type forwarder func(port uint16, client io.ReadWriteCloser) error

func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, client io.ReadWriteCloser) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("%d is not a port", port)
	}
	return f(uint16(port), client)
}

// forward serves one connection. An error ends all connections of the client, as kubectl does when it is told one: it is for a
// port that cannot be reached. A connection that is cut later is reset and concerns no other.
func (s *Server) forward(ctx context.Context, pod sandbox.ID, port uint16, client io.ReadWriteCloser) error {
	conn, err := s.runtime.DialPod(ctx, pod, port)
	if err != nil {
		s.report(ctx, "portforward", string(pod), err)
		return err
	}
	spdy, halves := client.(resetter)
	if !halves {
		return stream.Forward(ctx, conn, stream.Peer{Reader: client, Writer: client})
	}
	err = stream.Forward(ctx, conn, stream.Peer{Reader: client, Writer: unlessReset{spdy}, CloseWrite: client.Close})
	if err != nil {
		s.config.Log.Debug("forwarded connection was cut", "pod", pod, "port", port, "error", err)
	}
	_ = spdy.Reset() // no effect if both have closed it
	return nil
}

// resetter is a stream of SPDY, each of whose directions can end by itself.
type resetter interface {
	io.ReadWriteCloser
	Reset() error
	IsFinished() bool // reset by the client, or closed by us
}

// unlessReset is a stream that a client has not reset: writes to one that it has would go nowhere for ever.
type unlessReset struct{ resetter }

func (u unlessReset) Write(p []byte) (int, error) {
	if u.IsFinished() {
		return 0, errors.New("the client has reset the stream")
	}
	return u.resetter.Write(p)
}
