package imageservice

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/criserver/criserver/imageservice/remote"
)

func TestRegistriesThatFalterAreEndured(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(l *liar)
		ranges bool // the rest must have been asked for
	}{
		"reset in the middle": {func(l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, hit int) {
				if hit < 3 {
					serve(w, r, l.layer(), hit*300_000)
					reset()
				}
				serve(w, r, l.layer(), len(l.layer()))
			}
		}, true},
		"stall in the middle": {func(l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, hit int) {
				if hit == 1 {
					serve(w, r, l.layer(), 300_000)
					<-r.Context().Done()
					return
				}
				serve(w, r, l.layer(), len(l.layer()))
			}
		}, true},
		"no ranges": {func(l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, hit int) {
				r.Header.Del("Range")
				if hit == 1 {
					serve(w, r, l.layer(), 300_000)
					reset()
				}
				serve(w, r, l.layer(), len(l.layer()))
			}
		}, true},
		"many resets with progress": {func(l *liar) {
			const step = 400_000 // three failures in a row are the limit, a megabyte forgives
			l.blob = func(w http.ResponseWriter, r *http.Request, hit int) {
				if end := hit * step; end < len(l.layer()) {
					serve(w, r, l.layer(), end)
					reset()
				}
				serve(w, r, l.layer(), len(l.layer()))
			}
		}, true},
		"429 and then none": {func(l *liar) {
			l.manifest = func(w http.ResponseWriter, r *http.Request, hit int) {
				if hit < 3 {
					w.WriteHeader(http.StatusTooManyRequests)
					return
				}
				l.serveManifest(w, l.img.Manifest, l.img.Desc.MediaType)
			}
		}, false},
		"manifest without a type": {func(l *liar) {
			l.manifest = func(w http.ResponseWriter, _ *http.Request, _ int) {
				l.serveManifest(w, l.img.Manifest, "application/json")
			}
		}, false},
		"layer at another host": {func(l *liar) {
			cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					w.WriteHeader(http.StatusBadRequest) // as object stores do
					return
				}
				serve(w, r, l.layer(), len(l.layer()))
			}))
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
				http.Redirect(w, r, cdn.URL, http.StatusTemporaryRedirect)
			}
			l.Config.RegisterOnShutdown(cdn.Close)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLiar(t, incompressible(t))
			c.spoil(l)
			n := newNode(t, impatient)
			id, err := n.Pull(t.Context(), PullRequest{Ref: l.Listener.Addr().String() + "/app", Auth: remote.Auth{RegistryToken: "tok"}})
			if err != nil || id != string(l.img.ID) {
				t.Fatalf("pulled %q, %v", id, err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if c.ranges != (len(l.ranges) > 0) {
				t.Errorf("ranges asked for: %q", l.ranges)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	l := newLiar(t, incompressible(t))
	l.manifest = func(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	id, err := n.Pull(ctx, PullRequest{Ref: l.Listener.Addr().String() + "/app"})
	if id != "" || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrRegistryUnavailable) || !strings.Contains(err.Error(), "stage resolve") {
		t.Errorf("%q, %v", id, err)
	}
	n.stop() // waits for what was begun
	n = nodeAt(t, n.dir)
	n.mustBeEmpty(t)
}

func TestInvalidReferences(t *testing.T) {
	n := newNode(t)
	for _, ref := range []string{
		"", " ", "docker.io/UPPER", "a//b", "-", "host/a:", "host/a@sha256:short", strings.Repeat("a", 2000), "a b", "http://x/y",
		strings.Repeat("0", 64), "x:" + strings.Repeat("t", 129),
	} {
		if _, err := n.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrInvalidReference) {
			t.Errorf("pull %q: %v", ref, err)
		}
		if _, err := n.Find(ref); err == nil {
			t.Errorf("%q is there", ref)
		}
		if err := n.Remove(t.Context(), ref); err != nil {
			t.Errorf("remove %q: %v", ref, err)
		}
	}
}
