package streaming

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// serveTunnel serves a client that forwards ports with SPDY inside of a WebSocket: serve gets the request that it would have
// sent without one.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			if !slices.Contains(c.Protocol, portforward.WebsocketsSPDYTunnelingPortForwardV1) {
				return fmt.Errorf("none of the protocols %q is served", c.Protocol)
			}
			c.Protocol = []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.PortForwardV1Name)
			serve(answer{tunnel{ws}, http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// tunnel is a connection inside of a WebSocket. Where its messages begin and end has no meaning.
type tunnel struct{ *websocket.Conn }

// Close tells the client that there is no more, and gives up on one that takes nothing.
func (t tunnel) Close() error {
	_ = t.SetWriteDeadline(time.Now().Add(lingerBound)) // fails for a closed connection only
	return t.Conn.Close()
}

// answer is the http.ResponseWriter for the request inside of a tunnel. The client has had its answer with the WebSocket: all
// that is of use here is the connection.
type answer struct {
	tunnel tunnel
	header http.Header
}

func (a answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return a.tunnel, bufio.NewReadWriter(bufio.NewReader(a.tunnel), bufio.NewWriter(a.tunnel)), nil
}

func (a answer) Header() http.Header { return a.header }

func (answer) WriteHeader(int) {}

func (answer) Write(p []byte) (int, error) { return len(p), nil }
