package imageservice

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/criserver/criserver/imageservice/progress"
)

// reportEvery is how often a pull that goes on says where it is.
const reportEvery = 30 * time.Second

// Metrics are those of pulls, for Prometheus.
func (s *Service) Metrics() prometheus.Collector { return s.book }

// account is what one pull has to tell: of its layers, those that were not there, which it fetched or shared with another pull.
type account struct {
	s     *Service
	image string
	began time.Time

	mu      sync.Mutex // of the following
	wanted  []wantedLayer
	ended   map[string]bool // keys of wanted
	present int             // layers that were there before
	layers  []*progress.Layer
}

// wantedLayer is a layer that was not there when the pull came to it.
type wantedLayer struct {
	key  string // of its fetch, which no two have at a time
	size int64
}

// want adds a layer that is to come, or was there.
func (a *account) want(key string, size int64, present bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if present {
		a.present++
		return
	}
	a.wanted = append(a.wanted, wantedLayer{key, size})
}

// add takes the entry of a wanted layer that has ended; it is nil if the layer was there when its turn came.
func (a *account) add(key string, entry *progress.Layer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if entry != nil {
		a.layers = append(a.layers, entry)
	}
	if slices.ContainsFunc(a.wanted, func(w wantedLayer) bool { return w.key == key }) {
		a.ended[key] = true
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
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.wanted {
		if l := a.s.book.Running(w.key); l != nil && !a.ended[w.key] {
			all = append(all, l)
		}
	}
	return all
}

// standing says how far the pull is, and what the layers under way have spent. Stage is what holds them up if they spend
// no more.
func (a *account) standing() (now Standing, times progress.Times) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now = Standing{Image: a.image, Layers: len(a.wanted), Ended: len(a.ended)}
	blocked := progress.Queue
	for _, w := range a.wanted {
		now.Total += w.size
		if a.ended[w.key] {
			now.Done += w.size
		} else if l := a.s.book.Running(w.key); l != nil {
			now.Done += min(l.Received(), w.size)
			times.Add(l.Times())
			if b := l.Blocked(); blocked != progress.Network && b != progress.Queue {
				blocked = b
			}
		}
	}
	now.Stage = blocked.String()
	return now, times
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
