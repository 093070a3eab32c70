package cri

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// meter counts RPCs for Prometheus.
type meter struct {
	total   *prometheus.CounterVec   // by rpc and code
	seconds *prometheus.HistogramVec // by rpc
}

func newMeter() meter {
	return meter{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "criserver_rpcs_total", Help: "RPCs that were answered."}, []string{"rpc", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "criserver_rpc_seconds", Help: "How long RPCs took, whatever their answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}, []string{"rpc"}),
	}
}

// count notes the answer to an RPC.
func (m meter) count(rpc string, code codes.Code, took time.Duration) {
	m.total.WithLabelValues(rpc, code.String()).Inc()
	if !lasting[rpc] {
		m.seconds.WithLabelValues(rpc).Observe(took.Seconds())
	}
}

// Metrics are those of RPCs, for Prometheus.
func (s *Server) Metrics() []prometheus.Collector {
	return []prometheus.Collector{s.meter.total, s.meter.seconds}
}
