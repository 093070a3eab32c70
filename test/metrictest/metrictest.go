// Package metrictest reads metrics as Prometheus would.
package metrictest

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Values are what all metrics of the collectors say: counters and gauges their value, histograms how often something was observed. Each
// is named by its name and the values of its labels, in the order of their names: "requests_total GET ok".
func Values(t testing.TB, collectors ...prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}
