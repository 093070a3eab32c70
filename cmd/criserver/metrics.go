package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsPatience is how long a client may take to ask.
const metricsPatience = 10 * time.Second

// Metrics configures what criserver tells of itself. What it tells of pods goes through the kubelet.
type Metrics struct {
	Address string `toml:"address" comment:"host:port on which criserver's own metrics are served for Prometheus, as /metrics. Anybody who reaches it may read them. Empty: they are not served."`
}

// check wants an address with an IP address, so that nothing waits for a name server.
func (m *Metrics) check(f *faults) {
	if m.Address == "" {
		return
	}
	host, port, err := net.SplitHostPort(m.Address)
	if err == nil && net.ParseIP(host) == nil {
		err = fmt.Errorf("%q is not an IP address", host)
	}
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		f.add("metrics.address", "%q is not of the form IP:port: %v", m.Address, err)
	}
}

// assembleMetrics serves the metrics of the parts and of those that measure adds, if that is wanted, until the node closes.
func (n *node) assembleMetrics(parts ...prometheus.Collector) error {
	if n.config.Metrics.Address == "" {
		return nil
	}
	n.metrics = prometheus.NewRegistry()
	parts = append(parts, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := n.measure(parts...); err != nil {
		return err
	}
	l, err := net.Listen("tcp", n.config.Metrics.Address)
	if err != nil {
		return fmt.Errorf("metrics.address: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: metricsPatience}))
	server := &http.Server{Handler: mux, ReadTimeout: metricsPatience, WriteTimeout: 2 * metricsPatience, MaxHeaderBytes: 16 << 10}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	n.closers = append(n.closers, func(context.Context) error {
		err := server.Close()
		if end := <-served; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
		return err
	})
	n.log.Info("metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return nil
}

// measure adds the metrics of parts to what is served, if anything is.
func (n *node) measure(parts ...prometheus.Collector) error {
	if n.metrics == nil {
		return nil
	}
	for _, c := range parts {
		if err := n.metrics.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
