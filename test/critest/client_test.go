package critest

import (
	"context"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
)

// The kubelet's own client, which checks answers: ids, times, image references, conditions.
func TestKubeletClient(t *testing.T) {
	d := use(t)
	ctx := bounded(t)
	runtime, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint(d.socket()).WithConnectionTimeout(rpcBound).WithUseStreaming(false).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = runtime.Close(ctx) })
	images, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint(d.socket()).WithConnectionTimeout(rpcBound).WithUseStreaming(false).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close(ctx) })

	version, err := runtime.Version(ctx, "v1")
	if err != nil || version.GetRuntimeName() != "criserver" || version.GetRuntimeApiVersion() != "v1" || version.GetVersion() == "" || version.GetRuntimeVersion() == "" {
		t.Errorf("Version: %v, %v", version, err)
	}
	if s, err := runtime.Status(ctx, true); err != nil || len(s.GetStatus().GetConditions()) < 2 || s.GetFeatures() == nil {
		t.Errorf("Status: %v, %v", s, err)
	}
	if c, err := runtime.RuntimeConfig(ctx); err != nil || c.GetLinux() == nil {
		t.Errorf("RuntimeConfig: %v, %v", c, err)
	}
	if err := runtime.UpdateRuntimeConfig(ctx, &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.0.0.0/24"}}); err != nil {
		t.Errorf("UpdateRuntimeConfig: %v", err)
	}
	if _, err := images.ImageFsInfo(ctx); err != nil {
		t.Errorf("ImageFsInfo: %v", err)
	}
	ref, err := images.PullImage(ctx, &cri.ImageSpec{Image: suite.busybox}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := images.ImageStatus(ctx, &cri.ImageSpec{Image: ref}, true); err != nil || s.GetImage().GetId() != ref || s.GetInfo()["info"] == "" {
		t.Errorf("ImageStatus: %v, %v", s, err)
	}
	if list, err := images.ListImages(ctx, &cri.ImageFilter{Image: &cri.ImageSpec{Image: suite.busybox}}); err != nil || len(list) != 1 {
		t.Errorf("ListImages: %v, %v", list, err)
	}

	config := podConfig(t, podNetwork)
	pod, err := runtime.RunPodSandbox(ctx, config, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range []error{runtime.StopPodSandbox(ctx, pod), runtime.RemovePodSandbox(ctx, pod)} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	id, err := runtime.CreateContainer(ctx, pod, containerConfig(idle), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := runtime.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.PodSandboxStatus(ctx, pod, true); err != nil {
		t.Errorf("PodSandboxStatus: %v", err)
	}
	if _, err := runtime.ContainerStatus(ctx, id, true); err != nil {
		t.Errorf("ContainerStatus: %v", err)
	}
	if stdout, stderr, err := runtime.ExecSync(ctx, id, []string{"echo", "x"}, 10*time.Second); err != nil || string(stdout) != "x\n" || len(stderr) != 0 {
		t.Errorf("ExecSync: %q, %q, %v", stdout, stderr, err)
	}
	if _, _, err := runtime.ExecSync(ctx, id, []string{"sleep", "1000"}, time.Second); err == nil {
		t.Error("ExecSync outlives its timeout")
	}
	if err := runtime.ReopenContainerLog(ctx, id); err != nil {
		t.Errorf("ReopenContainerLog: %v", err)
	}
	if err := runtime.StopContainer(ctx, id, 10); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if err := runtime.RemoveContainer(ctx, id); err != nil {
		t.Errorf("RemoveContainer: %v", err)
	}
}

// With its gate CRIListStreaming the kubelet streams lists, and with EventedPLEG it listens to events.
func TestKubeletClientStreams(t *testing.T) {
	d := use(t)
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	runtime, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint(d.socket()).WithConnectionTimeout(rpcBound).WithUseStreaming(true).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = runtime.Close(context.Background()) })
	images, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint(d.socket()).WithConnectionTimeout(rpcBound).WithUseStreaming(true).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close(context.Background()) })

	news, begun, ended := make(chan *cri.ContainerEventResponse, 8), make(chan error, 1), make(chan error, 1)
	go func() {
		ended <- runtime.GetContainerEvents(ctx, news, func(stream cri.RuntimeService_GetContainerEventsClient) {
			_, err := stream.Header()
			begun <- err
		})
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	p := runPod(t, d, podNetwork)
	c := p.start(t, idle)
	for _, want := range []string{p.id, p.id, c.id, c.id} {
		if e := <-news; e.GetContainerId() != want || e.GetPodSandboxStatus().GetMetadata().GetUid() != p.config.Metadata.Uid {
			t.Errorf("event %v instead of one of %s", e, want)
		}
	}
	pods, err := runtime.ListPodSandbox(ctx, nil)
	if err != nil || len(pods) != 1 || pods[0].GetId() != p.id {
		t.Errorf("ListPodSandbox: %v, %v", pods, err)
	}
	containers, err := runtime.ListContainers(ctx, &cri.ContainerFilter{PodSandboxId: p.id[:12]})
	if err != nil || len(containers) != 1 || containers[0].GetId() != c.id {
		t.Errorf("ListContainers: %v, %v", containers, err)
	}
	if all, err := runtime.ListContainers(ctx, &cri.ContainerFilter{Id: p.id}); err != nil || len(all) != 0 {
		t.Errorf("ListContainers of none: %v, %v", all, err)
	}
	if list, err := images.ListImages(ctx, nil); err != nil || len(list) == 0 {
		t.Errorf("ListImages: %v, %v", list, err)
	}
	if stats, err := runtime.ListContainerStats(ctx, nil); err != nil || len(stats) != 1 {
		t.Errorf("ListContainerStats: %v, %v", stats, err)
	}
	if stats, err := runtime.ListPodSandboxStats(ctx, nil); err != nil || len(stats) != 1 {
		t.Errorf("ListPodSandboxStats: %v, %v", stats, err)
	}
	if metrics, err := runtime.ListPodSandboxMetrics(ctx); err != nil || len(metrics) != 1 {
		t.Errorf("ListPodSandboxMetrics: %v, %v", metrics, err)
	}
	cancel()
	<-ended
}
