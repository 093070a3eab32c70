package progress

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Book is the account of all pulls.
type Book struct {
	pulls    *prometheus.CounterVec // by result
	duration prometheus.Histogram
	pulling  prometheus.Gauge
	waiting  prometheus.Gauge
	fetching prometheus.Gauge
	layers   *prometheus.CounterVec // by result
	received prometheus.Counter
	unpacked prometheus.Counter
	spent    [stages]prometheus.Counter
	all      []prometheus.Collector

	mu      sync.Mutex
	running map[string]*Layer
}

// NewBook returns an empty account.
func NewBook() *Book {
	b := &Book{running: map[string]*Layer{}}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "criserver_image_" + name, Help: help})
		b.all = append(b.all, g)
		return g
	}
	counters := func(name, label, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "criserver_image_" + name, Help: help}, []string{label})
		b.all = append(b.all, c)
		return c
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "criserver_image_" + name, Help: help})
		b.all = append(b.all, c)
		return c
	}
	b.pulls = counters("pulls_total", "result", "Pulls that have ended; identical ones at the same time are one.")
	b.duration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "criserver_image_pull_seconds", Help: "How long pulls took that succeeded.", Buckets: prometheus.ExponentialBuckets(0.1, 2.5, 10)})
	b.all = append(b.all, b.duration)
	b.pulling = gauge("pulls", "Pulls under way.")
	b.waiting = gauge("layers_waiting", "Layers that wait for their turn to be fetched.")
	b.fetching = gauge("layers_fetching", "Layers that are fetched and unpacked.")
	b.layers = counters("layers_total", "result", "Layers that were fetched, and those that failed.")
	b.received = counter("received_bytes_total", "Bytes of layers that came from registries.")
	b.unpacked = counter("unpacked_bytes_total", "Bytes of layers after decompression.")
	spent := counters("stage_seconds_total", "stage", "Time that layers spent in each stage; stages from network on work at the same time.")
	for s := range b.spent {
		b.spent[s] = spent.WithLabelValues(Stage(s).String())
	}
	for _, result := range results {
		b.pulls.WithLabelValues(result)
		b.layers.WithLabelValues(result)
	}
	return b
}

var results = [...]string{"ok", "failed"}

func resultOf(err error) string {
	if err != nil {
		return "failed"
	}
	return "ok"
}

// Describe and Collect make a Book a prometheus.Collector.
func (b *Book) Describe(out chan<- *prometheus.Desc) {
	for _, c := range b.all {
		c.Describe(out)
	}
}

// Collect gives the present values.
func (b *Book) Collect(out chan<- prometheus.Metric) {
	for _, c := range b.all {
		c.Collect(out)
	}
}

// Pull notes that a pull begins; the function it returns, that it has ended.
func (b *Book) Pull() (end func(error)) {
	began := time.Now()
	b.pulling.Inc()
	return func(err error) {
		b.pulling.Dec()
		b.pulls.WithLabelValues(resultOf(err)).Inc()
		if err == nil {
			b.duration.Observe(time.Since(began).Seconds())
		}
	}
}

// Running is the entry of the work with this key that is waiting or under way, or nil.
func (b *Book) Running(key string) *Layer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.running[key]
}

// Layer is the entry of one layer.
type Layer struct {
	Key  string // of the work, of which no two run at a time
	Size int64  // packed

	book     *Book
	began    time.Time
	fetching atomic.Bool
	received atomic.Int64
	unpacked atomic.Int64
	spent    [stages]atomic.Int64
}

// Layer begins an entry: the layer waits for its turn.
func (b *Book) Layer(key string, size int64) *Layer {
	l := &Layer{Key: key, Size: size, book: b, began: time.Now()}
	b.waiting.Inc()
	b.mu.Lock()
	b.running[key] = l
	b.mu.Unlock()
	return l
}

// Begin notes that the layer's turn has come.
func (l *Layer) Begin() {
	l.fetching.Store(true)
	l.book.waiting.Dec()
	l.book.fetching.Inc()
	l.Spend(Queue, time.Since(l.began))
}

// End closes the entry.
func (l *Layer) End(err error) {
	fetched := l.fetching.Load()
	if fetched {
		l.book.fetching.Dec()
	} else {
		l.book.waiting.Dec()
	}
	if fetched || err != nil { // else it was there when its turn came
		l.book.layers.WithLabelValues(resultOf(err)).Inc()
	}
	l.book.mu.Lock()
	delete(l.book.running, l.Key)
	l.book.mu.Unlock()
}

// Spend notes that a stage took d more.
func (l *Layer) Spend(s Stage, d time.Duration) {
	if d > 0 {
		l.spent[s].Add(int64(d))
		l.book.spent[s].Add(d.Seconds())
	}
}

// Receive notes that n more bytes came.
func (l *Layer) Receive(n int) {
	l.received.Add(int64(n))
	l.book.received.Add(float64(n))
}

// Unpack notes that n more bytes were decompressed.
func (l *Layer) Unpack(n int) {
	l.unpacked.Add(int64(n))
	l.book.unpacked.Add(float64(n))
}

// Received is how many bytes have come.
func (l *Layer) Received() int64 { return l.received.Load() }

// Unpacked is how many bytes were decompressed.
func (l *Layer) Unpacked() int64 { return l.unpacked.Load() }

// Blocked is the stage that holds the layer up if none has ended for some time: times are known when a stage has done a piece.
func (l *Layer) Blocked() Stage {
	switch {
	case !l.fetching.Load():
		return Queue
	case l.Received() < l.Size:
		return Network
	}
	return Write
}

// Times are what the stages have taken so far.
func (l *Layer) Times() (t Times) {
	for s := range t {
		t[s] = time.Duration(l.spent[s].Load())
	}
	return t
}
