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
	page := func(w http.ResponseWriter, text string, links ...string) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex+"; charset=utf-8")
		w.Header()["Link"] = links
		_, _ = w.Write([]byte(text)) // the client may be gone
	}
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		pages  string
		want   error
	}{
		"one page":              {func(w http.ResponseWriter, r *http.Request) { page(w, "one") }, "one", nil},
		"the type is asked for": {func(w http.ResponseWriter, r *http.Request) { page(w, r.URL.Query().Get("artifactType")) }, "a/b+json", nil},
		"two pages": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("last") == "" {
				page(w, "one", `<`+path+`?last=1>; rel="next"`)
				return
			}
			page(w, "two")
		}, "one two", nil},
		"pages without end": {func(w http.ResponseWriter, r *http.Request) { page(w, "one", `<?last=1>; rel="next"`) }, "", ErrInvalid},
		"next page elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			page(w, "one", `<http://127.0.0.1:1/v2/>; rel="next"`)
		}, "", ErrInvalid},
		"no API":   {http.NotFound, "", ErrNotFound},
		"no index": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "", ErrInvalid},
		"too long": {func(w http.ResponseWriter, _ *http.Request) { page(w, strings.Repeat("x", MaxManifest+1)) }, "", ErrInvalid},
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

func TestNextPage(t *testing.T) {
	const address, next = "http://registry.test/v2/app/referrers/x", "http://registry.test/next"
	for name, c := range map[string]struct {
		links []string
		want  string
	}{
		"quoted":                    {[]string{`</next>; rel="next"`}, next},
		"not quoted":                {[]string{`</next>;rel=next`}, next},
		"letters and spaces":        {[]string{"\t</next> ; REL = \"Next\" "}, next},
		"in another header":         {[]string{`</first>; rel="first"`, `</next>; rel="next"`}, next},
		"behind other links":        {[]string{`</first>; rel="first", </last>;rel=last,</next>; rel="next"`}, next},
		"before another link":       {[]string{`</next>; rel="next", </first>; rel="first"`}, next},
		"one of several relations":  {[]string{`</next>; rel="last next"`}, next},
		"behind another parameter":  {[]string{`</next>; title="a, <b>; \"c\""; crossorigin; title*=UTF-8''a%20b; rel="next"`}, next},
		"target with signs":         {[]string{`</next,a;rel=prev>; rel="next"`}, next + ",a;rel=prev"},
		"none":                      {nil, ""},
		"another relation":          {[]string{`</next>; rel="prev"`, `</next>; rel="nextnext"`}, ""},
		"in another parameter":      {[]string{`</next>; title="rel=\"next\""; rel="prev"`, `</x>; xrel="next"`}, ""},
		"the second rel":            {[]string{`</next>; rel="prev"; rel="next"`}, ""},
		"the relation has no value": {[]string{`</next>; rel`, `</next>; rel=`, `</next>; rel="`}, ""},
		"no link":                   {[]string{`/next; rel="next"`, `</next; rel="next"`, `; rel="next"`, ","}, ""},
	} {
		if got, err := nextPage(address, http.Header{"Link": c.links}); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/x?last=1>; rel="next"`)
	f.Add(`</a>; title="\"<b>, c"; rel=prev;;rel = next, <//other.test>; rel="Next last`)
	f.Fuzz(func(t *testing.T, text string) {
		next, err := nextPage("http://registry.test/x", http.Header{"Link": {text}})
		if next != "" && (err != nil || !strings.HasPrefix(next, "http://registry.test")) {
			t.Fatalf("%q, %v", next, err)
		}
	})
}
