package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stream"
)

func TestStatusOf(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		want string
	}{
		{"success", nil, `{"status":"Success"}`},
		{"exit code", exec.CodeExitError{Err: errors.New("exit code 41"), Code: 41},
			`{"status":"Failure","message":"command terminated with non-zero exit code: 41","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"41"}]}}`},
		{"anything else", errors.New("no room"),
			`{"status":"Failure","message":"Internal error occurred: no room","reason":"InternalError","code":500}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := json.Marshal(statusOf(row.err))
			if err != nil || string(got) != row.want {
				t.Errorf("%s, %v; want %s", got, err, row.want)
			}
		})
	}
}

// What is no size ends the sizes, and never holds up whoever sends.
func TestSizes(t *testing.T) {
	from, to := io.Pipe()
	sizes := wsSizes(t.Context(), from)
	sent := make(chan error, 1)
	go func() {
		var err error
		for _, text := range []string{`{"Width":80,"Height":25}`, `{"Width":1,`, `"Height":2}`, "nonsense", `{"Width":3,"Height":4}`} {
			if err == nil {
				_, err = fmt.Fprint(to, text)
			}
		}
		sent <- err
	}()
	for _, want := range []remotecommand.TerminalSize{{Width: 80, Height: 25}, {Width: 1, Height: 2}} {
		if got := <-sizes; got != want {
			t.Errorf("got %v instead of %v", got, want)
		}
	}
	if got, more := <-sizes; more {
		t.Errorf("nonsense is %v", got)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	_ = to.Close()
}

// Of what a client offers, the newest is taken that we have; none is an answer of HTTP.
func TestWebSocketProtocols(t *testing.T) {
	s := serve(t)
	exec := func() (string, error) { return s.Exec(ExecRequest{Container: "1", Streams: Streams{Stdout: true}}) }
	forward := func() (string, error) { return s.PortForward(PortForwardRequest{Pod: "1"}) }
	for _, row := range []struct {
		name    string
		ask     func() (string, error)
		offers  []string
		selects string // empty: refused
	}{
		{"exec, 5", exec, []string{"v5.channel.k8s.io"}, "v5.channel.k8s.io"},
		{"exec, 4 and 5", exec, []string{"v4.channel.k8s.io", "v5.channel.k8s.io"}, "v5.channel.k8s.io"},
		{"exec, 4", exec, []string{"v4.channel.k8s.io"}, "v4.channel.k8s.io"},
		{"exec, unknown", exec, []string{"v6.channel.k8s.io"}, ""},
		{"port forwarding, tunnel", forward, []string{"SPDY/3.1+portforward.k8s.io"}, "SPDY/3.1+portforward.k8s.io"},
		{"port forwarding, unknown tunnel", forward, []string{"SPDY/3.1+other.k8s.io"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			at, err := row.ask()
			if err != nil {
				t.Fatal(err)
			}
			c, err := dialWebSocket(t, at, row.offers...)
			if row.selects == "" {
				if err == nil {
					t.Error("it was not refused")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.Config().Protocol; len(got) != 1 || got[0] != row.selects {
				t.Errorf("%q was selected", got)
			}
		})
	}
}

// dialWebSocket opens a stream as a client that offers some protocols.
func dialWebSocket(t *testing.T, at string, offers ...string) (*websocket.Conn, error) {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(at, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = offers
	return config.DialContext(t.Context())
}

// endless is a Runtime whose commands run until their clients have gone.
type endless struct {
	still
	ended chan error
}

func (e endless) Exec(ctx context.Context, _ sandbox.ContainerID, _ []string, _ stream.Client) (int32, error) {
	<-ctx.Done()
	e.ended <- context.Cause(ctx)
	return 0, context.Cause(ctx)
}

func TestIdleWebSocket(t *testing.T) {
	runtime := endless{ended: make(chan error, 1)}
	s := serveRuntime(t, runtime, func(c *Config) { c.IdleTimeout = 10 * time.Millisecond })
	exec := func() (string, error) {
		return s.Exec(ExecRequest{Container: "1", Streams: Streams{Stdin: true, Stdout: true}})
	}
	forward := func() (string, error) { return s.PortForward(PortForwardRequest{Pod: "1"}) }
	for _, row := range []struct {
		protocol string
		ask      func() (string, error)
		runs     bool
	}{
		{"v4.channel.k8s.io", exec, true},
		{"v5.channel.k8s.io", exec, true},
		{"SPDY/3.1+portforward.k8s.io", forward, false},
	} {
		t.Run(row.protocol, func(t *testing.T) {
			at, err := row.ask()
			if err != nil {
				t.Fatal(err)
			}
			c, err := dialWebSocket(t, at, row.protocol)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Errorf("the connection has no proper end: %v", err)
			}
			if row.runs {
				<-runtime.ended
			}
		})
	}
}
