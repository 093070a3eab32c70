package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/events"
	"github.com/criserver/criserver/stage"
)

// backend is a fake of all services; each call waits for nothing and answers as told.
type backend struct {
	fail  error
	calls []string
	panik bool
	pull  imageservice.PullRequest
	news  events.Broadcaster[*sandbox.Event]
}

func (b *backend) call(format string, args ...any) error {
	if b.panik {
		panic("oh")
	}
	b.calls = append(b.calls, fmt.Sprintf(format, args...))
	return b.fail
}

func (b *backend) RunPod(_ context.Context, c *runtimev1.PodSandboxConfig, handler string) (sandbox.ID, error) {
	return "pod1", b.call("RunPod %s %q", c.GetMetadata().GetName(), handler)
}
func (b *backend) StopPod(_ context.Context, id sandbox.ID) error { return b.call("StopPod %s", id) }
func (b *backend) RemovePod(_ context.Context, id sandbox.ID) error {
	return b.call("RemovePod %s", id)
}
func (b *backend) PodView(id sandbox.ID) (*sandbox.PodView, error) {
	return nil, b.call("PodView %s", id)
}
func (b *backend) InspectPod(id sandbox.ID) (sandbox.PodDetails, error) {
	return sandbox.PodDetails{}, b.call("InspectPod %s", id)
}
func (b *backend) InspectContainer(id sandbox.ContainerID) (sandbox.ContainerDetails, error) {
	return sandbox.ContainerDetails{}, b.call("InspectContainer %s", id)
}
func (b *backend) Ready() (bool, string, string) {
	return false, "NetworkPluginNotReady", "no configuration in /etc/cni/net.d, \xff"
}
func (b *backend) Inspect() (any, string)                       { return map[string]string{"a": "b"}, "no configuration" }
func (b *backend) InspectResult(json.RawMessage) (any, error)   { return nil, b.call("InspectResult") }
func (b *backend) UsePodCIDRs(cidrs []netip.Prefix) error       { return b.call("UsePodCIDRs %v", cidrs) }
func (b *backend) Events() *events.Subscription[*sandbox.Event] { return b.news.Subscribe() }
func (b *backend) ListPods() []*sandbox.PodStatus               { return nil }
func (b *backend) CreateContainer(_ context.Context, pod sandbox.ID, c *runtimev1.ContainerConfig, _ *runtimev1.PodSandboxConfig) (sandbox.ContainerID, error) {
	return "c1", b.call("CreateContainer %s %s", pod, c.GetMetadata().GetName())
}
func (b *backend) StartContainer(_ context.Context, id sandbox.ContainerID) error {
	return b.call("StartContainer %s", id)
}
func (b *backend) StopContainer(_ context.Context, id sandbox.ContainerID, grace time.Duration) error {
	return b.call("StopContainer %s %v", id, grace)
}
func (b *backend) RemoveContainer(_ context.Context, id sandbox.ContainerID) error {
	return b.call("RemoveContainer %s", id)
}
func (b *backend) ContainerStatus(id sandbox.ContainerID) (*sandbox.ContainerStatus, error) {
	return nil, b.call("ContainerStatus %s", id)
}
func (b *backend) ListContainers() []*sandbox.ContainerStatus { return nil }
func (b *backend) ExecSync(_ context.Context, id sandbox.ContainerID, cmd []string, timeout time.Duration) ([]byte, []byte, int32, error) {
	return []byte("out"), []byte("err"), 3, b.call("ExecSync %s %q %v", id, cmd, timeout)
}
func (b *backend) ReopenContainerLog(_ context.Context, id sandbox.ContainerID) error {
	return b.call("ReopenContainerLog %s", id)
}
func (b *backend) UpdateContainer(_ context.Context, id sandbox.ContainerID, r *runtimev1.LinuxContainerResources, annotations map[string]string) error {
	return b.call("UpdateContainer %s %d %v", id, r.GetCpuShares(), annotations)
}
func (b *backend) UpdatePod(_ context.Context, id sandbox.ID, overhead, resources *runtimev1.LinuxContainerResources) error {
	return b.call("UpdatePod %s %d %d", id, overhead.GetCpuShares(), resources.GetCpuShares())
}
func (b *backend) Pull(ctx context.Context, r imageservice.PullRequest) (string, error) {
	b.pull = r
	err := stage.Run(ctx, "resolve", 0, func(context.Context) error { return b.fail })
	return "sha256:abc", err
}

var busybox = &imageservice.Image{ID: "sha256:abc", RepoTags: []string{"docker.io/library/busybox:latest"}, RepoDigests: []string{"docker.io/library/busybox@sha256:def"},
	Size: 7, User: "1000:1000", Config: []byte("{\"os\":\"linux\xff\"}")}

func (b *backend) List() []*imageservice.Image { return []*imageservice.Image{busybox} }
func (b *backend) Find(ref string) (*imageservice.Image, error) {
	switch ref {
	case "busybox", busybox.ID:
		return busybox, nil
	case "a":
		return nil, fmt.Errorf("%w: a: ambiguous", imageservice.ErrInvalidReference)
	}
	return nil, fmt.Errorf("%w: %s", imageservice.ErrNotFound, ref)
}
func (b *backend) Remove(_ context.Context, ref string) error { return b.call("Remove %s", ref) }
func (b *backend) Usage() imageservice.Usage {
	return imageservice.Usage{Mountpoint: "/var/lib/criserver", Bytes: 5, Inodes: 6}
}

// client is a connection to a server with a fake behind it, and what the server logged.
type client struct {
	runtimev1.RuntimeServiceClient
	images runtimev1.ImageServiceClient
	server *Server
	back   *backend
	log    *bytes.Buffer // read it after an RPC has ended
	rec    *stage.Recorder
}

func (c *client) start() {
	c.server.Start(Services{Pods: c.back, Containers: c.back, Resources: c.back, Events: c.back, Images: c.back, Network: c.back})
}

func newClient(t *testing.T, change ...func(*Config)) *client {
	t.Helper()
	c := &client{back: &backend{}, log: &bytes.Buffer{}, rec: stage.NewRecorder(8)}
	config := Config{
		Version: "1.2.3", CgroupDriver: runtimev1.CgroupDriver_CGROUPFS,
		Settings: Settings{Handlers: []Handler{{Name: "", RecursiveReadOnly: true, UserNamespaces: true}}, Effective: []byte(`{"Root":"/r"}`)},
		Features: Features{SupplementalGroupsPolicy: true, MountOptions: true}, Recorder: c.rec,
		Log: slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	for _, f := range change {
		f(&config)
	}
	c.server = New(config)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := c.server.GRPC()
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	c.RuntimeServiceClient, c.images = runtimev1.NewRuntimeServiceClient(conn), runtimev1.NewImageServiceClient(conn)
	return c
}
