package remote

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote/credentials"
)

// issuer is a token server that counts, and a registry's side of it: only the newest token is good.
type issuer struct {
	*server
	count atomic.Int32
	life  string // what expires_in says, if anything
}

func newIssuer(t *testing.T, life string) *issuer {
	i := &issuer{life: life}
	i.server = serveHTTP(t, false, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"token":"t%d"%s}`, i.count.Add(1), i.life) // the client may be gone
	})
	return i
}

func (i *issuer) good(r *http.Request) bool {
	return r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", i.count.Load()) && i.count.Load() > 0
}

func (i *issuer) challenge(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="registry.test",scope="repository:app:pull"`, i.URL))
	w.WriteHeader(http.StatusUnauthorized)
}

// TestTokensThatExpireInAPull has every fourth request of a blob refused and the others broken off, as in a pull that takes hours.
func TestTokensThatExpireInAPull(t *testing.T) {
	blob := bytes.Repeat([]byte("0123456789"), 1000)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	tokens := newIssuer(t, "")
	var served atomic.Int32
	registry := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if !tokens.good(r) {
			tokens.challenge(w)
			return
		}
		n := served.Add(1)
		if n%4 == 0 {
			tokens.count.Add(1) // the token is good no more
			tokens.challenge(w)
			return
		}
		var from int
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from) // none: from the begin
		end := min(from+1000, len(blob))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(blob[from:end])
		if end < len(blob) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	s := open(t, Config{Backoff: time.Microsecond, MaxBackoff: time.Microsecond, Attempts: 50}, registry.host()+"/app", alice)
	if got, err := s.ReadBlob(t.Context(), desc, 1<<20); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := tokens.count.Load(); n < 5 {
		t.Errorf("%d tokens", n)
	}
}

// TestTokensAreRenewedBeforeTheyExpire sends no token that its server said is dead.
func TestTokensAreRenewedBeforeTheyExpire(t *testing.T) {
	tokens := newIssuer(t, `,"expires_in":0.05`)
	var refused atomic.Int32
	registry := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if !tokens.good(r) {
			refused.Add(1)
			tokens.challenge(w)
			return
		}
		serveContent(w, r)
	})
	s := open(t, Config{}, registry.host()+"/app", alice)
	for range 3 {
		if _, err := s.ManifestByTag(t.Context(), "v1", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond) // its life
	}
	if tokens.count.Load() < 3 || refused.Load() != 1 {
		t.Errorf("%d tokens, %d refusals", tokens.count.Load(), refused.Load())
	}
}

func TestManyRequestsShareOneToken(t *testing.T) {
	tokens := newIssuer(t, "")
	registry := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if !tokens.good(r) {
			tokens.challenge(w)
			return
		}
		serveContent(w, r)
	})
	s := open(t, Config{}, registry.host()+"/app", alice)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.ReadBlob(t.Context(), desc(), 100); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := tokens.count.Load(); n != 1 {
		t.Errorf("%d tokens", n)
	}
}

// TestWhatTokenServersAreAsked holds the two ways of docker: GET with a password, POST with an identity token.
func TestWhatTokenServersAreAsked(t *testing.T) {
	for name, c := range map[string]struct {
		auth          Auth
		method, shows string // Authorization
	}{
		"anonymous":      {Auth{}, "GET", ""},
		"password":       {alice, "GET", "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:hunter2"))},
		"identity token": {Auth{IdentityToken: "id"}, "POST", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got http.Request
			tokens := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
				_ = r.ParseForm() // what is missing is seen below
				got = *r
				_, _ = io.WriteString(w, `{"access_token":"t"}`)
			})
			registry := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer t" {
					w.Header().Add("WWW-Authenticate", `Basic realm="x"`)
					w.Header().Add("WWW-Authenticate", fmt.Sprintf(`Negotiate abc==, Bearer Realm="%s/token?x=1",service="a \"b\""`, tokens.URL))
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				serveContent(w, r)
			})
			cfg := hosts(t, registry.host(), fmt.Sprintf("server = %q\n[header]\nX-Key = \"operator\"\n", registry.URL))
			if _, err := open(t, cfg, registry.host()+"/team/app", c.auth).ManifestByTag(t.Context(), "v1", nil); err != nil {
				t.Fatal(err)
			}
			if got.Method != c.method || got.Header.Get("Authorization") != c.shows || got.Header.Get("X-Key") != "" ||
				got.Form.Get("service") != `a "b"` || got.Form.Get("scope") != "repository:team/app:pull" || got.URL.Query().Get("x") != "1" {
				t.Errorf("asked with %s %v %v", got.Method, got.Header, got.Form)
			}
			if c.auth.IdentityToken != "" && (got.PostForm.Get("refresh_token") != "id" || got.PostForm.Get("grant_type") != "refresh_token" || got.URL.Query().Get("refresh_token") != "") {
				t.Errorf("form %v", got.PostForm)
			}
		})
	}
}

// credentialsFile gives everybody named the password hunter2, and others no more.
func credentialsFile(t *testing.T, hosts ...string) credentials.Config {
	t.Helper()
	var entries []string
	for _, h := range hosts {
		entries = append(entries, fmt.Sprintf("%q:{\"auth\":%q}", h, base64.StdEncoding.EncodeToString([]byte("of-"+h+":hunter2"))))
	}
	name := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(name, []byte(`{"auths":{`+strings.Join(entries, ",")+`}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return credentials.Config{File: name}
}

// TestCredentialsOfTheFile: each host sees its own, the pull's win, and none that did not ask sees any.
func TestCredentialsOfTheFile(t *testing.T) {
	shown := func(user string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":hunter2")) }
	mirror := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		basic(w, r)
	})
	upstream, public := serveHTTP(t, false, basic), serveHTTP(t, false, serveContent)
	cfg := hosts(t, upstream.host(), fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, mirror.URL))
	cfg.Credentials = credentialsFile(t, mirror.host(), upstream.host(), public.host())
	for name, c := range map[string]struct {
		auth Auth
		want string // user that upstream sees
	}{
		"of the file":     {Auth{}, "of-" + upstream.host()},
		"of the pull":     {alice, "alice"},
		"of another host": {Auth{Username: "eve", Password: "hunter2", ServerAddress: "other.test"}, "of-" + upstream.host()},
	} {
		mirror.requests, upstream.requests = nil, nil
		if _, err := open(t, cfg, upstream.host()+"/app", c.auth).ManifestByTag(t.Context(), "v1", nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := upstream.seen("Authorization"); len(got) != 2 || got[0] != "" || got[1] != shown(c.want) {
			t.Errorf("%s: upstream saw %q", name, got)
		}
		if got := mirror.seen("Authorization"); len(got) != 2 || got[0] != "" || got[1] != shown("of-"+mirror.host()) {
			t.Errorf("%s: the mirror saw %q", name, got)
		}
	}
	if _, err := open(t, cfg, public.host()+"/app", Auth{}).ManifestByTag(t.Context(), "v1", nil); err != nil || strings.Join(public.seen("Authorization"), "") != "" {
		t.Errorf("%v; a registry that asks for nothing saw %q", err, public.seen("Authorization"))
	}
}

// TestWhoseCredentialsWereRefused is told, and of a source that fails why, without a secret.
func TestWhoseCredentialsWereRefused(t *testing.T) {
	refusing := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Authorization")
		basic(w, r)
	})
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-rubbish"), []byte("#!/bin/sh\necho hunter2\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	helper := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(helper, []byte(`{"credsStore":"rubbish"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	file := credentialsFile(t, refusing.host())
	for name, c := range map[string]struct {
		auth Auth
		from credentials.Config
		says string
	}{
		"none":              {Auth{}, credentials.Config{}, "it wants a user and password; no credentials"},
		"of the pull":       {alice, credentials.Config{}, "it refuses credentials of the pull request"},
		"of the file":       {Auth{}, file, "it refuses credentials of " + file.File},
		"a registry token":  {Auth{RegistryToken: "hunter2"}, credentials.Config{}, "with the registry token of the pull request"},
		"an identity token": {Auth{IdentityToken: "hunter2"}, credentials.Config{}, "it wants a user and password; credentials of the pull request"},
		"a helper":          {Auth{}, credentials.Config{File: helper}, "credential helper docker-credential-rubbish: for " + refusing.host()},
	} {
		cfg := Config{Attempts: 3, Backoff: time.Millisecond, Credentials: c.from}
		_, err := open(t, cfg, refusing.host()+"/app", c.auth).ManifestByTag(t.Context(), "v1", nil)
		var fetch *FetchError
		if !errors.As(err, &fetch) || len(fetch.Attempts) != 1 || !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChallenges(t *testing.T) {
	for text, want := range map[string]string{
		`Bearer realm="https://a/token",service="s",scope="repository:x:pull,push"`: `bearer map[realm:https://a/token scope:repository:x:pull,push service:s]`,
		`BEARER Realm = "x" , error=invalid_token`:                                  `bearer map[error:invalid_token realm:x]`,
		`Bearer realm=https://a/token,service=s`:                                    `bearer map[realm:https://a/token service:s]`,
		`Basic realm="a \"b\" \\", Bearer realm="y"`:                                `bearer map[realm:y]`,
		`Basic realm="a"`:                  `basic map[realm:a]`,
		`Basic`:                            `basic map[]`,
		`Negotiate`:                        ``,
		`Negotiate YII==, Basic realm="x"`: `basic map[realm:x]`,
		`Digest realm="x", nonce="Bearer realm=y"`:          ``,
		`Bearer realm="https://a",realm="https://b"`:        ``,
		`Bearer realm="https://a",realm="https://b", Basic`: ``,
		`Bearer realm="never closed`:                        `bearer map[realm:never closed]`,
		`="x", Bearer realm="y"`:                            ``,
		`realm="x", Bearer realm="y"`:                       ``,
		"Bearer\trealm=\"x\"":                               `bearer map[realm:x]`,
		``:                                                  ``,
	} {
		got := ""
		if c, found := choose(parseChallenges(text)); found {
			got = fmt.Sprintf("%s %v", c.scheme, c.params)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull"`)
	f.Add(`Basic realm="a \"b\"", Bearer realm=x,error="invalid_token"`)
	f.Add(`Negotiate YII==, Digest a=b, ,,= "`)
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range parseChallenges(text) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || len(c.params) > len(text) {
				t.Fatalf("%+v", c)
			}
			for name := range c.params {
				if name == "" || name != strings.ToLower(name) {
					t.Fatalf("parameter %q", name)
				}
			}
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"token":"a","access_token":"b","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"token":"a","expires_in":1e300}`))
	f.Add([]byte(`{"token":"a\nb","expires_in":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		token, life, err := parseToken(data)
		if err != nil {
			return
		}
		if token == "" || life < 0 || life > maxLife {
			t.Fatalf("%q for %v", token, life)
		}
		if strings.ContainsAny(token, "\r\n\x00 ") {
			t.Fatalf("token %q", token)
		}
	})
}
