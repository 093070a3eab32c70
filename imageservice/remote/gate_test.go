package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func (r *Registries) session(t *testing.T, ref string) *Session {
	t.Helper()
	s, err := r.Open(repository(ref), Auth{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestRequestsAtOnceAreLimitedOverAllSessions counts those whose body is open as well.
func TestRequestsAtOnceAreLimitedOverAllSessions(t *testing.T) {
	const limit, asked = 2, 6
	var now, most atomic.Int32
	full := make(chan struct{}, asked)
	release := make(chan struct{})
	s := serveHTTP(t, false, func(w http.ResponseWriter, _ *http.Request) {
		defer now.Add(-1)
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		full <- struct{}{}
		_, _ = w.Write(content[:1]) // the client may be gone
		w.(http.Flusher).Flush()
		<-release
		_, _ = w.Write(content[1:])
	})
	r := New(Config{Limit: Limit{AtOnce: limit}})
	var wg sync.WaitGroup
	for range asked {
		session := r.session(t, s.host()+"/app")
		wg.Go(func() {
			if got, err := session.ReadBlob(t.Context(), desc(), 100); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	for range limit {
		<-full
	}
	// One that would wait for a place goes when it is told to.
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("told to"))
	if _, err := r.session(t, s.host()+"/app").ReadBlob(ctx, desc(), 100); err == nil || !strings.Contains(err.Error(), "told to") {
		t.Errorf("waiting for a place: %v", err)
	}
	close(release)
	wg.Wait()
	if n := most.Load(); n > limit {
		t.Errorf("%d requests at once, the limit is %d", n, limit)
	}
}

func TestRateIsOfTheHostNotOfTheSession(t *testing.T) {
	s := serveHTTP(t, false, serveContent)
	own := &Limit{PerSecond: 20}
	r := New(Config{Limit: Limit{PerSecond: 1e-9}, Hosts: map[string]Host{s.host(): {Limit: own}}})
	begun := time.Now()
	for range 25 { // 20 at once, the others one every 50 ms
		if _, err := r.session(t, s.host()+"/app").ManifestByTag(t.Context(), "v1", nil); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begun); took < 5*time.Second/20*9/10 {
		t.Errorf("25 requests in %v", took)
	}
}

// TestRetryAfterHoldsForEverybody is about 429: the request that got it waits, and no other one goes meanwhile.
func TestRetryAfterHoldsForEverybody(t *testing.T) {
	var closedUntil atomic.Int64
	s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		now := time.Now().UnixNano()
		switch until := closedUntil.Load(); {
		case until == 0:
			closedUntil.Store(now + int64(time.Second))
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case now < until:
			t.Error("asked before the time")
		default:
			serveContent(w, r)
		}
	})
	r := New(Config{Backoff: time.Millisecond})
	first := r.session(t, s.host()+"/app")
	told := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		first.hosts[0].Client.Transport = afterwards{first.hosts[0].Client.Transport, sync.OnceFunc(func() { close(told) })}
		if _, err := first.ManifestByTag(t.Context(), "v1", nil); err != nil {
			t.Error(err)
		}
	})
	<-told
	for first.hosts[0].gate.closed() <= 0 { // from the answer to the gate it is a few instructions
		time.Sleep(time.Millisecond)
	}
	if _, err := r.session(t, s.host()+"/app").ReadBlob(t.Context(), desc(), 100); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// afterwards says when an answer has come.
type afterwards struct {
	http.RoundTripper
	tell func()
}

func (a afterwards) RoundTrip(r *http.Request) (*http.Response, error) {
	defer a.tell()
	return a.RoundTripper.RoundTrip(r)
}

// TestClosedMirrorIsPassedOver does not wait for one that wants to be left alone while another can be asked.
func TestClosedMirrorIsPassedOver(t *testing.T) {
	mirror := serveHTTP(t, false, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	upstream := serveHTTP(t, false, serveContent)
	cfg := hosts(t, "registry.test", fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, mirror.URL))
	cfg.MaxBackoff = time.Hour
	r := New(cfg)
	for range 3 {
		if _, err := r.session(t, "registry.test/app").ReadBlob(t.Context(), desc(), 100); err != nil {
			t.Fatal(err)
		}
	}
	if len(mirror.requests) != 1 || len(upstream.requests) != 3 {
		t.Errorf("the mirror was asked %d times, upstream %d times", len(mirror.requests), len(upstream.requests))
	}
}

func TestConfigureCountsForLaterSessions(t *testing.T) {
	s := serveHTTP(t, false, serveContent)
	r := New(Config{Limit: Limit{AtOnce: 1}})
	before := r.session(t, s.host()+"/app")
	r.Configure(Config{})
	body := before.Blob(t.Context(), desc())
	defer func() { _ = body.Close() }()
	if _, err := io.ReadFull(body, make([]byte, 1)); err != nil { // keeps its place
		t.Fatal(err)
	}
	if _, err := r.session(t, s.host()+"/app").ReadBlob(t.Context(), desc(), 100); err != nil {
		t.Error(err)
	}
}

func TestHostsThatAreNotAskedAreForgotten(t *testing.T) {
	cfg := Config{Limit: Limit{AtOnce: 2}}
	r := New(cfg)
	asked, shut := r.gate(cfg, "asked.test"), r.gate(cfg, "shut.test")
	leave, err := asked.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shut.close(time.Hour)
	for i := range 3 * maxGates {
		r.gate(cfg, fmt.Sprint(i, ".test"))
	}
	if n := len(r.gates); n > maxGates {
		t.Errorf("%d hosts are remembered", n)
	}
	if r.gate(cfg, "asked.test") != asked || r.gate(cfg, "shut.test") != shut {
		t.Error("a host that is being asked, or wants to be left alone, was forgotten")
	}
	leave()
	if !asked.idle() {
		t.Error("a host that was asked is not idle afterwards")
	}
}

// TestPartsWithinTheLimit: the parts of a blob do not wait for each other's places, also when each breaks off once.
func TestPartsWithinTheLimit(t *testing.T) {
	var broken sync.Map
	s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		from, to, whole := span(r)
		if _, again := broken.LoadOrStore(to, true); again || from == 0 || whole {
			serveRange(w, r)
			return
		}
		breakRange(w, from, to, 1)
	})
	r := New(Config{Limit: Limit{AtOnce: 1}, Lanes: smallLanes(3), Attempts: 50, Backoff: time.Microsecond, MaxBackoff: time.Microsecond})
	var wg sync.WaitGroup
	for range 3 {
		session := r.session(t, s.host()+"/app")
		wg.Go(func() {
			if got, err := session.ReadBlob(t.Context(), largeDesc(), 1<<20); err != nil || !bytes.Equal(got, large) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}
