package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kind is one kind of request.
type kind struct {
	name    string
	method  string
	request func(i int) proto.Message
	answer  func() proto.Message
}

func (n *node) kinds() []kind {
	if n.options.stats {
		return statistics
	}
	pod := func(i int) string { return n.pods[i%len(n.pods)] }
	container := func(i int) string { return n.containers[i*7919%len(n.containers)] }
	return []kind{
		{"ListContainers", "ListContainers", func(int) proto.Message { return &cri.ListContainersRequest{} }, func() proto.Message { return &cri.ListContainersResponse{} }},
		{"ListContainers of a pod", "ListContainers", func(i int) proto.Message {
			return &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod(i)}}
		}, func() proto.Message { return &cri.ListContainersResponse{} }},
		{"ContainerStatus", "ContainerStatus", func(i int) proto.Message { return &cri.ContainerStatusRequest{ContainerId: container(i)} },
			func() proto.Message { return &cri.ContainerStatusResponse{} }},
		{"ListPodSandbox", "ListPodSandbox", func(int) proto.Message { return &cri.ListPodSandboxRequest{} }, func() proto.Message { return &cri.ListPodSandboxResponse{} }},
		{"PodSandboxStatus", "PodSandboxStatus", func(i int) proto.Message { return &cri.PodSandboxStatusRequest{PodSandboxId: pod(i)} },
			func() proto.Message { return &cri.PodSandboxStatusResponse{} }},
	}
}

var statistics = []kind{
	{"ListContainerStats", "ListContainerStats", func(int) proto.Message { return &cri.ListContainerStatsRequest{} }, func() proto.Message { return &cri.ListContainerStatsResponse{} }},
	{"ListPodSandboxStats", "ListPodSandboxStats", func(int) proto.Message { return &cri.ListPodSandboxStatsRequest{} }, func() proto.Message { return &cri.ListPodSandboxStatsResponse{} }},
	{"ListPodSandboxMetrics", "ListPodSandboxMetrics", func(int) proto.Message { return &cri.ListPodSandboxMetricsRequest{} }, func() proto.Message { return &cri.ListPodSandboxMetricsResponse{} }},
}

// measure asks each kind of request in each parallelism and prints a row of it.
func (n *node) measure(ctx context.Context, conn *grpc.ClientConn) error {
	fmt.Print("| request | parallel | p50 | p99 | decoded p50 | p99 | bytes | requests/s |\n|---|---|---|---|---|---|---|---|\n")
	for _, k := range n.kinds() {
		for _, parallel := range n.options.parallel {
			r, err := n.ask(ctx, conn, k, parallel)
			if err != nil {
				return fmt.Errorf("%s, %d at the same time: %w", k.name, parallel, err)
			}
			fmt.Printf("| %s | %d | %s | %s | %s | %s | %d | %.0f |\n", k.name, parallel, r.of(answered, 0.5), r.of(answered, 0.99), r.of(decoded, 0.5), r.of(decoded, 0.99),
				r.bytes, float64(n.options.requests)/r.took.Seconds())
		}
	}
	return nil
}

// times of one kind of request.
type times struct {
	all   []lap
	bytes int // of one answer
	took  time.Duration
}

type lap struct{ answered, decoded time.Duration }

func answered(l lap) time.Duration { return l.answered }
func decoded(l lap) time.Duration  { return l.decoded }

// of is a percentile, in milliseconds.
func (t *times) of(what func(lap) time.Duration, q float64) string {
	sorted := make([]time.Duration, 0, len(t.all))
	for _, l := range t.all {
		sorted = append(sorted, what(l))
	}
	slices.Sort(sorted)
	return fmt.Sprintf("%.2f", float64(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)])/float64(time.Millisecond))
}

// warmUp is how many requests before the others are not counted.
const warmUp = 20

func (n *node) ask(ctx context.Context, conn *grpc.ClientConn, k kind, parallel int) (*times, error) {
	var answer []byte
	for i := range warmUp {
		if _, err := k.once(ctx, conn, i, &answer); err != nil {
			return nil, err
		}
	}
	t := &times{all: make([]lap, n.options.requests)}
	errs := make([]error, parallel)
	began := time.Now()
	var wg sync.WaitGroup
	for w := range parallel {
		wg.Go(func() {
			answer := make([]byte, 0, cap(answer))
			for i := w; i < n.options.requests && errs[w] == nil; i += parallel {
				t.all[i], errs[w] = k.once(ctx, conn, i, &answer)
			}
			if w == 0 {
				t.bytes = len(answer)
			}
		})
	}
	wg.Wait()
	t.took = time.Since(began)
	return t, errors.Join(errs...)
}

// once sends one request and looks when its answer was there and when it was decoded.
func (k kind) once(ctx context.Context, conn *grpc.ClientConn, i int, answer *[]byte) (l lap, err error) {
	request, err := proto.Marshal(k.request(i))
	if err != nil {
		return l, err
	}
	began := time.Now()
	if err := conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+k.method, request, answer, grpc.ForceCodecV2(verbatim{})); err != nil {
		return l, err
	}
	l.answered = time.Since(began)
	if err := proto.Unmarshal(*answer, k.answer()); err != nil {
		return l, err
	}
	l.decoded = time.Since(began)
	return l, nil
}

// verbatim is a codec of what is encoded already.
type verbatim struct{}

// Name is that of the codec that servers expect.
func (verbatim) Name() string { return "proto" }

// Marshal passes v on.
func (verbatim) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

// Unmarshal copies data, which gRPC uses again, into a buffer that is there.
func (verbatim) Unmarshal(data mem.BufferSlice, v any) error {
	answer := v.(*[]byte)
	*answer = slices.Grow((*answer)[:0], data.Len())[:data.Len()]
	data.CopyTo(*answer)
	return nil
}
