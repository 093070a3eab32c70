package remote

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy passes everything on to one server, whatever name it is asked for.
func proxy(t *testing.T, to *server) (p *server, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var names []string
	p = serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		names = append(names, r.Method+" "+r.Host)
		mu.Unlock()
		if r.Method != http.MethodConnect {
			serveContent(w, r)
			return
		}
		up, err := net.Dial("tcp", to.host())
		if err != nil {
			t.Error(err)
			return
		}
		down, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n") // the client may be gone
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(up, down); _ = up.Close() })
		wg.Go(func() { _, _ = io.Copy(down, up); _ = down.Close() })
		wg.Wait()
	})
	return p, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return names
	}
}

func TestProxies(t *testing.T) {
	const registry = "registry.test:5000"
	target := serveHTTP(t, true, serveContent)
	for name, c := range map[string]struct {
		env     string // value of HTTPS_PROXY and HTTP_PROXY, P stands for the proxy
		no      string // NO_PROXY
		own     string // of the host
		scheme  string
		through string // what the proxy is asked; empty: it is not
	}{
		"environment":          {"http://user:hunter2@P", "", "", "https", "CONNECT " + registry},
		"plain HTTP":           {"http://P", "", "", "http", "GET " + registry},
		"NO_PROXY":             {"http://P", "other.test,.test", "", "https", ""},
		"NO_PROXY for another": {"http://P", "other.test", "", "https", "CONNECT " + registry},
		"of the host":          {"http://127.0.0.1:1", ".test", "http://P", "https", "CONNECT " + registry},
		"direct":               {"http://P", "", Direct, "https", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, asked := proxy(t, target)
			here := func(s string) string { return strings.ReplaceAll(s, "P", p.host()) }
			for _, key := range []string{"HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"} {
				t.Setenv(key, here(c.env))
			}
			t.Setenv("NO_PROXY", c.no)
			t.Setenv("no_proxy", c.no)
			cfg := hosts(t, registry, fmt.Sprintf("server = \"%s://%s\"\nskip_verify = true\n", c.scheme, registry))
			if c.scheme == "http" {
				cfg = hosts(t, registry, fmt.Sprintf("server = \"http://%s\"\n", registry))
			}
			cfg.Attempts, cfg.Backoff = 1, time.Millisecond
			if c.own != "" {
				cfg.Hosts = map[string]Host{registry: {Proxy: here(c.own)}}
			}
			_, err := open(t, cfg, registry+"/app", Auth{}).ManifestByTag(t.Context(), "v1", nil)
			if got := strings.Join(asked(), ", "); got != c.through || (err == nil) != (c.through != "") { // nothing else knows the name
				t.Errorf("the proxy was asked %q, %v", got, err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("a proxy that is not there", func(t *testing.T) {
		cfg := hosts(t, registry, fmt.Sprintf("server = \"https://%s\"\n", registry))
		cfg.Attempts, cfg.Hosts = 1, map[string]Host{registry: {Proxy: "http://127.0.0.1:1"}}
		_, err := open(t, cfg, registry+"/app", Auth{}).ManifestByTag(t.Context(), "v1", nil)
		if err == nil || !strings.Contains(err.Error(), "proxyconnect tcp: dial tcp 127.0.0.1:1") {
			t.Error(err)
		}
	})
}

// A proxy that refuses is asked once: nothing gets better by asking again.
func TestProxiesThatRefuse(t *testing.T) {
	const registry = "registry.test:5000"
	for name, c := range map[string]struct {
		scheme, user string
		code         int
		want         string
	}{
		"no credentials":             {"https", "", 407, "answers 407 Proxy Authentication Required: it wants a user and password, which HTTPS_PROXY and HTTP_PROXY"},
		"wrong credentials":          {"https", "user:hunter2@", 407, "it does not take the user and password of HTTPS_PROXY or HTTP_PROXY"},
		"no credentials, plain HTTP": {"http", "", 407, "it wants a user and password"},
		"not to be reached":          {"https", "", 403, "answers 403 Forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			p := serveHTTP(t, false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(c.code) })
			for _, key := range []string{"HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"} {
				t.Setenv(key, "http://"+c.user+p.host())
			}
			cfg := hosts(t, registry, fmt.Sprintf("server = \"%s://%s\"\n", c.scheme, registry))
			cfg.Attempts, cfg.Backoff = 5, time.Millisecond
			_, err := open(t, cfg, registry+"/app", Auth{}).ManifestByTag(t.Context(), "v1", nil)
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "proxy "+p.host()+" ") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v", err)
			}
			if asked := len(p.seen("Host")); asked != 1 {
				t.Errorf("the proxy was asked %d times", asked)
			}
		})
	}
}
