package remote

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestReferrers(t *testing.T) {
	d := digest.FromString("x")
	path := "/v2/app/referrers/" + d.String()
	page := func(w http.ResponseWriter, text, link string) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex+"; charset=utf-8")
		if link != "" {
			w.Header().Set("Link", link)
		}
		_, _ = w.Write([]byte(text)) // the client may be gone
	}
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		pages  string
		want   error
	}{
		"one page":              {func(w http.ResponseWriter, r *http.Request) { page(w, "one", "") }, "one", nil},
		"the type is asked for": {func(w http.ResponseWriter, r *http.Request) { page(w, r.URL.Query().Get("artifactType"), "") }, "a/b+json", nil},
		"two pages": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("last") == "" {
				page(w, "one", `<`+path+`?last=1>; rel="next"`)
				return
			}
			page(w, "two", "")
		}, "one two", nil},
		"pages without end": {func(w http.ResponseWriter, r *http.Request) { page(w, "one", `<?last=1>; rel="next"`) }, "", ErrInvalid},
		"next page elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			page(w, "one", `<http://127.0.0.1:1/v2/>; rel="next"`)
		}, "", ErrInvalid},
		"no API":   {http.NotFound, "", ErrNotFound},
		"no index": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "", ErrInvalid},
		"too long": {func(w http.ResponseWriter, _ *http.Request) { page(w, strings.Repeat("x", MaxManifest+1), "") }, "", ErrInvalid},
		"fails":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "", ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveHTTP(t, false, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != path {
					t.Errorf("asked for %s", r.URL)
				}
				c.answer(w, r)
			})
			cfg := hosts(t, "registry.test", fmt.Sprintf("server = \"http://%s\"\n", s.host()))
			cfg.Attempts, cfg.Backoff = 2, time.Millisecond
			pages, err := open(t, cfg, "registry.test/app", Auth{}).Referrers(t.Context(), d, "a/b+json")
			var texts []string
			for _, p := range pages {
				texts = append(texts, string(p))
			}
			if got := strings.Join(texts, " "); got != c.pages || !errors.Is(err, c.want) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
