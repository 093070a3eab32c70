package streaming

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stream"
)

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := &tokens{all: map[string]pending{}}
		seen := map[string]bool{}
		var last string
		for i := range maxPending {
			token, err := all.add(i)
			if err != nil || seen[token] || len(token) < 22 {
				t.Fatalf("token %d is %q, %v", i, token, err)
			}
			seen[token], last = true, token
		}
		if _, err := all.add(0); !errors.Is(err, ErrTooMany) {
			t.Errorf("one more than %d: %v", maxPending, err)
		}
		if got, ok := all.take(last); !ok || got != maxPending-1 {
			t.Errorf("got %v, %v", got, ok)
		}
		if _, ok := all.take(last); ok {
			t.Error("a token was good twice")
		}
		fresh, err := all.add(7)
		if err != nil {
			t.Errorf("after one was used: %v", err)
		}
		time.Sleep(tokenLife)
		if got, ok := all.take(fresh); !ok || got != 7 {
			t.Errorf("just in time: %v, %v", got, ok)
		}
		if fresh, err = all.add(8); err != nil || len(all.all) > maxPending {
			t.Errorf("%d tokens, %v", len(all.all), err)
		}
		time.Sleep(tokenLife + 1)
		if _, ok := all.take(fresh); ok {
			t.Error("a token was good for too long")
		}
		if _, err := all.add(9); err != nil || len(all.all) != 1 {
			t.Errorf("%d tokens are left of those that were too old, %v", len(all.all), err)
		}
	})
}

// still is a Runtime of which nobody opens a stream.
type still struct{ Runtime }

func (still) RunningContainer(id sandbox.ContainerID) (sandbox.ContainerID, error) { return id, nil }

func (still) ReadyPod(id sandbox.ID) (sandbox.ID, error) { return id, nil }

func (still) Exec(context.Context, sandbox.ContainerID, []string, stream.Client) (int32, error) {
	return 0, nil
}

func serve(t *testing.T, change ...func(*Config)) *Server {
	t.Helper()
	return serveRuntime(t, still{}, change...)
}

func serveRuntime(t *testing.T, runtime Runtime, change ...func(*Config)) *Server {
	t.Helper()
	c := Config{Address: "127.0.0.1:0", IdleTimeout: time.Minute, CreationTimeout: time.Minute, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&c)
	}
	s, err := Listen(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(runtime)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestURLs(t *testing.T) {
	s := serve(t)
	at, err := s.Exec(ExecRequest{Container: "1", Cmd: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, url string
		code      int
	}{
		{"no token", "http://" + s.Address() + "/exec/", http.StatusNotFound},
		{"wrong token", "http://" + s.Address() + "/exec/AAAA", http.StatusNotFound},
		{"no upgrade", at, http.StatusBadRequest},
		{"used", at, http.StatusNotFound},
		{"nothing there", "http://" + s.Address() + "/", http.StatusNotFound},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := http.Get(row.url)
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			if r.StatusCode != row.code {
				t.Errorf("status %d instead of %d", r.StatusCode, row.code)
			}
		})
	}
	everywhere := serve(t, func(c *Config) { c.Address = "0.0.0.0:0" })
	if at, err = everywhere.Exec(ExecRequest{Container: "1"}); err != nil || !strings.HasPrefix(at, "http://127.0.0.1:") {
		t.Errorf("the URL of a server on all addresses is %s, %v", at, err)
	}
}

func TestListenFails(t *testing.T) {
	s := serve(t)
	for _, row := range []struct {
		name   string
		change func(*Config)
		text   string
	}{
		{"address in use", func(c *Config) { c.Address = s.Address() }, "address already in use"},
		{"foreign address", func(c *Config) { c.Address = "192.0.2.1:0" }, "192.0.2.1"},
		{"no certificate", func(c *Config) { c.CertFile, c.KeyFile = "/nothing", "/nothing" }, "/nothing"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := Config{Address: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}
			row.change(&c)
			if _, err := Listen(t.Context(), c); err == nil || !strings.Contains(err.Error(), row.text) || !strings.HasPrefix(err.Error(), "streaming: ") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// writeCertificate replaces a pair of files.
func writeCertificate(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// A certificate that was replaced is used for the next connection; one that is broken is not.
func TestCertificateIsReplaced(t *testing.T) {
	dir := t.TempDir()
	cert, key := writeCertificate(t, dir, 1)
	s := serve(t, func(c *Config) { c.CertFile, c.KeyFile = cert, key })
	serial := func() string {
		c, err := tls.Dial("tcp", s.Address(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if proto := c.ConnectionState().NegotiatedProtocol; proto == "h2" {
			t.Error("HTTP/2 has no upgrade")
		}
		return fmt.Sprint(c.ConnectionState().PeerCertificates[0].SerialNumber)
	}
	for _, row := range []struct {
		name   string
		change func()
		want   string
	}{
		{"first", func() {}, "1"},
		{"replaced", func() { writeCertificate(t, dir, 2) }, "2"},
		{"broken", func() { _ = os.WriteFile(key, []byte("nonsense"), 0o600) }, "2"},
		{"gone", func() { _ = os.Remove(key) }, "2"},
		{"mended", func() { writeCertificate(t, dir, 3) }, "3"},
	} {
		row.change()
		if got := serial(); got != row.want {
			t.Errorf("%s: the certificate has the serial %s instead of %s", row.name, got, row.want)
		}
	}
	if at, err := s.Exec(ExecRequest{Container: "1"}); err != nil || !strings.HasPrefix(at, "https://") {
		t.Errorf("the URL is %s, %v", at, err)
	}
}
