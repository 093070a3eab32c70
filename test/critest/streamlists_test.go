package critest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// collect reads a stream to its end and returns the items of each message.
func collect[M any, T any](t testing.TB, stream interface{ Recv() (M, error) }, err error, items func(M) []T) (batches [][]T) {
	t.Helper()
	for err == nil {
		var m M
		if m, err = stream.Recv(); err == nil {
			batches = append(batches, items(m))
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatalf("the stream ends with %v", err)
	}
	return batches
}

func (d *daemon) streamPods(t testing.TB, f *cri.PodSandboxFilter) [][]*cri.PodSandbox {
	t.Helper()
	stream, err := d.runtime.StreamPodSandboxes(bounded(t), &cri.StreamPodSandboxesRequest{Filter: f})
	return collect(t, stream, err, (*cri.StreamPodSandboxesResponse).GetPodSandboxes)
}

func (d *daemon) streamContainers(t testing.TB, f *cri.ContainerFilter) [][]*cri.Container {
	t.Helper()
	stream, err := d.runtime.StreamContainers(bounded(t), &cri.StreamContainersRequest{Filter: f})
	return collect(t, stream, err, (*cri.StreamContainersResponse).GetContainers)
}

func (d *daemon) streamImages(t testing.TB, f *cri.ImageFilter) [][]*cri.Image {
	t.Helper()
	stream, err := d.images.StreamImages(bounded(t), &cri.StreamImagesRequest{Filter: f})
	return collect(t, stream, err, (*cri.StreamImagesResponse).GetImages)
}

// sameItems wants what was streamed to be what was listed, in messages that have at least one item.
func sameItems[T proto.Message](t *testing.T, what string, streamed [][]T, listed []T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(streamed, func(batch []T) bool { return len(batch) == 0 }) {
		t.Errorf("%s: a message without items", what)
	}
	if all := slices.Concat(streamed...); !slices.EqualFunc(all, listed, func(a, b T) bool { return proto.Equal(a, b) }) {
		t.Errorf("%s: streamed\n%v\nlisted\n%v", what, all, listed)
	}
}

func TestStreamedLists(t *testing.T) {
	d := use(t)
	if n := len(d.streamPods(t, nil)) + len(d.streamContainers(t, nil)); n != 0 {
		t.Errorf("without pods there are %d messages", n)
	}
	p, q := runPod(t, d), runPod(t, d)
	q.stop(t)
	c := p.create(t, idle)
	p.start(t, idle)
	unknown := strings.Repeat("0", 64)
	for _, f := range []*cri.PodSandboxFilter{nil, {Id: p.id}, {Id: p.id[:12]}, {Id: unknown}, {Id: "no id"}, {LabelSelector: map[string]string{"no": "such"}},
		{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}} {
		r, err := d.runtime.ListPodSandbox(bounded(t), &cri.ListPodSandboxRequest{Filter: f})
		sameItems(t, "pods of "+f.String(), d.streamPods(t, f), r.GetItems(), err)
	}
	for _, f := range []*cri.ContainerFilter{nil, {Id: c.id}, {Id: c.id[:12]}, {Id: unknown}, {PodSandboxId: p.id[:12]}, {PodSandboxId: unknown},
		{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}, PodSandboxId: p.id}} {
		r, err := d.runtime.ListContainers(bounded(t), &cri.ListContainersRequest{Filter: f})
		sameItems(t, "containers of "+f.String(), d.streamContainers(t, f), r.GetContainers(), err)
	}
	for _, f := range []*cri.ImageFilter{nil, {Image: &cri.ImageSpec{Image: suite.busybox}}, {Image: &cri.ImageSpec{Image: "no/such:image"}}} {
		r, err := d.images.ListImages(bounded(t), &cri.ListImagesRequest{Filter: f})
		sameItems(t, "images of "+f.String(), d.streamImages(t, f), r.GetImages(), err)
	}
}

// Nine pods have more in their annotations than a client of the kubelet takes in one message: the list fails, the stream does not.
// One that does not read it to its end takes from nobody else, and gets the state of its begin, whatever happens meanwhile.
func TestStreamOfMoreThanAMessage(t *testing.T) {
	d := use(t)
	var want []string
	for range 9 {
		p := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"much": strings.Repeat("x", 2<<20)} })
		want = append(want, p.id)
	}
	_, err := d.runtime.ListPodSandbox(bounded(t), &cri.ListPodSandboxRequest{}, grpc.MaxCallRecvMsgSize(16<<20))
	refused(t, err, codes.ResourceExhausted)
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	slow, err := d.runtime.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := slow.Recv() // so the list was read
	if err != nil {
		t.Fatal(err)
	}
	extra := runPod(t, d)
	ids := func(batches [][]*cri.PodSandbox) (all []string) {
		for _, pod := range slices.Concat(batches...) {
			all = append(all, pod.GetId())
		}
		slices.Sort(all)
		return all
	}
	batches := d.streamPods(t, nil)
	for _, batch := range batches {
		if size := proto.Size(&cri.StreamPodSandboxesResponse{PodSandboxes: batch}); size > 4<<20 {
			t.Errorf("a message of %d bytes", size)
		}
	}
	slices.Sort(want)
	if got := ids(append([][]*cri.PodSandbox{first.GetPodSandboxes()}, collect(t, slow, nil, (*cri.StreamPodSandboxesResponse).GetPodSandboxes)...)); !slices.Equal(got, want) {
		t.Errorf("the slow one got %q instead of %q", got, want)
	}
	want = append(want, extra.id)
	slices.Sort(want)
	if got := ids(batches); !slices.Equal(got, want) {
		t.Errorf("streamed %q instead of %q", got, want)
	}
}
