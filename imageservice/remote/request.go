package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

const (
	maxRedirects = 5
	maxAuthTurns = 3 // requests of one attempt, of which all but the last were answered by a challenge
)

func sameOrigin(a, b *url.URL) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Host, b.Host)
}

// checkRedirect follows a bounded number of redirects and takes off everything that was meant for the first host.
// net/http alone would pass credentials on to another port and to subdomains.
func checkRedirect(private http.Header) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("%w: more than %d redirects", ErrInvalid, maxRedirects)
		}
		if req.URL.Scheme != "https" && req.URL.Scheme != "http" {
			return fmt.Errorf("%w: redirected to scheme %q", ErrInvalid, printable(req.URL.Scheme))
		}
		if sameOrigin(req.URL, via[0].URL) {
			return nil
		}
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			return fmt.Errorf("%w: %s redirected to another host", ErrInvalid, req.Method)
		}
		for _, key := range []string{"Authorization", "Proxy-Authorization", "Cookie", "Cookie2"} {
			req.Header.Del(key)
		}
		for key := range private {
			req.Header.Del(key)
		}
		return nil
	}
}

// url returns the address of what for requests, and how it is named in errors.
func (s *Session) url(e *endpoint, parts ...string) (address, name string) {
	u := url.URL{Scheme: e.Scheme, Host: e.Host, Path: path.Join(append([]string{"/", e.Path, s.repository}, parts...)...)}
	name = u.String()
	if !sameRegistry(s.registry, e.Host) {
		u.RawQuery = url.Values{"ns": {s.registry}}.Encode() // tells a mirror whose image is meant
	}
	return u.String(), name
}

// get asks one endpoint once, answering its challenges. A response is returned for the statuses that accept names; any
// other is an error. answer, which runs out when no response comes, does not run while we keep ourselves to a rate.
func (s *Session) get(ctx context.Context, e *endpoint, answer *time.Timer, address string, header http.Header, accept ...int) (*http.Response, error) {
	ctx = docker.WithScope(ctx, "repository:"+s.repository+":pull")
	var responses []*http.Response
	for {
		answer.Stop()
		if err := e.gate.pace(ctx); err != nil {
			return nil, err
		}
		answer.Reset(s.cfg.Window)
		resp, err := s.roundTrip(ctx, e, address, header)
		if err != nil {
			return nil, err
		}
		for _, status := range accept {
			if resp.StatusCode == status {
				return resp, nil
			}
		}
		responses = append(responses, resp)
		err = s.challenged(ctx, e, responses)
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody) // lets the connection be used again; it does not matter if not
		_ = resp.Body.Close()
		if err != nil {
			return nil, err
		}
	}
}

func (s *Session) roundTrip(ctx context.Context, e *endpoint, address string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	for key, values := range e.Header {
		req.Header[key] = values
	}
	for key, values := range header {
		req.Header[key] = values
	}
	req.Header.Set("Accept-Encoding", "identity") // a digest is of the bytes as they were stored
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", s.cfg.UserAgent)
	}
	if err := e.authorize(ctx, req); err != nil {
		return nil, e.authError(ctx, err)
	}
	resp, err := e.Client.Do(req)
	if err != nil {
		return nil, e.transportError(ctx, err)
	}
	return resp, nil
}

func (e *endpoint) authorize(ctx context.Context, req *http.Request) error {
	if e.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+e.bearer)
		return nil
	}
	return e.auth.use(ctx, func(a docker.Authorizer) error { return a.Authorize(ctx, req) })
}

// challenged looks at a response that was not wanted; nil means that the request is worth repeating with what the
// authorizer has learned.
func (s *Session) challenged(ctx context.Context, e *endpoint, responses []*http.Response) error {
	last := responses[len(responses)-1]
	status := newStatusError(last)
	if status.retryAfter > 0 && last.Request.URL.Host == e.Host {
		e.gate.close(min(status.retryAfter, s.cfg.MaxBackoff))
	}
	if last.StatusCode != http.StatusUnauthorized || e.bearer != "" || len(responses) >= maxAuthTurns {
		return status
	}
	if last.Request.URL.Host != e.Host {
		return fmt.Errorf("redirected to %s: %w", last.Request.URL.Host, status)
	}
	for _, c := range auth.ParseAuthHeader(last.Header) {
		realm, err := url.Parse(c.Parameters["realm"])
		if c.Scheme == auth.BearerAuth && (err != nil || last.Request.URL.Scheme == "https" && realm.Scheme != "https") {
			return fmt.Errorf("token server at %q: %w", printable(c.Parameters["realm"]), ErrUnauthorized)
		}
	}
	err := e.auth.use(ctx, func(a docker.Authorizer) error { return a.AddResponses(ctx, responses) })
	if err != nil {
		return fmt.Errorf("%v: %w", status, e.authError(ctx, err)) // of the class of the latter: it may have been the connection
	}
	return nil
}

// authError classifies what went wrong between us and the authorizer, which speaks to token servers itself.
func (e *endpoint) authError(ctx context.Context, err error) error {
	if ctx.Err() != nil || ofTransport(err) {
		return fmt.Errorf("authorize: token server: %w", e.transportError(ctx, err))
	}
	var answer remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &answer) && (&statusError{code: answer.StatusCode}).transient() {
		return fmt.Errorf("authorize: token server: %w", &statusError{code: answer.StatusCode})
	}
	return fmt.Errorf("authorize: %w: %s", ErrUnauthorized, printable(err.Error()))
}

// ofTransport says whether the authorizer failed because of a connection.
func ofTransport(err error) bool {
	var netErr net.Error // *url.Error is one, and the end of a time
	return errors.As(err, &netErr) || slices.ContainsFunc([]error{io.ErrUnexpectedEOF, context.Canceled, ErrInvalid, ErrUnavailable},
		func(kind error) bool { return errors.Is(err, kind) })
}
