package imageservice

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/criserver/criserver/imageservice/progress"
)

// reportEvery is how often a pull that goes on says where it is.
const reportEvery = 30 * time.Second

// Metrics are those of pulls, for Prometheus.
func (s *Service) Metrics() prometheus.Collector { return s.book }

// account is what one pull has to tell: of its layers, those that it fetched or shared with another pull.
type account struct {
	s       *Service
	image   string
	began   time.Time
	wanted  []digest.Digest
	mu      sync.Mutex // of the following
	present int        // layers that were there before
	layers  []*progress.Layer
}

// add takes the entry of a layer that has ended; it is nil if the layer was there.
func (a *account) add(entry *progress.Layer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if entry == nil {
		a.present++
	} else {
		a.layers = append(a.layers, entry)
	}
}

// follow logs where a pull is, again and again, until stop is called.
func (a *account) follow(ctx context.Context, every time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				a.log("still pulling", a.running())
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// running are the entries of layers that are not there yet.
func (a *account) running() (all []*progress.Layer) {
	for _, id := range a.wanted {
		if l := a.s.book.Running(id); l != nil {
			all = append(all, l)
		}
	}
	return all
}

// log says how much came, how fast, and what it waited for. Times of layers add up.
func (a *account) log(message string, layers []*progress.Layer) {
	var times progress.Times
	var size, received, unpacked int64
	for _, l := range layers {
		times.Add(l.Times())
		size += l.Size
		received += l.Received()
		unpacked += l.Unpacked()
	}
	took := time.Since(a.began)
	a.mu.Lock()
	present := a.present
	a.mu.Unlock()
	a.s.log.Info(message, "image", a.image, "took", took.Round(time.Millisecond), "layers", len(layers), "present", present,
		"bytes", received, "of", size, "unpacked", unpacked, "bytes_per_second", int64(float64(received)/took.Seconds()),
		"slowest", times.Slowest().String(), slog.Any("times", times))
}
