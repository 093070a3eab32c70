package cri

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every RPC is counted by what it answered, and timed unless it lasts as long as its client wants.
func TestRPCsAreCounted(t *testing.T) {
	c := newClient(t)
	_, _ = c.Version(t.Context(), &runtimev1.VersionRequest{})
	_, _ = c.Version(t.Context(), &runtimev1.VersionRequest{})
	c.start()
	_, _ = c.RunPodSandbox(t.Context(), &runtimev1.RunPodSandboxRequest{})
	_, _ = c.CheckpointContainer(t.Context(), &runtimev1.CheckpointContainerRequest{})
	stream, err := c.StreamContainers(t.Context(), &runtimev1.StreamContainersRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	metrics := prometheus.NewPedanticRegistry()
	for _, m := range c.server.Metrics() {
		metrics.MustRegister(m)
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, label := range m.GetLabel() { // sorted by name
				name += " " + label.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"criserver_rpcs_total OK Version": 2, "criserver_rpc_seconds Version": 2,
		"criserver_rpcs_total InvalidArgument RunPodSandbox": 1, "criserver_rpc_seconds RunPodSandbox": 1,
		"criserver_rpcs_total Unimplemented CheckpointContainer": 1, "criserver_rpcs_total OK StreamContainers": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v; there are %v", name, got[name], want, got)
		}
	}
}
