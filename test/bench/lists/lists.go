package lists

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
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
	if n.options.Stats {
		return statistics
	}
	pod := func(i int) string { return n.pods[i%len(n.pods)] }
	container := func(i int) string { return n.containers[i*7919%len(n.containers)] }
	return []kind{
		{Whole, "ListContainers", func(int) proto.Message { return &cri.ListContainersRequest{} }, func() proto.Message { return &cri.ListContainersResponse{} }},
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

// Options say what is made on the server, and how often it is asked.
type Options struct {
	Image      string // of the containers, which must be present
	Parent     string // cgroup parent of the pods
	Pods       int
	Containers int  // of all pods together
	Requests   int  // of each kind and parallelism
	Stats      bool // the containers are started, and statistics are asked for instead
	Parallel   []int
	CPU        func() time.Duration // processor time that the server has used so far; nil: nobody knows
}

// Report is what was found out.
type Report struct {
	Pods, Containers int
	Made             time.Duration // what making them took
	Rows             []Row
}

// Row is one kind of request in one parallelism.
type Row struct {
	Request         string
	Parallel        int
	Answered        Percentiles // until the client has the bytes
	Decoded         Percentiles // until the client has decoded them, too
	CPU             Percentiles // processor time of the server meanwhile, one request at a time; else, and if nobody knows, 0
	Bytes           int         // of one answer
	RequestsASecond float64
}

// Percentiles are of all requests of a row.
type Percentiles struct{ P50, P99 time.Duration }

// Whole is the request for the list of all containers.
const Whole = "ListContainers"

// cleanBound is how long removing what was made may take.
const cleanBound = 3 * time.Minute

// ownMemory is until when this process collects no garbage while it asks.
const ownMemory = 1 << 30

// Measure makes pods and containers, asks for each kind of request, and removes what it made.
func Measure(ctx context.Context, conn *grpc.ClientConn, o Options) (r *Report, err error) {
	n := &node{runtime: cri.NewRuntimeServiceClient(conn), options: o}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanBound)
		defer cancel()
		err = errors.Join(err, n.remove(clean))
	}()
	began := time.Now()
	if err := n.fill(ctx); err != nil {
		return nil, err
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(ownMemory))
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // its pauses would count as the server's
	r = &Report{Pods: len(n.pods), Containers: len(n.containers), Made: time.Since(began)}
	for _, k := range n.kinds() {
		for _, parallel := range o.Parallel {
			asked, err := n.ask(ctx, conn, k, parallel, o.Requests, false)
			if err != nil {
				return nil, fmt.Errorf("%s, %d at the same time: %w", k.name, parallel, err)
			}
			decoded, err := n.ask(ctx, conn, k, parallel, max(o.Requests/decodedShare, parallel), true)
			if err != nil {
				return nil, fmt.Errorf("%s, %d at the same time: %w", k.name, parallel, err)
			}
			r.Rows = append(r.Rows, Row{Request: k.name, Parallel: parallel, Answered: percentiles(asked.all), Decoded: percentiles(decoded.all), CPU: percentiles(asked.cpu),
				Bytes: asked.bytes, RequestsASecond: float64(o.Requests) / asked.took.Seconds()})
		}
	}
	return r, nil
}

// times of one kind of request.
type times struct {
	all   []time.Duration
	cpu   []time.Duration // of the server; nil: not known
	bytes int             // of one answer
	took  time.Duration
}

func percentiles(all []time.Duration) Percentiles {
	if len(all) == 0 {
		return Percentiles{}
	}
	sorted := slices.Sorted(slices.Values(all))
	at := func(q float64) time.Duration { return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)] }
	return Percentiles{at(0.5), at(0.99)}
}

// decodedShare is for how many requests whose answers are only taken there is one whose answer is decoded: decoding makes more
// garbage, and drives more out of the processors' caches, than taking does, so that each is measured without the other.
const decodedShare = 5

// warmUp is how many requests before the others are not counted.
const warmUp = 20

func (n *node) ask(ctx context.Context, conn *grpc.ClientConn, k kind, parallel, requests int, decode bool) (*times, error) {
	var answer []byte
	for i := range warmUp {
		if _, err := k.once(ctx, conn, i, &answer, decode); err != nil {
			return nil, err
		}
	}
	t := &times{all: make([]time.Duration, requests)}
	cpuTime := func() time.Duration { return 0 }
	if parallel == 1 && n.options.CPU != nil {
		t.cpu, cpuTime = make([]time.Duration, requests), n.options.CPU
	}
	errs := make([]error, parallel)
	began := time.Now()
	var wg sync.WaitGroup
	for w := range parallel {
		wg.Go(func() {
			answer := make([]byte, 0, cap(answer))
			for i := w; i < requests && errs[w] == nil; i += parallel {
				cpu := cpuTime()
				t.all[i], errs[w] = k.once(ctx, conn, i, &answer, decode)
				if t.cpu != nil {
					t.cpu[i] = cpuTime() - cpu
				}
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

// once sends one request and looks when its answer was there, or when it was decoded.
func (k kind) once(ctx context.Context, conn *grpc.ClientConn, i int, answer *[]byte, decode bool) (time.Duration, error) {
	took, err := Take(ctx, conn, k.method, k.request(i), answer)
	if err != nil || !decode {
		return took, err
	}
	began := time.Now()
	err = proto.Unmarshal(*answer, k.answer())
	return took + time.Since(began), err
}

// Take sends a request of the RuntimeService and says when the bytes of its answer were there, which it leaves in answer.
func Take(ctx context.Context, conn *grpc.ClientConn, method string, request proto.Message, answer *[]byte) (time.Duration, error) {
	text, err := proto.Marshal(request)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+method, text, answer, grpc.ForceCodecV2(verbatim{}))
	return time.Since(began), err
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
