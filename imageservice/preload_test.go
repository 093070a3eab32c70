package imageservice

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/registry"
)

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// What lies in the preload directory is present afterwards; what is broken is named and stops nothing; what is there is
// not read again.
func TestPreload(t *testing.T) {
	log := &lines{}
	dir, from := t.TempDir(), t.TempDir()
	n := nodeAt(t, dir, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	img, _ := twoLayers(t, "preload", registry.Spec{})
	good := tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "example.com/pre:1", "")}, img)...)
	second, plain2 := twoLayers(t, "second", registry.Spec{})
	for name, data := range map[string][]byte{"b.tar.gz": packed(t, good), "a-broken.tar": good[:3000], "c.tar": tarOf(t, docker(t, second, plain2, "second:2")...)} {
		if err := os.WriteFile(filepath.Join(from, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.Preload(t.Context(), from)
	for ref, id := range map[string]string{"example.com/pre:1": img.ID.String(), "second:2": second.ID.String()} {
		if got, err := n.Find(ref); err != nil || got.ID != id {
			t.Errorf("%s is %+v", ref, got)
		}
	}
	if text := log.take(); !strings.Contains(text, "a-broken.tar") || strings.Count(text, "image is present") != 2 {
		t.Errorf("log has %s", text)
	}
	n.stop()
	n = nodeAt(t, dir, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	n.Preload(t.Context(), from)
	if text := log.take(); strings.Contains(text, "image is present") {
		t.Errorf("after a restart archives are read again: %s", text)
	}
	if err := n.Remove(t.Context(), "second:2"); err != nil {
		t.Fatal(err)
	}
	n.Preload(t.Context(), from)
	if text := log.take(); strings.Count(text, "image is present") != 1 || !strings.Contains(text, "c.tar") {
		t.Errorf("after a removal: %s", text)
	}
	n.Preload(t.Context(), filepath.Join(from, "no such"))
	if text := log.take(); !strings.Contains(text, "images are not imported") {
		t.Errorf("directory that is not there: %s", text)
	}
}

// A layout whose index is written anew in its place is read again, though its directory is what it was.
func TestPreloadReadsAChangedLayoutAgain(t *testing.T) {
	first, _ := twoLayers(t, "first", registry.Spec{})
	second, _ := twoLayers(t, "second", registry.Spec{})
	from := t.TempDir()
	write := func(manifests []ocispec.Descriptor) {
		for _, m := range layout(t, manifests, first, second) {
			path := filepath.Join(from, "layout", m.name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, m.data, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := newNode(t)
	write([]ocispec.Descriptor{named(first.Desc, "first:1", "")})
	n.Preload(t.Context(), from)
	write([]ocispec.Descriptor{named(first.Desc, "first:1", ""), named(second.Desc, "second:1", "")})
	n.Preload(t.Context(), from)
	for _, name := range []string{"first:1", "second:1"} {
		if _, err := n.Find(name); err != nil {
			t.Errorf("%s is not there", name)
		}
	}
}

// A pull whose registry is out of reach waits for what is being preloaded.
func TestPullWaitsForPreload(t *testing.T) {
	n := newNode(t)
	img, _ := twoLayers(t, "waits", registry.Spec{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{}, 100)
	go func() { // a registry that hangs up
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			asked <- struct{}{}
			conn.Close()
		}
	}()
	ref := l.Addr().String() + "/pre:1"
	if _, err := n.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrRegistryUnavailable) {
		t.Fatal(err)
	}
	for len(asked) > 0 {
		<-asked
	}
	running := make(chan struct{})
	n.preloading.Store(&running)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.fromPreload(ended, n.underWay(), target{}, ErrRegistryUnavailable); !errors.Is(err, ErrRegistryUnavailable) {
		t.Error(err)
	}
	got := make(chan error, 1)
	go func() {
		id, err := n.Pull(t.Context(), PullRequest{Ref: ref})
		if err == nil && id != img.ID.String() {
			err = errors.New("pulled " + id)
		}
		got <- err
	}()
	<-asked // the pull has begun
	if _, err := n.imported(t, tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, ref, "")}, img)...), ImportRequest{}); err != nil {
		t.Fatal(err)
	}
	close(running)
	if err := <-got; err != nil {
		t.Error(err)
	}
}
