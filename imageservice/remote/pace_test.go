package remote

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPace(t *testing.T) {
	type wait struct {
		bytes int
		d     time.Duration
	}
	for name, c := range map[string]struct {
		waits []wait
		says  string // after the last of them, nothing after the others
	}{
		"just in time":                {[]wait{{500, 9 * time.Second}, {500, 10 * time.Second}, {1000, 9 * time.Second}}, ""},
		"nothing":                     {[]wait{{0, 4 * time.Second}, {0, 6 * time.Second}}, "stalled: nothing in 10s"},
		"a trickle":                   {[]wait{{1, 3 * time.Second}, {1, 3 * time.Second}, {1, 4 * time.Second}}, "too slow: 3 bytes in 10s, at least 1000 are wanted"},
		"much, and then a trickle":    {[]wait{{1 << 30, time.Second}, {999, 10 * time.Second}}, "too slow: 999 bytes in 10s"},
		"much does not pay for later": {[]wait{{1 << 30, time.Second}, {0, 10 * time.Second}}, "stalled"},
		"a window begins anew":        {[]wait{{999, 9 * time.Second}, {1, 0}, {0, 9 * time.Second}, {1, time.Second}}, "too slow: 1 bytes in 10s"},
		"late, but all of it":         {[]wait{{1000, time.Hour}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPace(100, 10*time.Second)
			for i, w := range c.waits {
				err := p.brought(w.bytes, w.d)
				if i < len(c.waits)-1 || c.says == "" {
					if err != nil {
						t.Errorf("after wait %d: %v", i, err)
					}
				} else if err == nil || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v does not say %q", err, c.says)
				}
				if err == nil && p.patience() <= 0 {
					t.Errorf("after wait %d the patience is %v", i, p.patience())
				}
			}
		})
	}
	if p := newPace(0, time.Second); p.brought(0, time.Second) == nil {
		t.Error("a rate of nothing lets a sender be silent for ever")
	}
}

// trickle sends a byte now and then until the client gives up.
func trickle(body []byte, each time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		tick := time.NewTicker(each)
		defer tick.Stop()
		for i := range body {
			if _, err := w.Write(body[i : i+1]); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// TestTrickleIsLeftForAnotherEndpoint holds that bytes alone are no progress.
func TestTrickleIsLeftForAnotherEndpoint(t *testing.T) {
	blob := bytes.Repeat([]byte("x"), 4<<10)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	slow := serveHTTP(t, false, trickle(blob, 5*time.Millisecond))
	good := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	})
	// A good endpoint may be late too, on a busy machine, and is asked again.
	patience := func(c Config, attempts int) Config {
		c.MinThroughput, c.Window, c.Attempts, c.Backoff, c.MaxBackoff = 10<<10, 300*time.Millisecond, attempts, time.Millisecond, time.Millisecond
		return c
	}
	cfg := patience(hosts(t, "registry.test", "server = \""+good.URL+"\"\n[host.\""+slow.URL+"\"]\n"), maxAttempts)
	b := open(t, cfg, "registry.test/app", Auth{}).Blob(t.Context(), desc)
	defer func() { _ = b.Close() }()
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	began := strings.Contains(b.plan.attempts[0].Err.Error(), "too slow: ") // it was not silent
	if ranges := good.seen("Range"); len(ranges) == 0 || began && slices.ContainsFunc(ranges, func(r string) bool { return !strings.HasPrefix(r, "bytes=") }) {
		t.Errorf("the other endpoint was asked for %q, not for the rest", ranges)
	}

	// One that lies besides has not spoilt what the other one sends.
	liar := serveHTTP(t, false, trickle(bytes.Repeat([]byte("y"), len(blob)), 5*time.Millisecond))
	cfg = patience(hosts(t, "registry.test", "server = \""+good.URL+"\"\n[host.\""+liar.URL+"\"]\n"), maxAttempts)
	if got, err := open(t, cfg, "registry.test/app", Auth{}).ReadBlob(t.Context(), desc, 1<<20); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("after a liar: %d bytes, %v", len(got), err)
	}

	_, err := open(t, patience(Config{}, 2), slow.host()+"/app", Auth{}).ReadBlob(t.Context(), desc, 1<<20)
	var fetch *FetchError
	if !errors.As(err, &fetch) || len(fetch.Attempts) != 2 || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "too slow: ") && !strings.Contains(err.Error(), "stalled: ") {
		t.Errorf("%v", err)
	}
}
