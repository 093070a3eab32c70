package imageservice

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/criserver/criserver/test/metrictest"
	"github.com/criserver/criserver/test/registry"
)

// TestManyLayersOfOnePullDoNotBlockOthers shows that a pull of few layers does not queue behind all those of another pull.
func TestManyLayersOfOnePullDoNotBlockOthers(t *testing.T) {
	var layers []registry.Layer
	for i := range 8 {
		layers = append(layers, registry.Layer{Compression: "gzip", Files: []registry.File{{Header: tar.Header{Name: fmt.Sprint(i)}, Body: "x"}}})
	}
	large, small := newLiar(t, registry.Build(t, registry.Spec{Layers: layers})), newLiar(t, incompressible(t))
	asked, open := make(chan *liar, 9), make(chan struct{})
	for _, l := range []*liar{large, small} {
		l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
			asked <- l
			<-open
			blob := l.img.Blobs[digest.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])]
			serve(w, r, blob, len(blob))
		}
	}
	n := newNode(t, func(c *Config) { c.Bounds.Layers = 2 })
	var wg sync.WaitGroup
	wg.Go(func() { n.pull(t, large.Listener.Addr().String()+"/app") })
	<-asked
	<-asked
	wg.Go(func() { n.pull(t, small.Listener.Addr().String()+"/app") })
	eventually(t, "the small pull waits for its turn", func() bool { return waiting(n.fetches) == 3 })
	open <- struct{}{}
	if next := <-asked; next != small {
		t.Error("another layer of the large image went before the small image's only one")
	}
	close(open)
	wg.Wait()
	for _, s := range []struct {
		name string
		of   *semaphore.Weighted
		n    int64
	}{{"layers", n.bounds.layers, 2}, {"connections", n.bounds.connections, int64(n.cfg.Bounds.Connections)}, {"memory", n.bounds.memory, n.cfg.Bounds.Memory}} {
		if !s.of.TryAcquire(s.n) {
			t.Errorf("not all %s were given back", s.name)
		}
	}
}

// TestPullsSayWhatTheyWaitedFor looks at the metrics and the log of a pull.
func TestPullsSayWhatTheyWaitedFor(t *testing.T) {
	l := newLiar(t, incompressible(t))
	l.blob = func(w http.ResponseWriter, r *http.Request, hit int) {
		if hit == 1 { // a failure first, so that time is lost
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		serve(w, r, l.layer(), len(l.layer()))
	}
	var said bytes.Buffer
	n := newNode(t, func(c *Config) { c.Log = slog.New(slog.NewJSONHandler(&said, nil)) })
	n.pull(t, l.Listener.Addr().String()+"/app")
	var line struct {
		Msg, Image, Slowest              string
		Layers, Present, Bytes, Unpacked int64
		Times                            map[string]int64
	}
	if err := json.Unmarshal(said.Bytes(), &line); err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	if line.Msg != "pulled" || line.Layers != 1 || line.Bytes != int64(len(l.layer())) || line.Unpacked <= 1<<20 || line.Slowest == "" || len(line.Times) != 6 {
		t.Errorf("the log says %s", said.String())
	}
	got := metrictest.Values(t, n.Metrics())
	for name, want := range map[string]float64{
		"criserver_image_pulls_total ok": 1, "criserver_image_pulls_total failed": 0, "criserver_image_pulls": 0, "criserver_image_pull_seconds": 1,
		"criserver_image_layers_total ok": 1, "criserver_image_layers_waiting": 0, "criserver_image_layers_fetching": 0,
		"criserver_image_received_bytes_total": float64(line.Bytes), "criserver_image_unpacked_bytes_total": float64(line.Unpacked),
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	for _, stage := range []string{"retry", "network", "inflate", "hash", "write"} {
		if got["criserver_image_stage_seconds_total "+stage] <= 0 {
			t.Errorf("no time was spent in stage %s", stage)
		}
	}
}
