package cri

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/events"
)

func TestEventTypes(t *testing.T) {
	for _, test := range []struct {
		is   sandbox.EventType
		want runtimev1.ContainerEventType
	}{
		{sandbox.EventCreated, runtimev1.ContainerEventType_CONTAINER_CREATED_EVENT},
		{sandbox.EventStarted, runtimev1.ContainerEventType_CONTAINER_STARTED_EVENT},
		{sandbox.EventStopped, runtimev1.ContainerEventType_CONTAINER_STOPPED_EVENT},
		{sandbox.EventDeleted, runtimev1.ContainerEventType_CONTAINER_DELETED_EVENT},
	} {
		if got, known := eventTypes[test.is]; got != test.want || !known {
			t.Errorf("%d: got %v, want %v", test.is, got, test.want)
		}
	}
	if got := status.Code(toStatus(fmt.Errorf("x: %w", events.ErrSlow), nil)); got != codes.ResourceExhausted {
		t.Errorf("a slow subscriber is told %v", got)
	}
}

// Streams begin only when there is something to tell, and end with the server, not with its patience.
func TestEventStreamsBeginAndEnd(t *testing.T) {
	c := newClient(t)
	early, err := c.GetContainerEvents(t.Context(), &runtimev1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := early.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("before Start: got %v, want Unavailable", err)
	}
	c.start()
	stream, err := c.GetContainerEvents(t.Context(), &runtimev1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatalf("the subscription does not begin: %v", err)
	}
	c.server.EndStreams()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("after EndStreams: got %v, want Unavailable", err)
	}
	if c.log.Len() > 0 {
		t.Errorf("logged as if something were wrong: %s", c.log)
	}
}
