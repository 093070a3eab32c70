package critest

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// Credentials that are on the node: a file of docker's form, which changes, and helpers, of which some fail.
func TestRegistryCredentials(t *testing.T) {
	r := registry.Start(t, registry.Options{TLS: true, Basic: true})
	tokens := registry.Start(t, registry.Options{Token: true})
	d := use(t)
	trust(t, d, r)
	for i, r := range []*registry.Registry{r, tokens} {
		r.PushImage(t, "team/app", "v1", small(t, fmt.Sprint("credentials ", i), "gzip"))
	}
	ref, tokenRef := r.Addr+"/team/app:v1", tokens.Addr+"/team/app:v1"
	dir := t.TempDir()
	for name, script := range map[string]string{
		"good":  fmt.Sprintf(`read -r server; echo "{\"ServerURL\":\"$server\",\"Username\":\"%s\",\"Secret\":\"%s\"}"`, registry.User, registry.Password),
		"token": fmt.Sprintf(`echo '{"Username":"<token>","Secret":"%s"}'`, registry.IdentityToken),
		"hangs": "sleep 1000", "rubbish": "echo very-secret-rubbish",
	} {
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	d.crash(t)  // a stop without pods would take the network away
	d.resume(t) // with the helpers in its PATH
	path := filepath.Join(dir, "auth.json")
	if text := d.reload(t, fmt.Sprintf("[registries]\ncredentials_file = %q\ncredential_helper_timeout = '1s'\n", path)); !strings.Contains(text, "configuration reloaded") {
		t.Fatalf("not reloaded: %s", text)
	}
	login := func(password string) string {
		return base64.StdEncoding.EncodeToString([]byte(registry.User + ":" + password))
	}
	for _, row := range []struct {
		name, file, ref string
		want            []string // of the refusal; nil: it is pulled
	}{
		{"no file", "", ref, []string{"it wants a user and password; no credentials"}},
		{"auths", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Addr, login(registry.Password)), ref, nil},
		{"of a path", fmt.Sprintf(`{"auths":{%q:{"auth":%q},%q:{"auth":%q}}}`, r.Addr, login("wrong-secret"), r.Addr+"/team", login(registry.Password)), ref, nil},
		{"changed to a wrong one", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Addr, login("wrong-secret")), ref, []string{"it refuses credentials of " + path}},
		{"not JSON", `{"auths":wrong-secret`, ref, []string{"credentials file " + path + ": not JSON"}},
		{"helper", fmt.Sprintf(`{"credHelpers":{%q:"good"}}`, r.Addr), ref, nil},
		{"store with an identity token", `{"credsStore":"token"}`, tokenRef, nil},
		{"helper that hangs", fmt.Sprintf(`{"credHelpers":{%q:"hangs"}}`, r.Addr), ref, []string{"credential helper docker-credential-hangs: for " + r.Addr + ": no answer in 1s"}},
		{"rubbish", `{"credsStore":"rubbish"}`, ref, []string{"docker-credential-rubbish", "not the JSON of a credential"}},
		{"no such helper", `{"credsStore":"absent"}`, ref, []string{"docker-credential-absent: not an executable in PATH"}},
	} {
		if row.file != "" {
			write(t, path, row.file)
		}
		err := tryPull(t, d, row.ref, nil)
		if row.want == nil {
			if err != nil {
				t.Errorf("%s: %v", row.name, err)
			}
			removeImage(t, d, row.ref)
			continue
		}
		refused(t, err, codes.Unknown, append(row.want, row.ref, "401")...)
		if strings.Contains(fmt.Sprint(err), "secret") || strings.Contains(d.lastLog(), "wrong-secret") || strings.Contains(d.lastLog(), "very-secret") {
			t.Errorf("%s: a secret is told", row.name)
		}
		if imageStatus(t, d, row.ref) != nil {
			t.Errorf("%s: it is there", row.name)
		}
		// What fails there is no matter of a registry that asks for nothing, nor of a pull with credentials of its own.
		if err := tryPull(t, d, suite.busybox, nil); err != nil {
			t.Errorf("%s: another registry: %v", row.name, err)
		}
	}
	if err := tryPull(t, d, ref, &cri.AuthConfig{Username: registry.User, Password: registry.Password}); err != nil {
		t.Errorf("with credentials of the request: %v", err)
	}
	removeImage(t, d, ref)
}

// mirrorOf serves what the suite's registry has, a blob as answer wants to.
func mirrorOf(t *testing.T, asked *atomic.Int32, blob func(w http.ResponseWriter, r *http.Request, serve http.Handler)) *httptest.Server {
	t.Helper()
	to, err := url.Parse(suite.registry.URL())
	if err != nil {
		t.Fatal(err)
	}
	behind := httputil.NewSingleHostReverseProxy(to)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if strings.Contains(r.URL.Path, "/blobs/") {
			blob(w, r, behind)
			return
		}
		behind.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// hostsFile puts a hosts.toml for a registry in place, for the length of the test.
func hostsFile(t *testing.T, d *daemon, host, text string) {
	t.Helper()
	dir := filepath.Join(d.certs(), host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	write(t, filepath.Join(dir, "hosts.toml"), text)
}

// slowly sends a byte now and then until the client goes.
func slowly(w http.ResponseWriter, r *http.Request, size string) {
	w.Header().Set("Content-Length", size)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for r.Context().Err() == nil {
		if _, err := w.Write([]byte{0x1f}); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		<-tick.C
	}
}

// Mirrors that are down, trickle or ask for patience: the next endpoint is asked as the policy says, and what happened at each
// stands in the error, which begins with the word that the kubelet looks for.
func TestRegistryMirrors(t *testing.T) {
	d := use(t)
	img := small(t, "mirrors", "gzip")
	suite.registry.PushImage(t, "mirrored", "v1", img)
	const host = "registry.critest"
	ref := host + "/mirrored:v1"
	var asked atomic.Int32
	slow := mirrorOf(t, &asked, func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		if !strings.Contains(r.URL.Path, img.Layers[0].Digest.String()) {
			serve.ServeHTTP(w, r)
			return
		}
		slowly(w, r, fmt.Sprint(img.Layers[0].Size))
	})
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(busy.Close)
	const dead = "http://127.0.0.1:1"
	mirrors := func(urls ...string) string {
		text := fmt.Sprintf("server = %q\n", urls[len(urls)-1])
		for _, u := range urls[:len(urls)-1] {
			text += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", u)
		}
		return text
	}
	const registries = "[registries]\nthroughput_window = '2s'\ncredential_helper_timeout = '1s'\nmax_wait = '1s'\nattempts = 2\n"
	if d.reload(t, registries+"credentials_file = ''\n[registry_hosts.'never.critest']\nfallback = 'never'\n") == "" {
		t.Fatal("not reloaded")
	}
	for _, row := range []struct {
		name, host, hosts string
		want              []string // of the refusal; nil: it is pulled
	}{
		{"first one is dead", host, mirrors(dead, suite.registry.URL()), nil},
		{"first one asks for patience", host, mirrors(busy.URL, suite.registry.URL()), nil},
		{"first one trickles", host, mirrors(slow.URL, suite.registry.URL()), nil},
		{"all are dead", host, mirrors(dead, busy.URL), []string{"manifest v1", "attempt 1: " + dead + "/v2/mirrored/manifests/v1: after ", "connection refused", "attempt 2: " + busy.URL, "503 Service Unavailable"}},
		{"all trickle", host, mirrors(slow.URL), []string{"stage layers", slow.URL, "too slow: ", "at least 20480 are wanted", "attempt 2"}},
		{"no other one is to be asked", "never.critest", mirrors(dead, suite.registry.URL()), []string{dead, "connection refused"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			hostsFile(t, d, row.host, row.hosts)
			ref := strings.Replace(ref, host, row.host, 1)
			err := tryPull(t, d, ref, nil)
			if row.want == nil {
				if err != nil {
					t.Error(err)
				}
				removeImage(t, d, ref)
				return
			}
			refused(t, err, codes.Unknown, row.want...)
			if text := status.Convert(err).Message(); !strings.HasPrefix(text, "RegistryUnavailable: ") || strings.Contains(text, suite.registry.Addr) {
				t.Errorf("%s", text)
			}
			if imageStatus(t, d, ref) != nil {
				t.Error("it is there")
			}
		})
	}
	if asked.Load() == 0 {
		t.Error("the mirror was not asked")
	}
}
