package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/criserver/criserver/imageservice/remote/credentials"
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
	if !credentials.SameRegistry(s.registry, e.Host) {
		u.RawQuery = url.Values{"ns": {s.registry}}.Encode() // tells a mirror whose image is meant
	}
	return u.String(), name
}

// get asks one endpoint once, answering its challenges. A response is returned for the statuses that accept names; any
// other is an error. answer, which runs out when no response comes, does not run while we keep ourselves to a rate.
func (s *Session) get(ctx context.Context, e *endpoint, answer *time.Timer, address string, header http.Header, accept ...int) (*http.Response, error) {
	for turn := 1; ; turn++ {
		answer.Stop()
		if err := e.gate.pace(ctx); err != nil {
			return nil, err
		}
		answer.Reset(s.cfg.Window)
		sent, err := e.authorize(ctx)
		if err != nil {
			return nil, fmt.Errorf("authorize: %w", err)
		}
		resp, err := s.roundTrip(ctx, e, address, sent, header)
		if err != nil {
			return nil, err
		}
		if slices.Contains(accept, resp.StatusCode) {
			return resp, nil
		}
		err = s.refused(ctx, e, resp, sent, turn)
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody) // lets the connection be used again; it does not matter if not
		_ = resp.Body.Close()
		if err != nil {
			return nil, err
		}
	}
}

func (e *endpoint) authorize(ctx context.Context) (string, error) {
	if e.bearer != "" {
		return "Bearer " + e.bearer, nil
	}
	return e.auth.authorize(ctx)
}

func (s *Session) roundTrip(ctx context.Context, e *endpoint, address, authorization string, header http.Header) (*http.Response, error) {
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
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := e.Client.Do(req)
	if err != nil {
		return nil, e.transportError(ctx, err)
	}
	return resp, nil
}

// refused looks at a response that was not wanted; nil means that the request is worth repeating with what the authorizer has
// learned.
func (s *Session) refused(ctx context.Context, e *endpoint, resp *http.Response, sent string, turn int) error {
	status := newStatusError(resp)
	ours := resp.Request.URL.Host == e.Host
	if status.retryAfter > 0 && ours {
		e.gate.close(min(status.retryAfter, s.cfg.MaxBackoff))
	}
	if resp.StatusCode == http.StatusProxyAuthRequired {
		if proxy := s.proxyOf(resp.Request); proxy != nil { // plain HTTP goes to it as it is
			return unavailable{err: &proxyRefusal{proxy: proxy.Host, user: proxy.User != nil, code: resp.StatusCode}, final: true}
		}
	}
	switch {
	case !ours:
		return fmt.Errorf("redirected to %s: %w", resp.Request.URL.Host, status)
	case resp.StatusCode != http.StatusUnauthorized || turn >= maxAuthTurns:
		return status
	case e.bearer != "":
		return fmt.Errorf("%w, with the registry token of the pull request", status)
	}
	if err := e.auth.challenged(ctx, resp, sent); err != nil {
		return fmt.Errorf("%v: authorize: %w", status, err) // of the class of the latter: it may have been the connection
	}
	return nil
}
