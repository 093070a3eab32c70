package cri

import (
	"google.golang.org/grpc"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/events"
)

// EventService is what cri wants of sandbox.Service for events.
type EventService interface {
	Events() *events.Subscription[*sandbox.Event]
}

// GetContainerEvents sends events until the client goes. One that does not take them in time gets ResourceExhausted, and has to
// list and to subscribe again. The header of the stream comes when the subscription has begun.
func (h *runtimeHandlers) GetContainerEvents(_ *runtimev1.GetEventsRequest, stream grpc.ServerStreamingServer[runtimev1.ContainerEventResponse]) error {
	subscription := h.serving().Events.Events()
	defer subscription.Close()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		e, err := subscription.Next(stream.Context())
		if err != nil {
			return err
		}
		response, err := h.event(e)
		if err == nil {
			err = stream.Send(response)
		}
		if err != nil {
			return err
		}
	}
}

func (s *Server) event(e *sandbox.Event) (*runtimev1.ContainerEventResponse, error) {
	statuses, err := s.statuses.all(e.Containers)
	return &runtimev1.ContainerEventResponse{
		ContainerId:        e.ID,
		ContainerEventType: eventTypes[e.Type],
		CreatedAt:          nanos(e.At),
		PodSandboxStatus:   podStatus(e.Pod),
		ContainersStatuses: statuses,
	}, err
}

var eventTypes = map[sandbox.EventType]runtimev1.ContainerEventType{
	sandbox.EventCreated: runtimev1.ContainerEventType_CONTAINER_CREATED_EVENT,
	sandbox.EventStarted: runtimev1.ContainerEventType_CONTAINER_STARTED_EVENT,
	sandbox.EventStopped: runtimev1.ContainerEventType_CONTAINER_STOPPED_EVENT,
	sandbox.EventDeleted: runtimev1.ContainerEventType_CONTAINER_DELETED_EVENT,
}
