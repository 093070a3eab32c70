package cri

import (
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/metrictest"
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
	got := metrictest.Values(t, c.server.Metrics()...)
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
