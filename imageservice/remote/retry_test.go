package remote

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// caFile is the certificate of a server, as ca of a hosts.toml.
func caFile(t *testing.T, s *server) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// refusal is what a registry is configured as and how often it is to be asked.
type refusal struct {
	name  string
	start func(t *testing.T) (cfg Config, registry string)
	kind  error
	again bool // it is asked until the attempts are used up
	says  []string
}

// always is a registry that gives one answer to everything.
func always(answer http.HandlerFunc) func(*testing.T) (Config, string) {
	return func(t *testing.T) (Config, string) {
		s := serveHTTP(t, false, answer)
		return Config{}, s.host()
	}
}

func code(code int, header ...string) func(*testing.T) (Config, string) {
	return always(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	})
}

// tokens is a registry whose token server gives one answer to everything.
func tokens(answer http.HandlerFunc) func(*testing.T) (Config, string) {
	return func(t *testing.T) (Config, string) {
		s := serveHTTP(t, false, answer)
		return code(http.StatusUnauthorized, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, s.URL))(t)
	}
}

// hang ends when the client gives up, which a server notices only once it has read the request.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // the client may be gone
	<-r.Context().Done()
}

func hangAfter(code int, begin string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, begin) // the client may be gone
		w.(http.Flusher).Flush()
		hang(w, r)
	}
}

func reset(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// https is a registry with a certificate, which hosts.toml names with the keys given.
func https(host func(*server) string, keys func(*testing.T, *server) string) func(*testing.T) (Config, string) {
	return func(t *testing.T) (Config, string) {
		s := serveHTTP(t, true, serveContent)
		registry := host(s)
		return hosts(t, registry, fmt.Sprintf("server = \"https://%s\"\n%s", registry, keys(t, s))), registry
	}
}

var refusals = []refusal{
	{"certificate of an unknown authority", https((*server).host, func(*testing.T, *server) string { return "" }),
		ErrUnavailable, false, []string{"signed by unknown authority", "to trust it, set ca for https://127.0.0.1:", "/hosts.toml"}},
	{"certificate of another host", https(func(s *server) string { return strings.Replace(s.host(), "127.0.0.1", "localhost", 1) },
		func(t *testing.T, s *server) string { return fmt.Sprintf("ca = %q\n", caFile(t, s)) }),
		ErrUnavailable, false, []string{"certificate is valid for"}},
	{"plain HTTP instead of HTTPS", func(t *testing.T) (Config, string) {
		s := serveHTTP(t, false, serveContent)
		return hosts(t, s.host(), fmt.Sprintf("server = \"https://%s\"\n", s.host())), s.host()
	}, ErrUnavailable, false, []string{"HTTP response to HTTPS client", "name it http://127.0.0.1:"}},
	{"nobody listens", func(*testing.T) (Config, string) { return Config{}, "127.0.0.1:1" }, ErrUnavailable, true, []string{"connection refused"}},
	{"reset", always(reset), ErrUnavailable, true, []string{"EOF"}},

	{"401", code(401), ErrUnauthorized, false, nil},
	{"403", code(403), ErrUnauthorized, false, nil},
	{"404", code(404), ErrNotFound, false, nil},
	{"408", code(408), ErrUnavailable, true, nil},
	{"410", code(410), ErrInvalid, false, nil},
	{"429", code(429), ErrUnavailable, true, nil},
	{"429, come back tomorrow", code(429, "Retry-After", "86400"), ErrUnavailable, false, nil},
	{"500", code(500), ErrUnavailable, true, nil},
	{"503", code(503), ErrUnavailable, true, nil},
	{"redirect without end", always(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }),
		ErrInvalid, false, []string{"more than 5 redirects"}},
	{"redirect to a file", code(302, "Location", "file:///etc/passwd"), ErrInvalid, false, []string{`redirected to scheme "file"`}},
	{"redirect to nowhere", code(302), ErrInvalid, false, []string{"302"}},

	{"token server resets", tokens(reset), ErrUnavailable, true, []string{"token server", "EOF"}},
	{"token server breaks off", tokens(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"token":"`) // the client may be gone
		w.(http.Flusher).Flush()
		reset(w, nil)
	}), ErrUnavailable, true, []string{"token server", "EOF"}},
	{"token server is down", tokens(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }), ErrUnavailable, true, []string{"token server", "502"}},
	{"token server refuses", tokens(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }), ErrUnauthorized, false, nil},
	{"token without end", tokens(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"token":"`) // the client may be gone
		_, _ = w.Write(bytes.Repeat([]byte("x"), 2*maxToken))
	}), ErrInvalid, false, []string{"token of more than 1048576 bytes"}},
	{"token server sends the secrets elsewhere", tokens(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}), ErrInvalid, false, []string{"GET redirected to another host"}},
}

// silences take a window each.
var silences = []refusal{
	{"no answer", always(hang), ErrUnavailable, true, []string{"stalled: no answer in"}},
	{"silence in the answer", always(hangAfter(http.StatusOK, "{")), ErrUnavailable, true, []string{"too slow: 1 bytes in 2s"}},
	{"silence in an error", always(hangAfter(http.StatusBadGateway, "{")), ErrUnavailable, true, []string{"502"}},
	{"silence in a refusal", always(hangAfter(http.StatusForbidden, "{")), ErrUnauthorized, false, []string{"403"}},
	{"token server does not answer", tokens(hang), ErrUnavailable, true, []string{"token server", "stalled: no answer in"}},
	{"token server stops in the middle", tokens(hangAfter(http.StatusOK, `{"token":"`)), ErrUnavailable, true, []string{"token server", "stalled: no answer in"}},
}

// TestWhatIsTriedAgain holds which failures are final: what nobody but a human mends is told at once.
func TestWhatIsTriedAgain(t *testing.T) {
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) { c.check(t, time.Minute) })
	}
	for _, c := range silences {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check(t, 2*time.Second)
		})
	}
}

func (c *refusal) check(t *testing.T, window time.Duration) {
	const attempts = 2
	cfg, registry := c.start(t)
	cfg.Attempts, cfg.Backoff, cfg.MaxBackoff, cfg.Window = attempts, time.Millisecond, 10*time.Millisecond, window
	s := open(t, cfg, registry+"/app", alice)
	want := 1
	if c.again {
		want = attempts
	}
	var wg sync.WaitGroup
	for what, ask := range map[string]func() error{
		"manifest": func() error { _, err := s.ManifestByTag(t.Context(), "v1", nil); return err },
		"blob":     func() error { _, err := s.ReadBlob(t.Context(), desc(), 100); return err },
	} {
		wg.Go(func() {
			err := ask()
			var fetch *FetchError
			if !errors.As(err, &fetch) || !errors.Is(err, c.kind) || len(fetch.Attempts) != want {
				t.Errorf("%s: %v\nis not %d times %v", what, err, want, c.kind)
				return
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%s: %v\ndoes not say %q", what, err, text)
				}
			}
			if strings.Contains(err.Error(), alice.Password) {
				t.Errorf("%s: secret in %v", what, err)
			}
		})
	}
	wg.Wait()
}

// roundTrips is a transport that fails.
type roundTrips struct{ err error }

func (r roundTrips) RoundTrip(*http.Request) (*http.Response, error) { return nil, r.err }

func TestWhichTransportErrorsAreFinal(t *testing.T) {
	dial := func(err *net.DNSError) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, c := range []struct {
		err    error
		final  bool
		advice string
	}{
		{dial(&net.DNSError{Err: "no such host", Name: "registry.test", IsNotFound: true}), true, ""},
		{dial(&net.DNSError{Err: "server misbehaving", Name: "registry.test", IsTemporary: true}), false, ""},
		{dial(&net.DNSError{Err: "i/o timeout", Name: "registry.test", IsTimeout: true}), false, ""},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}, true, "set client for https://registry.test in hosts.toml"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}, false, ""},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, true, ""},
	} {
		s := open(t, Config{Attempts: 2, Backoff: time.Millisecond}, "registry.test/app", Auth{})
		s.hosts[0].Client.Transport = roundTrips{c.err}
		_, err := s.ManifestByTag(t.Context(), "v1", nil)
		var fetch *FetchError
		if !errors.As(err, &fetch) || !errors.Is(err, ErrUnavailable) || (len(fetch.Attempts) == 1) != c.final || !strings.Contains(err.Error(), c.advice) {
			t.Errorf("%v: %v", c.err, err)
		}
	}
}
