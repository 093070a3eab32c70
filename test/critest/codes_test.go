package critest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idRPC is an RPC about one pod or container.
type idRPC struct {
	name    string
	unknown codes.Code // of an id that nothing has
	call    func(ctx context.Context, d *daemon, id string) error
}

// podRPCs are all that are about one pod. Those that change something come last.
var podRPCs = []idRPC{
	{"PodSandboxStatus", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id}))
	}},
	{"PodSandboxStats", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id}))
	}},
	{"PortForward", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: id, Port: []int32{80}}))
	}},
	{"UpdatePodSandboxResources", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id}))
	}},
	{"CreateContainer", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: containerConfig("true"), SandboxConfig: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "n", Namespace: "n", Uid: "u"}}}))
	}},
	{"StopPodSandbox", codes.OK, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}))
	}},
	{"RemovePodSandbox", codes.OK, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}))
	}},
}

// containerRPCs are all that are about one container, which runs. Those that change something come last.
var containerRPCs = []idRPC{
	{"ContainerStatus", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id}))
	}},
	{"ContainerStats", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id}))
	}},
	{"ExecSync", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}))
	}},
	{"Exec", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}))
	}},
	{"Attach", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdout: true}))
	}},
	{"ReopenContainerLog", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id}))
	}},
	{"UpdateContainerResources", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{}}))
	}},
	{"StopContainer", codes.OK, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id}))
	}},
	{"RemoveContainer", codes.OK, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id}))
	}},
	{"StartContainer", codes.NotFound, func(ctx context.Context, d *daemon, id string) error {
		return errorOf(d.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}))
	}},
}

func errorOf[T any](_ T, err error) error { return err }

// Every RPC about one object says the same of ids: unknown, missing, and of a beginning that several have.
func TestIDs(t *testing.T) {
	d := use(t)
	pod, container := alike(t, d)
	for kind, all := range map[string]struct {
		rpcs      []idRPC
		ambiguous string
		field     string
	}{"pod": {podRPCs, pod, "pod_sandbox_id"}, "container": {containerRPCs, container, "container_id"}} {
		for _, rpc := range all.rpcs {
			t.Run(rpc.name, func(t *testing.T) {
				for _, id := range []string{strings.Repeat("0", 64), "no-id", strings.Repeat("long", 1000)} {
					if err := rpc.call(bounded(t), d, id); status.Code(err) != rpc.unknown {
						t.Errorf("unknown %s %.10s: %v", kind, id, err)
					}
				}
				refused(t, rpc.call(bounded(t), d, ""), codes.InvalidArgument, all.field)
				refused(t, rpc.call(bounded(t), d, all.ambiguous), codes.InvalidArgument, all.ambiguous, "fits more than one")
			})
		}
	}
}

// alike makes pods and containers until the ids of two begin alike, and returns these beginnings.
func alike(t *testing.T, d *daemon) (pod, container string) {
	t.Helper()
	var pods, containers []string
	for pod == "" || container == "" { // at most 17 times
		p := runPod(t, d)
		pods, containers = append(pods, p.id), append(containers, p.create(t, idle).id)
		pod, container = shared(pods), shared(containers)
	}
	return pod, container
}

// shared is a digit that two ids begin with; empty if there is none.
func shared(ids []string) string {
	slices.Sort(ids)
	for i := range len(ids) - 1 {
		if ids[i][0] == ids[i+1][0] {
			return ids[i][:1]
		}
	}
	return ""
}

// A beginning that one object alone has is as good as its id, in every RPC.
func TestShortIDs(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	c.waitOutput(t, "ready")
	for _, rpc := range containerRPCs {
		err := rpc.call(bounded(t), d, c.id[:16])
		if want := map[string]codes.Code{"StartContainer": codes.NotFound}[rpc.name]; status.Code(err) != want { // it was removed before
			t.Errorf("%s: %v, want %v", rpc.name, err, want)
		}
	}
	for _, rpc := range podRPCs {
		if err := rpc.call(bounded(t), d, p.id[:16]); err != nil {
			t.Errorf("%s: %v", rpc.name, err)
		}
	}
}

// An id of a filter may be shortened too. One that fits several is an error, in every list.
func TestIDsInFilters(t *testing.T) {
	d := use(t)
	pod, container := alike(t, d)
	ctx := bounded(t)
	streamed := func(stream interface{ RecvMsg(any) error }, err error) error {
		if err == nil {
			err = stream.RecvMsg(&cri.StreamImagesResponse{}) // an error comes before any message
		}
		return err
	}
	for _, row := range []struct {
		name string
		err  error
	}{
		{"ListPodSandbox", errorOf(d.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: pod}}))},
		{"StreamPodSandboxes", streamed(d.runtime.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{Filter: &cri.PodSandboxFilter{Id: pod}}))},
		{"ListContainers", errorOf(d.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: container}}))},
		{"ListContainers of a pod", errorOf(d.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod}}))},
		{"StreamContainers", streamed(d.runtime.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod}}))},
		{"ListContainerStats", errorOf(d.runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{Id: container}}))},
		{"StreamContainerStats", streamed(d.runtime.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: pod}}))},
		{"ListPodSandboxStats", errorOf(d.runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: pod}}))},
		{"StreamPodSandboxStats", streamed(d.runtime.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: pod}}))},
	} {
		t.Run(row.name, func(t *testing.T) { refused(t, row.err, codes.InvalidArgument, "filter", "fits more than one") })
	}
}

// A request without what it is about names the field, in every RPC.
func TestEmptyRequests(t *testing.T) {
	d := use(t)
	ctx := bounded(t)
	for _, row := range []struct {
		name, field string
		err         error
	}{
		{"RunPodSandbox", "config: must not be empty", errorOf(d.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{}))},
		{"StopPodSandbox", "pod_sandbox_id", errorOf(d.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{}))},
		{"RemovePodSandbox", "pod_sandbox_id", errorOf(d.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{}))},
		{"PodSandboxStatus", "pod_sandbox_id", errorOf(d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{}))},
		{"PodSandboxStats", "pod_sandbox_id", errorOf(d.runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{}))},
		{"PortForward", "pod_sandbox_id", errorOf(d.runtime.PortForward(ctx, &cri.PortForwardRequest{}))},
		{"UpdatePodSandboxResources", "pod_sandbox_id", errorOf(d.runtime.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{}))},
		{"CreateContainer", "config: must not be empty", errorOf(d.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "x"}))},
		{"StartContainer", "container_id", errorOf(d.runtime.StartContainer(ctx, &cri.StartContainerRequest{}))},
		{"StopContainer", "container_id", errorOf(d.runtime.StopContainer(ctx, &cri.StopContainerRequest{}))},
		{"RemoveContainer", "container_id", errorOf(d.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{}))},
		{"ContainerStatus", "container_id", errorOf(d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{}))},
		{"ContainerStats", "container_id", errorOf(d.runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{}))},
		{"UpdateContainerResources", "container_id", errorOf(d.runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{}))},
		{"ReopenContainerLog", "container_id", errorOf(d.runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{}))},
		{"ExecSync", "cmd", errorOf(d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "x"}))},
		{"Exec", "cmd", errorOf(d.runtime.Exec(ctx, &cri.ExecRequest{ContainerId: "x", Stdout: true}))},
		{"Exec without streams", "stdin, stdout", errorOf(d.runtime.Exec(ctx, &cri.ExecRequest{ContainerId: "x", Cmd: []string{"true"}}))},
		{"Exec with a terminal and stderr", "stderr", errorOf(d.runtime.Exec(ctx, &cri.ExecRequest{ContainerId: "x", Cmd: []string{"true"}, Tty: true, Stdout: true, Stderr: true}))},
		{"Attach", "stdin, stdout", errorOf(d.runtime.Attach(ctx, &cri.AttachRequest{ContainerId: "x"}))},
		{"UpdateRuntimeConfig", "runtime_config.network_config.pod_cidr", errorOf(d.runtime.UpdateRuntimeConfig(ctx, &cri.UpdateRuntimeConfigRequest{
			RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "x"}}}))},
		{"PullImage", "image", errorOf(d.images.PullImage(ctx, &cri.PullImageRequest{}))},
		{"ImageStatus", "image", errorOf(d.images.ImageStatus(ctx, &cri.ImageStatusRequest{}))},
		{"RemoveImage", "image", errorOf(d.images.RemoveImage(ctx, &cri.RemoveImageRequest{}))},
	} {
		t.Run(row.name, func(t *testing.T) { refused(t, row.err, codes.InvalidArgument, row.field) })
	}
}

// What was asked for in vain, or is done already, is done: the kubelet asks again until it hears that.
func TestIdempotence(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, "exit 3")
	c.wait(t)
	absent := &cri.ImageSpec{Image: "localhost/no/such:image"}
	for _, row := range []struct {
		name string
		call func() error
	}{
		{"StopContainer of one that exited", func() error { return containerRPC("StopContainer")(bounded(t), d, c.id) }},
		{"RemoveContainer", func() error { return containerRPC("RemoveContainer")(bounded(t), d, c.id) }},
		{"RemoveContainer again", func() error { return containerRPC("RemoveContainer")(bounded(t), d, c.id) }},
		{"StopContainer of one that was removed", func() error { return containerRPC("StopContainer")(bounded(t), d, c.id) }},
		{"RemoveImage of none", func() error { return errorOf(d.images.RemoveImage(bounded(t), &cri.RemoveImageRequest{Image: absent})) }},
	} {
		for range 2 {
			if err := row.call(); err != nil {
				t.Errorf("%s: %v", row.name, err)
			}
		}
	}
	if r, err := d.images.ImageStatus(bounded(t), &cri.ImageStatusRequest{Image: absent}); err != nil || r.GetImage() != nil {
		t.Errorf("ImageStatus of none: %v, %v", r, err)
	}
}

func containerRPC(name string) func(context.Context, *daemon, string) error {
	i := slices.IndexFunc(containerRPCs, func(rpc idRPC) bool { return rpc.name == name })
	return containerRPCs[i].call
}
