package cni

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meter counts what plugins were asked to do, for Prometheus.
type meter struct {
	total   *prometheus.CounterVec   // by operation and result
	seconds *prometheus.HistogramVec // by operation
}

var (
	operations = [...]string{"ADD", "DEL", "CHECK", "GC"}
	results    = [...]string{"ok", "failed"}
)

func newMeter() meter {
	m := meter{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "criserver_network_operations_total",
			Help: "Attachments of pods, their ends and checks, and collections of garbage, each by all plugins of the network."}, []string{"operation", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "criserver_network_operation_seconds", Help: "How long they took, whatever came of them.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 10)}, []string{"operation"}),
	}
	for _, operation := range operations {
		for _, result := range results {
			m.total.WithLabelValues(operation, result)
		}
	}
	return m
}

// begin notes that an operation begins; the function that it returns, that it has ended with *err.
func (m meter) begin(operation string, err *error) (end func()) {
	began := time.Now()
	return func() {
		result := results[0]
		if *err != nil {
			result = results[1]
		}
		m.total.WithLabelValues(operation, result).Inc()
		m.seconds.WithLabelValues(operation).Observe(time.Since(began).Seconds())
	}
}

// Metrics are those of what plugins were asked to do, for Prometheus.
func (n *Network) Metrics() []prometheus.Collector {
	return []prometheus.Collector{n.meter.total, n.meter.seconds}
}
