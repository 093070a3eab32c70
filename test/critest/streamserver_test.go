package critest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reconfigure has the daemon start anew with more in its configuration, and without it when the test has ended. It returns
// false, with what the daemon said, if it does not start.
func (d *daemon) reconfigure(t *testing.T, more string) (said string, runs bool) {
	t.Helper()
	before, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd != nil {
			d.crash(t)
		}
		write(t, d.config(), string(before))
		d.resume(t)
	})
	d.crash(t)
	write(t, d.config(), string(before)+more)
	from, err := d.log.Stat()
	if err != nil {
		t.Fatal(err)
	}
	runs = d.start() == nil
	whole, err := os.ReadFile(d.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(whole[from.Size():]), runs
}

// A criserver that cannot have the address of its streams does not become ready, and says why.
func TestStreamAddressInUse(t *testing.T) {
	d := use(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	said, runs := d.reconfigure(t, fmt.Sprintf("[streaming]\nport = %d\n", port))
	if runs || !strings.Contains(said, "streaming: ") || !strings.Contains(said, "address already in use") {
		t.Errorf("criserver runs: %v, said: %s", runs, said)
	}
}

// keyPair makes a certificate that signs itself.
func keyPair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pemFile := func(name, kind string, data []byte) string {
		var b bytes.Buffer
		if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: data}); err != nil {
			t.Fatal(err)
		}
		return write(t, filepath.Join(dir, name), b.String())
	}
	return pemFile("cert.pem", "CERTIFICATE", der), pemFile("key.pem", "PRIVATE KEY", secret)
}

// With a certificate streams are HTTPS, and everything is as without: also ends of stdin and clients that vanish.
func TestStreamTLS(t *testing.T) {
	d := use(t)
	cert, key := keyPair(t)
	if said, runs := d.reconfigure(t, fmt.Sprintf("[streaming]\ntls_cert = %q\ntls_key = %q\n", cert, key)); !runs {
		t.Fatal(said)
	}
	c := runPod(t, d).start(t, talk, interactive)
	eachProtocol(t, func(t *testing.T, p protocol) {
		answer, err := d.runtime.Exec(bounded(t), &cri.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Stdout: true})
		if err != nil || !strings.HasPrefix(answer.GetUrl(), "https://127.0.0.1:") {
			t.Fatalf("the URL is %s, %v", answer.GetUrl(), err)
		}
		s := p.stream(t, c, sh("read line; echo $line; head -c 300000 /dev/zero | tr '\\0' x; exit 8"), withStdin)
		s.write(t, "hello\n")
		s.ends(t, 8)
		if s.out.String() != "hello\n"+strings.Repeat("x", 300000) {
			t.Errorf("stdout %.100q", s.out)
		}
		s = p.stream(t, c, []string{"sleep", "7785"})
		eventually(t, settleBound, "the command runs", func() bool { return running(t, "sleep 7785") == 1 })
		s.leave()
		eventually(t, settleBound, "the command is gone", func() bool { return running(t, "sleep 7785") == 0 })
		attached(t, p.attach(t, c, nil, withStdin))
	})
	l := listenIn(t, c, "127.0.0.1:0")
	each(l, reverse)
	eachDialer(t, func(t *testing.T, by dialer) {
		if err := ask(by.forward(t, c.p, l).dial(t), 300_000); err != nil {
			t.Error(err)
		}
	})
}
