package streaming

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stream"
)

// Streams are those that a client will open.
type Streams struct {
	Stdin, Stdout, Stderr, TTY bool
}

// ExecRequest is a command to be run.
type ExecRequest struct {
	Container sandbox.ContainerID
	Cmd       []string
	Streams
}

// Exec returns a URL that runs a command in a running container.
func (s *Server) Exec(r ExecRequest) (url string, err error) {
	if r.Container, err = s.runtime.RunningContainer(r.Container); err != nil {
		return "", err
	}
	return s.url("exec", r)
}

// handler serves the URLs. Both methods are used: SPDY clients send POST, WebSocket ones GET.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{token}", opener(s, s.serveExec))
	mux.HandleFunc("/attach/{token}", opener(s, s.serveAttach))
	mux.HandleFunc("/portforward/{token}", opener(s, s.servePortForward))
	return mux
}

// opener serves the requests of one kind of stream.
func opener[R any](s *Server, serve func(http.ResponseWriter, *http.Request, R)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.serving.Add(1)
		defer s.serving.Done()
		taken, _ := s.tokens.take(r.PathValue("token"))
		request, ok := taken.(R)
		if !ok {
			http.Error(w, "no stream has this token: it was used before, or is older than "+tokenLife.String(), http.StatusNotFound)
			return
		}
		c := connOf(r)
		defer func() {
			if c.hijacked.Load() {
				_ = c.Close() // the library leaves it open if the client did not open its streams in time
			}
		}()
		serve(w, r, request)
	}
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, request ExecRequest) {
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveWebSocket(w, r, request.Streams, func(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return remote{s, request.Streams}.ExecInContainer(ctx, "", "", string(request.Container), request.Cmd, in, out, err, request.TTY, resize, 0)
		})
		return
	}
	remotecommand.ServeExec(w, r, remote{s, request.Streams}, "", "", string(request.Container), request.Cmd, request.options(),
		s.config.IdleTimeout, s.config.CreationTimeout, remotecommand.SupportedStreamingProtocols)
}

// AttachRequest is a container to be attached to.
type AttachRequest struct {
	Container sandbox.ContainerID
	Streams
}

// Attach returns a URL that attaches to a running container.
func (s *Server) Attach(r AttachRequest) (url string, err error) {
	if r.Container, err = s.runtime.RunningContainer(r.Container); err != nil {
		return "", err
	}
	return s.url("attach", r)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, request AttachRequest) {
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveWebSocket(w, r, request.Streams, func(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return remote{s, request.Streams}.AttachContainer(ctx, "", "", string(request.Container), in, out, err, request.TTY, resize)
		})
		return
	}
	remotecommand.ServeAttach(w, r, remote{s, request.Streams}, "", "", string(request.Container), request.options(),
		s.config.IdleTimeout, s.config.CreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s Streams) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, TTY: s.TTY}
}

// remote runs what a client has opened its streams for.
type remote struct {
	s       *Server
	streams Streams
}

// ExecInContainer returns nil or a utilexec.ExitError if the command has ended.
func (r remote) ExecInContainer(ctx context.Context, _, _, container string, cmd []string, in io.Reader, out, err io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	defer closeStreams(out, err)
	code, failed := r.s.runtime.Exec(ctx, sandbox.ContainerID(container), cmd, r.streams.client(ctx, in, out, err, resize))
	r.s.report(ctx, "exec", container, failed)
	if failed == nil && code != 0 {
		failed = exec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return failed
}

// AttachContainer returns when the container or the client has ended.
func (r remote) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, err io.WriteCloser, _ bool,
	resize <-chan remotecommand.TerminalSize) error {
	defer closeStreams(out, err)
	failed := r.s.runtime.Attach(ctx, sandbox.ContainerID(container), r.streams.client(ctx, in, out, err, resize))
	r.s.report(ctx, "attach", container, failed)
	return failed
}

// client is what has been opened, of what was asked for: with WebSocket there are always all streams.
func (s Streams) client(ctx context.Context, in io.Reader, out, err io.Writer, resize <-chan remotecommand.TerminalSize) stream.Client {
	c := stream.Client{TTY: s.TTY}
	if s.Stdin {
		c.Stdin = in
	}
	if s.Stdout {
		c.Stdout = out
	}
	if s.Stderr {
		c.Stderr = err
	}
	if resize != nil {
		c.Resize = sizes(ctx, resize)
	}
	return c
}

func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan stream.Size {
	to := make(chan stream.Size)
	go func() {
		defer close(to)
		for size := range from { // it ends with ctx
			select {
			case to <- stream.Size{Rows: size.Height, Cols: size.Width}:
			case <-ctx.Done():
			}
		}
	}()
	return to
}

// closeStreams tells the client that nothing more will come on them.
func closeStreams(streams ...io.Closer) {
	for _, s := range streams {
		if s != nil {
			_ = s.Close() // the client may be gone
		}
	}
}

// report logs how a stream ended. A client that went away is no reason to warn.
func (s *Server) report(ctx context.Context, kind, id string, err error) {
	switch {
	case err == nil:
		s.config.Log.Debug("stream ended", "kind", kind, "id", id)
	case ctx.Err() != nil:
		s.config.Log.Debug("client left its stream", "kind", kind, "id", id, "error", err)
	default:
		s.config.Log.Warn("stream failed", "kind", kind, "id", id, "error", err)
	}
}
