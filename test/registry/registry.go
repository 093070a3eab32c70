package registry

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What a registry started with Options.Basic or Options.Token accepts. The password has characters that matter to those
// who parse it.
const (
	User     = "alice"
	Password = "s3cret:with/colon"

	// passwordHash is bcrypt of Password with a fixed salt, so that nothing need be computed.
	passwordHash = "$2b$05$abcdefghijklmnopqrstuuDpYaRNhm.n6XjxTJ5c5lxtzPAPQ84Oy"
)

// startBound is how long a registry may take until it listens.
const startBound = 2 * time.Minute

// Options say what kind of registry to start.
type Options struct {
	TLS   bool // HTTPS with a certificate of a CA made for it
	Basic bool // User and Password are needed for everything
	Token bool // tokens of an own token server are needed, which wants User and Password
}

// Registry is a running registry.
type Registry struct {
	Addr     string // 127.0.0.1:port
	CAFile   string // PEM, with Options.TLS
	Storage  string // directory
	scheme   string
	identity *identity
	tokens   *tokenServer // with Options.Token
	basic    bool
	client   *http.Client
}

// Start starts a registry, which ends with the test.
func Start(t testing.TB, o Options) *Registry {
	t.Helper()
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	dir := t.TempDir()
	r := &Registry{Storage: filepath.Join(dir, "storage"), scheme: "http", basic: o.Basic, client: &http.Client{Transport: &http.Transport{}}}
	if o.TLS || o.Token {
		r.identity = newIdentity(t)
	}
	if o.Token {
		r.tokens = startTokenServer(t, r.identity)
	}
	if o.TLS {
		r.scheme = "https"
		r.CAFile = filepath.Join(dir, "ca.pem")
		write(t, r.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.identity.ca.Raw}))
		r.client.Transport = &http.Transport{TLSClientConfig: r.identity.clientTLS()}
	}
	t.Cleanup(r.client.CloseIdleConnections)
	config := filepath.Join(dir, "config.json") // YAML takes JSON
	write(t, config, r.config(t, dir, o))
	r.run(t, exec.Command(binary, "serve", config))
	return r
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *Registry) config(t testing.TB, dir string, o Options) []byte {
	t.Helper()
	type dict = map[string]any
	http := dict{"addr": "127.0.0.1:0"}
	config := dict{
		"version": "0.1",
		"log":     dict{"level": "info", "formatter": "json", "accesslog": dict{"disabled": true}},
		"storage": dict{"filesystem": dict{"rootdirectory": r.Storage}, "delete": dict{"enabled": true}},
		"http":    http,
	}
	if r.identity != nil {
		cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		write(t, cert, r.identity.certPEM)
		write(t, key, r.identity.keyPEM)
		if o.TLS {
			http["tls"] = dict{"certificate": cert, "key": key}
		}
		if o.Token {
			config["auth"] = dict{"token": dict{
				"realm": r.tokens.URL + "/token", "service": tokenService, "issuer": tokenIssuer, "rootcertbundle": cert,
			}}
		}
	}
	if o.Basic {
		htpasswd := filepath.Join(dir, "htpasswd")
		write(t, htpasswd, []byte(User+":"+passwordHash+"\n"))
		config["auth"] = dict{"htpasswd": dict{"realm": "test", "path": htpasswd}}
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// run starts the process and waits until it says where it listens.
func (r *Registry) run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	err = cmd.Start()
	_ = in.Close() // the child has its own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // may be gone already
		_ = cmd.Wait()         // was killed
		_ = out.Close()
	})
	type start struct {
		addr string
		log  string
	}
	started := make(chan start, 1)
	go func() {
		var log strings.Builder
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var line struct{ Msg string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && strings.HasPrefix(line.Msg, "listening on ") {
				addr, _, _ := strings.Cut(strings.TrimPrefix(line.Msg, "listening on "), ",")
				started <- start{addr: addr}
				_, _ = io.Copy(io.Discard, out) // the pipe must not fill up
				return
			}
			log.WriteString(lines.Text() + "\n")
		}
		started <- start{log: log.String()}
	}()
	select {
	case s := <-started:
		if s.addr == "" {
			t.Fatalf("docker-registry ended:\n%s", s.log)
		}
		r.Addr = s.addr
	case <-time.After(startBound):
		t.Fatalf("docker-registry did not listen within %v", startBound)
	}
}

// CertsDir makes a hosts.toml directory through which a client finds and trusts this registry.
func (r *Registry) CertsDir(t testing.TB) string {
	t.Helper()
	toml := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", r.URL(), r.URL())
	if r.CAFile != "" {
		toml += fmt.Sprintf("ca = %q\n", r.CAFile)
	}
	return HostsDir(t, map[string]string{r.Addr: toml})
}

// HostsDir makes a directory of hosts.toml files, given by registry.
func HostsDir(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for host, toml := range files {
		dir := filepath.Join(root, host)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "hosts.toml"), []byte(toml))
	}
	return root
}

// URL is the registry's address with its scheme.
func (r *Registry) URL() string { return r.scheme + "://" + r.Addr }

// do sends one request that must be answered with want.
func (r *Registry) do(t testing.TB, method, url, repo string, header http.Header, body []byte, want int) *http.Response {
	t.Helper()
	if !strings.Contains(url, "://") {
		url = r.URL() + url
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	switch {
	case r.basic:
		req.SetBasicAuth(User, Password)
	case r.tokens != nil:
		req.Header.Set("Authorization", "Bearer "+r.tokens.sign(t, repo, "pull", "push"))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s: %s", method, url, resp.Status, answer)
	}
	return resp
}
