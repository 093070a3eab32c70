package remote

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/criserver/criserver/imageservice/remote/credentials"
)

// TestFallback is the table of docs/configuration.md: which failure of a mirror goes on to the next endpoint.
func TestFallback(t *testing.T) {
	answer := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, c := range map[string]struct {
		mirror                     http.HandlerFunc // nil: nobody listens
		always, unavailable, never bool             // whether the image comes, from upstream
		kind                       error            // if it does not
	}{
		"401":          {answer(401), true, false, false, ErrUnauthorized},
		"403":          {answer(403), true, false, false, ErrUnauthorized},
		"404":          {answer(404), true, false, false, ErrNotFound},
		"418":          {answer(418), true, false, false, ErrInvalid},
		"429":          {answer(429), true, true, false, ErrUnavailable},
		"500":          {answer(500), true, true, false, ErrUnavailable},
		"503":          {answer(503), true, true, false, ErrUnavailable},
		"reset":        {reset, true, true, false, ErrUnavailable},
		"refused":      {nil, true, true, false, ErrUnavailable},
		"wrong digest": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("x"), len(content))) }, true, false, false, ErrInvalid},
		"wrong length": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content[1:]) }, true, false, false, ErrInvalid},
		"wants money":  {func(w http.ResponseWriter, r *http.Request) { r.Header.Del("Authorization"); basic(w, r) }, true, false, false, ErrUnauthorized},
		"loops":        {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, true, false, false, ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			mirror := "http://127.0.0.1:1"
			if c.mirror != nil {
				mirror = serveHTTP(t, false, c.mirror).URL
			}
			upstream := serveHTTP(t, false, serveContent)
			for policy, comes := range map[Fallback]bool{"": c.always, FallbackAlways: c.always, FallbackUnavailable: c.unavailable, FallbackNever: c.never} {
				upstream.requests = nil
				cfg := hosts(t, "registry.test", fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, mirror))
				cfg.Attempts, cfg.Hosts = 1, map[string]Host{"registry.test": {Fallback: policy}}
				if policy == FallbackNever { // the policy of one registry and that of all
					cfg.Hosts, cfg.Fallback = nil, policy
				}
				_, err := open(t, cfg, "registry.test/app", Auth{}).ReadBlob(t.Context(), desc(), 100)
				if comes != (err == nil) || err != nil && !errors.Is(err, c.kind) || comes != (len(upstream.requests) == 1) {
					t.Errorf("%q: %v; upstream was asked %d times", policy, err, len(upstream.requests))
				}
			}
		})
	}
}

func TestHostsOfTheHubAreOne(t *testing.T) {
	cfg := Config{Hosts: map[string]Host{"docker.io": {Proxy: Direct}, "a.test": {Proxy: "http://p:1"}}}
	for name, want := range map[string]string{"registry-1.docker.io": Direct, "docker.io": Direct, "a.test": "http://p:1", "b.test": ""} {
		if got := cfg.host(name).Proxy; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !credentials.SameRegistry("Quay.io", "quay.IO") {
		t.Error("host names have no case")
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-7": 0, "7.5": 0, "7 s": 0, "soon": 0, "+7": 0,
		"86400": 24 * time.Hour, "9223372037": longestRetryAfter, "99999999999999999999999999": longestRetryAfter,
		"Sat, 28 Nov 2026 12:01:00 GMT": time.Minute, "Sat, 28 Nov 2026 11:00:00 GMT": 0, "Sunday, 06-Nov-94 08:49:37 GMT": 0,
		"Sat Nov 28 12:00:30 2026": 30 * time.Second, "Fri, 31 Dec 9999 23:59:59 GMT": longestRetryAfter,
	} {
		if got := parseRetryAfter(text, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Sat, 28 Nov 2026 12:01:00 GMT")
	f.Add("99999999999999999999")
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		if d := parseRetryAfter(text, now); d < 0 || d > longestRetryAfter {
			t.Fatalf("%q: %v", text, d)
		}
	})
}
