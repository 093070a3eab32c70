package cri

import (
	"context"
	"errors"
	"iter"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/sandbox"
)

// Each list is read once, from immutable values, whether it is answered whole or streamed: what a slow client gets of a
// stream is what there was at its begin. Items of streams are translated as they are sent, those of lists once in their life.

func (h *runtimeHandlers) ListPodSandbox(_ context.Context, r *runtimev1.ListPodSandboxRequest) (*runtimev1.ListPodSandboxResponse, error) {
	pods, err := selectPods(h.serving().Pods.ListPods(), r.GetFilter())
	if err != nil {
		return nil, err
	}
	response := &runtimev1.ListPodSandboxResponse{}
	return response, h.listedPods.fill(response, pods, proto.Size(r.GetFilter()) == 0)
}

func (h *runtimeHandlers) StreamPodSandboxes(r *runtimev1.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimev1.StreamPodSandboxesResponse]) error {
	pods, err := selectPods(h.serving().Pods.ListPods(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(translated(pods, listedPod), func(batch []*runtimev1.PodSandbox) error {
		return stream.Send(&runtimev1.StreamPodSandboxesResponse{PodSandboxes: batch})
	})
}

func (h *runtimeHandlers) ListContainers(_ context.Context, r *runtimev1.ListContainersRequest) (*runtimev1.ListContainersResponse, error) {
	containers, err := h.containers(r.GetFilter())
	if err != nil {
		return nil, err
	}
	response := &runtimev1.ListContainersResponse{}
	return response, h.listedContainers.fill(response, containers, proto.Size(r.GetFilter()) == 0)
}

func (h *runtimeHandlers) StreamContainers(r *runtimev1.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimev1.StreamContainersResponse]) error {
	containers, err := h.containers(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(translated(containers, listedContainer), func(batch []*runtimev1.Container) error {
		return stream.Send(&runtimev1.StreamContainersResponse{Containers: batch})
	})
}

// containers are those that f lets through.
func (s *Server) containers(f *runtimev1.ContainerFilter) ([]*sandbox.ContainerStatus, error) {
	services := s.serving()
	return selectContainers(services.Containers.ListContainers(), services.Pods.ListPods(), f)
}

func (h *imageHandlers) ListImages(_ context.Context, r *runtimev1.ListImagesRequest) (*runtimev1.ListImagesResponse, error) {
	images, err := h.images(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimev1.ListImagesResponse{Images: slices.Collect(translated(images, image))}, nil
}

func (h *imageHandlers) StreamImages(r *runtimev1.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimev1.StreamImagesResponse]) error {
	images, err := h.images(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(translated(images, image), func(batch []*runtimev1.Image) error {
		return stream.Send(&runtimev1.StreamImagesResponse{Images: batch})
	})
}

// images are all, or the one that f names.
func (s *Server) images(f *runtimev1.ImageFilter) ([]*imageservice.Image, error) {
	images := s.serving().Images
	ref := f.GetImage().GetImage()
	if ref == "" {
		return images.List(), nil
	}
	img, err := images.Find(ref)
	if errors.Is(err, imageservice.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []*imageservice.Image{img}, nil
}

// translated gives all in terms of CRI, one at a time.
func translated[T, U any](all []T, translate func(T) U) iter.Seq[U] {
	return func(yield func(U) bool) {
		for _, one := range all {
			if !yield(translate(one)) {
				return
			}
		}
	}
}
