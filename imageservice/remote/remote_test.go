package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote/credentials"
)

// server remembers what it was asked.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
}

func serveHTTP(t *testing.T, tls bool, answer http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		answer(w, r)
	})
	s.Server = httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = quiet
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// quiet is a log of clients that refuse.
var quiet = log.New(io.Discard, "", 0)

func (s *server) host() string { return s.Listener.Addr().String() }

// seen returns one header of every request.
func (s *server) seen(header string) (values []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		values = append(values, r.Header.Get(header))
	}
	return values
}

func hosts(t *testing.T, registry, toml string) Config {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, registry), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, registry, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{CertsDirs: []string{root}, Backoff: time.Millisecond, Attempts: 4}
}

func open(t *testing.T, cfg Config, ref string, auth Auth) *Session {
	t.Helper()
	s, err := New(cfg).Open(repository(ref), auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func repository(ref string) reference.Named {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		panic(err)
	}
	return reference.TrimNamed(named)
}

var content = []byte(`{"schemaVersion":2}`)

func serveContent(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	_, _ = w.Write(content) // the client may be gone
}

func desc() ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
}

// basic answers those who show a password and challenges the others.
func basic(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	serveContent(w, r)
}

var alice = Auth{Username: "alice", Password: "hunter2"}

func TestMirrorsComeFirstAndAreToldWhoseImageIsMeant(t *testing.T) {
	mirror := serveHTTP(t, false, serveContent)
	upstream := serveHTTP(t, false, func(http.ResponseWriter, *http.Request) { t.Error("upstream was asked") })
	cfg := hosts(t, "registry.test:5000", fmt.Sprintf("server = %q\n[host.%q]\n[host.%q.header]\nX-Key = \"operator\"\n", upstream.URL, mirror.URL, mirror.URL))
	s := open(t, cfg, "registry.test:5000/team/app", Auth{})
	m, err := s.ManifestByTag(t.Context(), "v1", []string{"a/b"})
	if err != nil || !bytes.Equal(m.Bytes, content) || m.Digest != desc().Digest || m.MediaType != ocispec.MediaTypeImageManifest {
		t.Fatalf("%+v, %v", m, err)
	}
	r := mirror.requests[len(mirror.requests)-1]
	if r.URL.Path != "/v2/team/app/manifests/v1" || r.URL.Query().Get("ns") != "registry.test:5000" || r.Header.Get("X-Key") != "operator" || r.Header.Get("Accept") != "a/b" {
		t.Errorf("the mirror was asked for %s with %v", r.URL, r.Header)
	}
}

func TestEveryAttemptIsListedAndTheLastOneCounts(t *testing.T) {
	refusing := serveHTTP(t, false, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"not\nyou"}]}`)
	})
	upstream := serveHTTP(t, false, http.NotFound)
	cfg := hosts(t, "registry.test", fmt.Sprintf("server = %q\n[host.%q]\n[host.\"http://127.0.0.1:1\"]\n", upstream.URL, refusing.URL))
	s := open(t, cfg, "registry.test/app", Auth{})
	for what, ask := range map[string]func() error{
		"manifest v1": func() error { _, err := s.ManifestByTag(t.Context(), "v1", nil); return err },
		"manifest " + desc().Digest.String(): func() error {
			_, err := s.ManifestByDigest(t.Context(), desc().Digest, nil)
			return err
		},
		"blob " + desc().Digest.String(): func() error { _, err := s.ReadBlob(t.Context(), desc(), 100); return err },
	} {
		err := ask()
		var fetch *FetchError
		if !errors.As(err, &fetch) || fetch.What != what || len(fetch.Attempts) < 3 {
			t.Fatalf("%s: %v", what, err)
		}
		if !errors.Is(fetch.Attempts[0].Err, ErrUnauthorized) || !errors.Is(fetch.Attempts[1].Err, ErrUnavailable) || !errors.Is(fetch.Attempts[2].Err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
		if !strings.Contains(err.Error(), "403 Forbidden (DENIED: not you)") || !strings.Contains(err.Error(), "127.0.0.1:1/v2/app/") || strings.Contains(err.Error(), "ns=") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestMirrorThatServesSomethingElseIsPassedOver(t *testing.T) {
	lying := serveHTTP(t, false, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("x"), len(content))) })
	upstream := serveHTTP(t, false, serveContent)
	cfg := hosts(t, "registry.test", fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, lying.URL))
	s := open(t, cfg, "registry.test/app", Auth{})
	if got, err := s.ReadBlob(t.Context(), desc(), 100); err != nil || !bytes.Equal(got, content) {
		t.Errorf("blob %q, %v", got, err)
	}
	if m, err := s.ManifestByDigest(t.Context(), desc().Digest, nil); err != nil || !bytes.Equal(m.Bytes, content) {
		t.Errorf("manifest %q, %v", m.Bytes, err)
	}
}

func TestMirrorWithoutResolveIsNotAskedForTags(t *testing.T) {
	mirror := serveHTTP(t, false, serveContent)
	upstream := serveHTTP(t, false, serveContent)
	cfg := hosts(t, "registry.test", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", upstream.URL, mirror.URL))
	s := open(t, cfg, "registry.test/app", Auth{})
	if _, err := s.ManifestByTag(t.Context(), "v1", nil); err != nil || len(mirror.requests) != 0 {
		t.Errorf("%v; the mirror was asked %d times for a tag", err, len(mirror.requests))
	}
	if _, err := s.ManifestByDigest(t.Context(), desc().Digest, nil); err != nil || len(mirror.requests) != 1 {
		t.Errorf("%v; the mirror was asked %d times for a digest", err, len(mirror.requests))
	}
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	for name, c := range map[string]struct {
		address          string // of the credentials; U and M stand for the upstream and the mirror
		mirror, upstream bool   // who may see them
	}{
		"of the registry":        {"", false, false},
		"of the server endpoint": {"http://U/v2/", false, true},
		"of the mirror":          {"M", true, false},
		"of somebody else":       {"https://example.com", false, false},
		"of the registry, named": {"registry.test", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			mirror, upstream := serveHTTP(t, false, basic), serveHTTP(t, false, basic)
			cfg := hosts(t, "registry.test", fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, mirror.URL))
			auth := alice
			auth.ServerAddress = strings.NewReplacer("U", upstream.host(), "M", mirror.host()).Replace(c.address)
			s := open(t, cfg, "registry.test/app", auth)
			_, err := s.ManifestByTag(t.Context(), "v1", nil)
			if (err == nil) != (c.mirror || c.upstream) || err != nil && !errors.Is(err, ErrUnauthorized) {
				t.Error(err)
			}
			for who, s := range map[string]struct {
				*server
				may bool
			}{"mirror": {mirror, c.mirror}, "upstream": {upstream, c.upstream}} {
				if sent := strings.Join(s.seen("Authorization"), "") != ""; sent != s.may {
					t.Errorf("%s saw credentials: %v", who, sent)
				}
			}
		})
	}
}

func TestCredentialsAreNotSentAlongRedirects(t *testing.T) {
	thief := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) { basic(w, r) })
	registry := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			basic(w, r)
			return
		}
		http.Redirect(w, r, thief.URL+"/signed?secret=1", http.StatusTemporaryRedirect)
	})
	for name, auth := range map[string]Auth{"basic": alice, "bearer": {RegistryToken: "token"}} {
		cfg := hosts(t, registry.host(), fmt.Sprintf("[host.%q]\n[host.%q.header]\nX-Key = \"operator\"\n", registry.URL, registry.URL))
		s := open(t, cfg, registry.host()+"/app", auth)
		_, err := s.ReadBlob(t.Context(), desc(), 100)
		if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(thief.requests) == 0 {
		t.Error("the redirect was not followed")
	}
	for _, header := range []string{"Authorization", "X-Key"} {
		if got := strings.Join(thief.seen(header), ""); got != "" {
			t.Errorf("%s was sent along: %q", header, got)
		}
	}
}

func TestTokenServerOverWeakerConnectionGetsNothing(t *testing.T) {
	tokens := serveHTTP(t, false, serveContent)
	registry := serveHTTP(t, true, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
	})
	cfg := hosts(t, registry.host(), fmt.Sprintf("[host.%q]\nca = %q\n", registry.URL, caFile(t, registry)))
	_, err := open(t, cfg, registry.host()+"/app", alice).ManifestByTag(t.Context(), "v1", nil)
	if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "token server at") || len(tokens.requests) != 0 {
		t.Errorf("%v; %d requests to the token server", err, len(tokens.requests))
	}
}

func TestFailedTokenRequestIsNotRemembered(t *testing.T) {
	var asked int
	tokens := serveHTTP(t, false, func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked <= 2 { // both ways of asking, of the first attempt
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, `{"token":"t","access_token":"t"}`)
	})
	registry := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, tokens.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		serveContent(w, r)
	})
	cfg := Config{Backoff: time.Millisecond}
	s := open(t, cfg, registry.host()+"/app", alice)
	if _, err := s.ManifestByTag(t.Context(), "v1", nil); err != nil {
		t.Error(err)
	}
}

func TestWrongHostsFilesAreErrors(t *testing.T) {
	for name, toml := range map[string]string{
		"syntax":     "server = \n",
		"capability": "[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"fly\"]\n",
		"ca":         "[host.\"https://127.0.0.1:1\"]\nca = \"/nonexistent\"\n",
	} {
		named, err := reference.ParseDockerRef("registry.test/app")
		if err != nil {
			t.Fatal(err)
		}
		if s, err := New(hosts(t, "registry.test", toml)).Open(named, Auth{}); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		} else if !strings.Contains(err.Error(), "registry.test") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuthPrintsNothing(t *testing.T) {
	secret := Auth{Username: "hunter2", Password: "hunter2", Auth: "hunter2", IdentityToken: "hunter2", RegistryToken: "hunter2"}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "auth", secret)
	holder := struct{ A Auth }{secret}
	for _, text := range []string{fmt.Sprint(secret), fmt.Sprintf("%v %+v %#v %s", secret, secret, secret, secret), fmt.Sprintf("%v %+v", holder, &holder), logged.String()} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, redacted) {
			t.Errorf("prints %q", text)
		}
	}
}

func TestAuthFields(t *testing.T) {
	for _, c := range []struct {
		auth  Auth
		want  credentials.Credential
		fails bool
	}{
		{Auth{}, credentials.Credential{}, false},
		{Auth{Username: "u", Password: "p", IdentityToken: "i", Auth: "!", RegistryToken: "r"}, credentials.Credential{Username: "u", Password: "p"}, false},
		{Auth{IdentityToken: "i", Auth: "!", RegistryToken: "r"}, credentials.Credential{IdentityToken: "i"}, false},
		{Auth{Auth: "dTpwOjEA", RegistryToken: "r"}, credentials.Credential{Username: "u", Password: "p:1"}, false}, // u:p:1 and a NUL, as some tools append
		{Auth{RegistryToken: "r"}, credentials.Credential{RegistryToken: "r"}, false},
		{Auth{Auth: "dQ=="}, credentials.Credential{}, true},
		{Auth{Auth: "%"}, credentials.Credential{}, true},
	} {
		got, err := c.auth.credential()
		c.want.Origin = got.Origin
		if (err != nil) != c.fails || err == nil && got != c.want {
			t.Errorf("%q: %+v, %v", c.auth.Auth, got, err)
		}
	}
	for _, c := range []struct {
		address, registry, endpoint string
		want                        bool
	}{
		{"", "docker.io", "registry-1.docker.io", true},
		{"https://index.docker.io/v1/", "docker.io", "registry-1.docker.io", true},
		{"docker.io", "quay.io", "quay.io", false},
		{"", "quay.io", "mirror.test", false},
		{"", "quay.io", "quay.io:443", false},
		{"quay.io/team", "quay.io", "quay.io", true},
		{"evil.test/quay.io", "quay.io", "quay.io", false},
		{"https://quay.io@evil.test", "quay.io", "quay.io", false},
	} {
		got, err := Auth{ServerAddress: c.address}.belongsTo(c.registry, c.endpoint)
		if err != nil || got != c.want {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	if _, err := (Auth{ServerAddress: "https://"}).belongsTo("a", "a"); err == nil {
		t.Error("an address without a host is accepted")
	}
}

func TestTheEndOfTheContextIsTold(t *testing.T) {
	slow := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	s := open(t, Config{Backoff: time.Hour, MaxBackoff: time.Hour}, slow.host()+"/app", Auth{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.ManifestByTag(ctx, "v1", nil)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "503") {
		t.Errorf("%v", err)
	}
}
