package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// identity is a certificate that signs itself, in files.
func identity(t *testing.T) (cert *x509.Certificate, certFile, keyFile, both string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	dir := t.TempDir()
	put := func(name string, data []byte) string {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	return cert, put("client.cert", certPEM), put("client.key", keyPEM), put("both.pem", append(certPEM, keyPEM...))
}

// mutual is an HTTPS registry that wants the client's certificate.
func mutual(t *testing.T, client *x509.Certificate) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(serveContent))
	s.Config.ErrorLog = quiet
	pool := x509.NewCertPool()
	pool.AddCert(client)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// TestHostsKeys holds every key of hosts.toml that a pull minds, against listeners that speak TLS.
func TestHostsKeys(t *testing.T) {
	client, certFile, keyFile, both := identity(t)
	for name, c := range map[string]struct {
		toml string // U stands for host:port, CA for its certificate
		says string // of the error; empty: the image comes
		sees string // the path that is asked for
	}{
		"ca":                          {"server = \"https://U\"\nca = \"CA\"", "", ""},
		"ca, several":                 {"server = \"https://U\"\nca = [\"CA\", \"CERT\"]", "", ""},
		"ca of somebody else":         {"server = \"https://U\"\nca = \"CERT\"", "unknown authority", ""},
		"ca that is not there":        {"server = \"https://U\"\nca = \"/nonexistent\"", "/nonexistent", ""},
		"skip_verify":                 {"server = \"https://U\"\nskip_verify = true", "", ""},
		"skip_verify, not":            {"server = \"https://U\"\nskip_verify = false", "unknown authority", ""},
		"skip_verify of another host": {"server = \"https://U\"\n[host.\"https://127.0.0.1:1\"]\nskip_verify = true", "unknown authority", ""},
		"host before server":          {"server = \"https://127.0.0.1:1\"\n[host.\"https://U\"]\nca = \"CA\"", "", "/v2/team/app/manifests/v1"},
		"server without scheme":       {"server = \"U\"\nca = \"CA\"", "", ""},
		"path":                        {"server = \"https://U/mirror\"\nca = \"CA\"", "", "/mirror/v2/team/app/manifests/v1"},
		"path with v2":                {"server = \"https://U/v2/mirror\"\nca = \"CA\"", "", "/v2/mirror/v2/team/app/manifests/v1"},
		"override_path":               {"server = \"https://U/a/b\"\nca = \"CA\"\noverride_path = true", "", "/a/b/team/app/manifests/v1"},
		"capabilities, none for tags": {"server = \"https://U\"\nca = \"CA\"\ncapabilities = [\"pull\"]", "hosts.toml has no endpoint with the capability", ""},
		"header":                      {"server = \"https://U\"\nca = \"CA\"\n[header]\nX-Key = [\"operator\", \"2\"]", "", ""},
		"header, authorization":       {"server = \"https://U\"\nca = \"CA\"\n[header]\nAuthorization = \"Basic eDp5\"", "", ""},
		"dial_timeout":                {"server = \"https://U\"\nca = \"CA\"\ndial_timeout = \"5s\"", "", ""},
		"dial_timeout, wrong":         {"server = \"https://U\"\nca = \"CA\"\ndial_timeout = \"soon\"", "soon", ""},
		"client, wanted":              {"server = \"https://M\"\nca = \"CA\"", "to show one, set client for https://", ""},
		"client, one file":            {"server = \"https://M\"\nca = \"CA\"\nclient = \"BOTH\"", "", ""},
		"client, certificate and key": {"server = \"https://M\"\nca = \"CA\"\nclient = [[\"CERT\", \"KEY\"]]", "", ""},
		"client, key of another":      {"server = \"https://M\"\nca = \"CA\"\nclient = [[\"CERT\", \"CERT\"]]", "X509 key pair", ""},
		"a wrong type":                {"server = 7", "", "-"},
		"an unknown capability":       {"server = \"https://U\"\ncapabilities = [\"fly\"]", "unknown capability fly", ""},
	} {
		t.Run(name, func(t *testing.T) {
			u := serveHTTP(t, true, serveContent)
			m := mutual(t, client)
			fill := strings.NewReplacer("https://U", u.URL, "\"U", "\""+u.host(), "https://M", m.URL, "CA", caFile(t, u), "CERT", certFile, "KEY", keyFile, "BOTH", both)
			cfg := hosts(t, "registry.test", fill.Replace(c.toml)+"\n")
			cfg.Attempts = 1
			err := pullTag(cfg)
			if c.sees == "-" {
				if err == nil {
					t.Error("accepted")
				}
				return
			}
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v", err)
			}
			if err == nil && c.sees != "" && u.requests[0].URL.Path != c.sees {
				t.Errorf("asked for %s", u.requests[0].URL)
			}
			if strings.HasPrefix(name, "header") && u.requests[0].Header.Get("X-Key")+u.requests[0].Header.Get("Authorization") == "" {
				t.Errorf("headers %v", u.requests[0].Header)
			}
		})
	}
}

func pullTag(cfg Config) error {
	s, err := New(cfg).Open(repository("registry.test/team/app"), Auth{})
	if err != nil {
		return err
	}
	defer s.Close()
	_, err = s.ManifestByTag(context.Background(), "v1", nil)
	return err
}

// TestWhichDirectoryCounts is about their names, and which of several roots knows a host.
func TestWhichDirectoryCounts(t *testing.T) {
	good, bad := serveHTTP(t, false, serveContent), serveHTTP(t, false, http.NotFound)
	for name, c := range map[string]struct {
		first, second string // the directory in either root that leads to the good registry; a second one leads to a bad one
		ref           string
	}{
		"host and port":            {"registry.test:5000", "", "registry.test:5000"},
		"with underscores":         {"registry.test_5000_", "", "registry.test:5000"},
		"default":                  {"_default", "", "registry.test:5000"},
		"host before default":      {"registry.test", "_default", "registry.test"},
		"the first root":           {"registry.test", "registry.test", "registry.test"},
		"only the second root has": {"", "registry.test", "registry.test"},
	} {
		t.Run(name, func(t *testing.T) {
			roots := []string{t.TempDir(), t.TempDir()}
			put := func(root, dir, url string) {
				if dir == "" {
					return
				}
				err := os.Mkdir(filepath.Join(root, dir), 0o700)
				err = errors.Join(err, os.WriteFile(filepath.Join(root, dir, "hosts.toml"), []byte(fmt.Sprintf("server = %q\n", url)), 0o600))
				if err != nil {
					t.Fatal(err)
				}
			}
			put(roots[0], c.first, good.URL)
			if c.first == "" {
				put(roots[1], c.second, good.URL)
			} else {
				put(roots[1], c.second, bad.URL)
			}
			s, err := New(Config{CertsDirs: append(roots, "/nonexistent"), Attempts: 1}).Open(repository(c.ref+"/app"), Auth{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.ManifestByTag(t.Context(), "v1", nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckHosts(t *testing.T) {
	good := hosts(t, "good.test", "server = \"https://good.test\"\n[host.\"https://mirror.test\"]\ncapabilities = [\"pull\"]\n[host.\"https://mirror.test\".header]\nX-Any = \"x\"\n")
	bad := hosts(t, "bad.test", "server = \"https://bad.test\"\nskip_verfy = true\n[host.\"https://mirror.test\"]\ncapability = [\"pull\"]\n")
	wrong := hosts(t, "wrong.test", "[host.\"https://mirror.test\"]\nca = \"/nonexistent\"\n")
	if n, err := CheckHosts(append(good.CertsDirs, "/nonexistent", t.TempDir())); n != 1 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
	n, err := CheckHosts(append(good.CertsDirs, bad.CertsDirs[0], wrong.CertsDirs[0]))
	if n != 3 || err == nil {
		t.Fatalf("%d files, %v", n, err)
	}
	for _, text := range []string{"bad.test/hosts.toml: unknown keys (line 2: skip_verfy; line 4: host.https://mirror.test.capability)", "wrong.test/hosts.toml", "/nonexistent"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v\ndoes not say %q", err, text)
		}
	}
}

func FuzzHostsFile(f *testing.F) {
	f.Add([]byte("server = \"https://a\"\n[host.\"https://b\"]\ncapabilities = [\"pull\", \"resolve\"]\nskip_verify = true\n[host.\"https://b\".header]\nX = [\"y\"]\n"))
	f.Add([]byte("skip_verfy = 1\n[host]\n"))
	f.Add([]byte("[host.\"http://[::1\"]\noverride_path = true\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = unknownKeys(data) // that they do not panic
		_ = tryHosts(dir)
	})
}
