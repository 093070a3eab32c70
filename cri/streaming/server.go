package streaming

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stream"
)

// Config is what Listen needs.
type Config struct {
	Address           string        // host:port; port 0 is any
	IdleTimeout       time.Duration // of a connection on which nothing moves
	CreationTimeout   time.Duration // for a client to open its streams
	CertFile, KeyFile string        // both or none: plain HTTP
	Log               *slog.Logger
}

// Runtime is what streams lead to; *sandbox.Service is one.
type Runtime interface {
	// RunningContainer and ReadyPod return the full id of what can be streamed to.
	RunningContainer(sandbox.ContainerID) (sandbox.ContainerID, error)

	ReadyPod(sandbox.ID) (sandbox.ID, error)

	Exec(ctx context.Context, id sandbox.ContainerID, cmd []string, client stream.Client) (code int32, err error)
	Attach(ctx context.Context, id sandbox.ContainerID, client stream.Client) error
	DialPod(ctx context.Context, id sandbox.ID, port uint16) (*net.TCPConn, error)
}

// Server serves streams.
type Server struct {
	config   Config
	runtime  Runtime
	tokens   tokens
	listener *listener
	http     *http.Server
	scheme   string
	serving  sync.WaitGroup
}

// Listen takes the address. Nothing is answered before Serve.
func Listen(ctx context.Context, config Config) (*Server, error) {
	s := &Server{config: config, scheme: "http", tokens: tokens{all: map[string]pending{}}}
	s.http = &http.Server{
		ReadHeaderTimeout: config.CreationTimeout,
		Protocols:         &http.Protocols{},
		ErrorLog:          slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
		ConnContext:       connContext,
		ConnState:         connState,
	}
	s.http.Protocols.SetHTTP1(true) // HTTP/2 has no upgrade
	if config.CertFile != "" {
		certificate, err := openCertificate(config.CertFile, config.KeyFile, config.Log)
		if err != nil {
			return nil, fmt.Errorf("streaming: %w", err)
		}
		s.http.TLSConfig, s.scheme = certificate.config(), "https"
	}
	watch, err := newWatch()
	if err != nil {
		return nil, fmt.Errorf("streaming: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", config.Address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("streaming: %w", err), watch.close())
	}
	s.listener = &listener{TCPListener: l.(*net.TCPListener), watch: watch, open: map[*conn]struct{}{}}
	return s, nil
}

// Serve begins to answer, with streams of runtime. It is called once.
func (s *Server) Serve(runtime Runtime) {
	s.runtime = runtime
	s.http.Handler = s.handler()
	s.serving.Go(s.listener.watch.run)
	s.serving.Go(func() {
		err := s.serve()
		if !errors.Is(err, http.ErrServerClosed) {
			s.config.Log.Error("streaming has ended", "error", err)
		}
	})
}

func (s *Server) serve() error {
	if s.http.TLSConfig != nil {
		return s.http.ServeTLS(s.listener, "", "")
	}
	return s.http.Serve(s.listener)
}

// Close ends all streams, and returns when they have ended or ctx has.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Close()
	if s.runtime == nil {
		err = errors.Join(err, s.listener.Close())
	}
	s.listener.endAll()
	err = errors.Join(err, s.listener.watch.close())
	ended := make(chan struct{})
	go func() { defer close(ended); s.serving.Wait() }()
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("wait for the end of streams: %w", ctx.Err()))
	}
	return err
}

// Address is what the server listens on.
func (s *Server) Address() string { return s.listener.Addr().String() }

// url leads to a stream. A server that listens on every address is told by one of this machine.
func (s *Server) url(kind string, request any) (string, error) {
	token, err := s.tokens.add(request)
	if err != nil {
		return "", err
	}
	at := *s.listener.Addr().(*net.TCPAddr)
	if at.IP.IsUnspecified() {
		at.IP = net.IPv4(127, 0, 0, 1)
	}
	u := url.URL{Scheme: s.scheme, Host: at.String(), Path: "/" + kind + "/" + token}
	return u.String(), nil
}

type connKey struct{}

// connOf finds the connection of a request.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// bare is the connection below TLS.
func bare(c net.Conn) *conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	return c.(*conn)
}

// connContext makes the context of a connection's requests end with its client.
func connContext(ctx context.Context, c net.Conn) context.Context {
	ctx, tell := context.WithCancelCause(ctx)
	b := bare(c)
	b.tell.Store(&tell)
	return context.WithValue(ctx, connKey{}, b)
}

func connState(c net.Conn, state http.ConnState) {
	if state == http.StateHijacked {
		bare(c).upgraded()
	}
}

// control calls do with the descriptor of c.
func control(c syscall.Conn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = do(int(fd)) }); err != nil {
		return err
	}
	return result
}
