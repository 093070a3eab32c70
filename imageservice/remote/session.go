package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/sirupsen/logrus"

	"github.com/criserver/criserver/imageservice/remote/credentials"
)

// Session is a conversation about one repository with the registry that has it and its mirrors.
type Session struct {
	cfg        Config
	registry   string // host[:port] of the reference
	repository string // path in the registry
	hosts      []*endpoint
	transports []*http.Transport
	stored     *credentials.Store
	proxy      func(*http.Request) (*url.URL, error)
}

// endpoint is one host that may serve the repository.
type endpoint struct {
	docker.RegistryHost // its Authorizer is not used
	gate                *gate
	bearer              string // sent as it is, instead of asking the authorizer
	auth                *authorizer
	hostsFile           string // that configures it, or would; for advice
}

// Open reads the configuration of the reference's registry and connects to nothing yet. Close must be called.
func (r *Registries) Open(ref reference.Named, auth Auth) (*Session, error) {
	s := &Session{registry: reference.Domain(ref), repository: reference.Path(ref)}
	s.cfg, s.stored = r.config()
	s.proxy = s.cfg.proxies()
	hosts, err := s.configure(s.hostDir)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", s.registry, err)
	}
	for _, h := range hosts {
		e, err := s.endpoint(h, auth)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("configure registry %s: %w", s.registry, err)
		}
		e.gate = r.gate(s.cfg, h.Host)
		s.hosts = append(s.hosts, e)
	}
	return s, nil
}

// Close drops the connections. Streams must have been closed.
func (s *Session) Close() {
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
}

// configure makes the endpoints of the directory that dir finds for the registry.
func (s *Session) configure(dir func(host string) (string, error)) ([]docker.RegistryHost, error) {
	sink := &errorSink{}
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(sink)
	// ConfigureHosts goes on with less than was configured when a file is wrong, and only logs it; that would send
	// requests where the operator did not want them.
	ctx := log.WithLogger(context.Background(), logrus.NewEntry(logger))
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:      dir,
		UpdateClient: s.tune,
	})(s.registry)
	if err = errors.Join(err, sink.err); err != nil {
		return nil, err
	}
	return hosts, nil
}

func (s *Session) hostDir(host string) (string, error) {
	for _, root := range s.cfg.CertsDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if err == nil || !errdefs.IsNotFound(err) && !errors.Is(err, fs.ErrNotExist) {
			return dir, err
		}
	}
	return "", errdefs.ErrNotFound
}

// hostsFile is the file in which the operator configures the registry, whether it is there or not.
func (s *Session) hostsFile() string {
	dir, err := s.hostDir(s.registry)
	if err != nil && len(s.cfg.CertsDirs) > 0 {
		dir = filepath.Join(s.cfg.CertsDirs[0], s.registry)
	}
	return filepath.Join(dir, "hosts.toml")
}

// tune is called for every client that containerd's library makes.
func (s *Session) tune(c *http.Client) error {
	c.CheckRedirect = checkRedirect(nil)
	if t, ok := c.Transport.(*http.Transport); ok {
		t.MaxIdleConnsPerHost = 8
		t.ReadBufferSize = 64 << 10
		t.Proxy, t.OnProxyConnectResponse = s.proxy, refusedByProxy
		s.transports = append(s.transports, t)
	}
	return nil
}

func (s *Session) endpoint(h docker.RegistryHost, auth Auth) (*endpoint, error) {
	e := &endpoint{RegistryHost: h, hostsFile: s.hostsFile()}
	client := *h.Client
	client.CheckRedirect = checkRedirect(h.Header)
	e.Client = &client
	ours, err := auth.belongsTo(s.registry, h.Host)
	if err != nil {
		return nil, err
	}
	if !ours {
		auth = Auth{}
	}
	given, err := auth.credential()
	if err != nil {
		return nil, err
	}
	if given.Username == "" && given.IdentityToken == "" {
		e.bearer = given.RegistryToken
	}
	tokens := *h.Client
	tokens.CheckRedirect = withinHost
	e.auth = &authorizer{
		host: h.Host, client: &tokens, userAgent: s.cfg.UserAgent, scope: "repository:" + s.repository + ":pull", turn: make(chan struct{}, 1),
		find: func(ctx context.Context) (credentials.Credential, error) {
			if !given.Anonymous() {
				return given, nil
			}
			return s.stored.Find(ctx, h.Host, s.repository)
		},
	}
	return e, nil
}

// errorSink keeps the first error that a library logs instead of returning it.
type errorSink struct{ err error }

func (*errorSink) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

func (s *errorSink) Fire(e *logrus.Entry) error {
	if s.err == nil {
		s.err = errors.New(e.Message)
		if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
			s.err = fmt.Errorf("%s: %w", strings.TrimSpace(e.Message), cause)
		}
	}
	return nil
}
