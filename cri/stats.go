package cri

import (
	"context"
	"iter"
	"slices"

	"google.golang.org/grpc"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cri/metrics"
	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/stats"
)

// StatsService is what cri wants of sandbox.Service for statistics. What belongs to a list is not ok if it went meanwhile.
type StatsService interface {
	ContainerStats(id sandbox.ContainerID) (sandbox.ContainerStats, error)
	PodStats(id sandbox.ID) (sandbox.PodStats, error)
	MeasureContainer(*sandbox.ContainerStatus) (st sandbox.ContainerStats, ok bool)
	MeasurePod(*sandbox.PodStatus) (st sandbox.PodStats, ok bool)
	MeasurePodMetrics(*sandbox.PodStatus) (st sandbox.PodStats, ok bool)
	LayerDir() string
	LayerFileSystem() (stats.FileSystem, error)
}

func (h *runtimeHandlers) ContainerStats(_ context.Context, r *runtimev1.ContainerStatsRequest) (*runtimev1.ContainerStatsResponse, error) {
	if err := validateID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	st, err := h.serving().Stats.ContainerStats(sandbox.ContainerID(r.GetContainerId()))
	if err != nil {
		return nil, err
	}
	return &runtimev1.ContainerStatsResponse{Stats: h.containerStats(st)}, nil
}

func (h *runtimeHandlers) ListContainerStats(ctx context.Context, r *runtimev1.ListContainerStatsRequest) (*runtimev1.ListContainerStatsResponse, error) {
	items, err := h.eachContainerStats(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimev1.ListContainerStatsResponse{Stats: slices.Collect(items)}, ctx.Err()
}

func (h *runtimeHandlers) StreamContainerStats(r *runtimev1.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtimev1.StreamContainerStatsResponse]) error {
	items, err := h.eachContainerStats(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	err = sendBatches(items, func(batch []*runtimev1.ContainerStats) error {
		return stream.Send(&runtimev1.StreamContainerStatsResponse{ContainerStats: batch})
	})
	return firstError(stream.Context().Err(), err)
}

func (h *runtimeHandlers) PodSandboxStats(_ context.Context, r *runtimev1.PodSandboxStatsRequest) (*runtimev1.PodSandboxStatsResponse, error) {
	if err := validateID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	st, err := h.serving().Stats.PodStats(sandbox.ID(r.GetPodSandboxId()))
	if err != nil {
		return nil, err
	}
	return &runtimev1.PodSandboxStatsResponse{Stats: h.podStats(st)}, nil
}

func (h *runtimeHandlers) ListPodSandboxStats(ctx context.Context, r *runtimev1.ListPodSandboxStatsRequest) (*runtimev1.ListPodSandboxStatsResponse, error) {
	items, err := h.eachPodStats(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimev1.ListPodSandboxStatsResponse{Stats: slices.Collect(items)}, ctx.Err()
}

func (h *runtimeHandlers) StreamPodSandboxStats(r *runtimev1.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtimev1.StreamPodSandboxStatsResponse]) error {
	items, err := h.eachPodStats(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	err = sendBatches(items, func(batch []*runtimev1.PodSandboxStats) error {
		return stream.Send(&runtimev1.StreamPodSandboxStatsResponse{PodSandboxStats: batch})
	})
	return firstError(stream.Context().Err(), err)
}

func (h *runtimeHandlers) ListMetricDescriptors(context.Context, *runtimev1.ListMetricDescriptorsRequest) (*runtimev1.ListMetricDescriptorsResponse, error) {
	return &runtimev1.ListMetricDescriptorsResponse{Descriptors: metrics.Descriptors()}, nil
}

func (h *runtimeHandlers) ListPodSandboxMetrics(ctx context.Context, _ *runtimev1.ListPodSandboxMetricsRequest) (*runtimev1.ListPodSandboxMetricsResponse, error) {
	items, err := h.eachPodMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimev1.ListPodSandboxMetricsResponse{PodMetrics: slices.Collect(items)}, ctx.Err()
}

func (h *runtimeHandlers) StreamPodSandboxMetrics(_ *runtimev1.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtimev1.StreamPodSandboxMetricsResponse]) error {
	items, err := h.eachPodMetrics(stream.Context())
	if err != nil {
		return err
	}
	err = sendBatches(items, func(batch []*runtimev1.PodSandboxMetrics) error {
		return stream.Send(&runtimev1.StreamPodSandboxMetricsResponse{PodSandboxMetrics: batch})
	})
	return firstError(stream.Context().Err(), err)
}

// eachPodMetrics measures all pods.
func (s *Server) eachPodMetrics(ctx context.Context) (iter.Seq[*runtimev1.PodSandboxMetrics], error) {
	services := s.serving()
	layers, err := services.Stats.LayerFileSystem()
	if err != nil {
		return nil, err
	}
	return measured(ctx, services.Pods.ListPods(), services.Stats.MeasurePodMetrics, metrics.NewTranslator(layers).Pod), nil
}

// eachContainerStats measures the containers that f lets through.
func (s *Server) eachContainerStats(ctx context.Context, f *runtimev1.ContainerStatsFilter) (iter.Seq[*runtimev1.ContainerStats], error) {
	containers, err := s.containers(&runtimev1.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()})
	if err != nil {
		return nil, err
	}
	return measured(ctx, containers, s.serving().Stats.MeasureContainer, s.containerStats), nil
}

// eachPodStats measures the pods that f lets through.
func (s *Server) eachPodStats(ctx context.Context, f *runtimev1.PodSandboxStatsFilter) (iter.Seq[*runtimev1.PodSandboxStats], error) {
	services := s.serving()
	pods, err := selectPods(services.Pods.ListPods(), &runtimev1.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()})
	if err != nil {
		return nil, err
	}
	return measured(ctx, pods, services.Stats.MeasurePod, s.podStats), nil
}

// measured measures and translates items of a list, several at the same time. It ends with ctx.
func measured[T, S, U any](ctx context.Context, items []T, measure func(T) (S, bool), translate func(S) U) iter.Seq[U] {
	return stats.InParallel(ctx, items, func(item T) (translated U, ok bool) {
		st, ok := measure(item)
		if ok {
			translated = translate(st)
		}
		return translated, ok
	})
}

// firstError is the first of errs that is one: what is known to be the cause stands before its consequences.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
