package critest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// Five images that share layers are pulled at once: the registry is asked for each layer once, and each is unpacked once.
// criserver's own metrics say so too.
func TestImagesShareLayersOfPulls(t *testing.T) {
	if unfit != "" {
		t.Skip(unfit)
	}
	d, err := makeDaemon("pulls", storeAuto)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.config(), string(text)+"[metrics]\naddress = \"127.0.0.1:0\"\n")
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	check(t, d)

	var mu sync.Mutex
	asked := map[string]int{}
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: suite.registry.Addr})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
		mu.Unlock()
		behind.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)

	var shared []registry.Layer
	for i := range 3 {
		shared = append(shared, registry.Layer{Compression: "gzip", Files: []registry.File{file(fmt.Sprintf("shared-%d", i), strings.Repeat(fmt.Sprint(i), 2<<20), 0o644)}})
	}
	layers := map[digest.Digest]bool{}
	var refs []string
	for i := range 5 {
		own := registry.Layer{Compression: "zstd", Files: []registry.File{file("own", fmt.Sprint(i), 0o644)}}
		img := registry.Build(t, registry.Spec{Layers: append(append([]registry.Layer{}, shared...), own)})
		for _, l := range img.Layers {
			layers[l.Digest] = true
		}
		suite.registry.PushImage(t, fmt.Sprintf("pulls-%d", i), "v1", img)
		refs = append(refs, fmt.Sprintf("%s/pulls-%d:v1", front.Listener.Addr(), i))
	}
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() { pull(t, d, ref) })
	}
	wg.Wait()
	mu.Lock()
	for l := range layers {
		if asked[l.String()] != 1 {
			t.Errorf("the registry was asked for layer %s %d times", l, asked[l.String()])
		}
	}
	mu.Unlock()
	if len(layers) != 8 || !strings.Contains(metrics(t, d), "criserver_image_layers_total{result=\"ok\"} 8\n") {
		t.Errorf("there are %d layers, the metrics are\n%s", len(layers), metrics(t, d))
	}
	for _, ref := range refs {
		if _, err := d.images.RemoveImage(bounded(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
			t.Error(err)
		}
	}
}

// metrics are those that criserver tells of itself, where its log says.
func metrics(t *testing.T, d *daemon) string {
	t.Helper()
	log, err := os.ReadFile(d.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(string(regexp.MustCompile(`http://127\.0\.0\.1:\d+/metrics`).Find(log)))
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections() // a descriptor of criserver, too
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
