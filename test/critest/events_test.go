package critest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// events is a subscription whose events are put into words: one line each with the states of the pod and of its containers.
type events struct {
	stream cri.RuntimeService_GetContainerEventsClient
	names  map[string]string // of ids
	last   int64
}

// subscribe returns when the subscription has begun.
func subscribe(t testing.TB, d *daemon) *events {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream, err := d.runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	return &events{stream: stream, names: map[string]string{}}
}

func (e *events) name(id, name string) { e.names[id] = name }

// next waits for the next event.
func (e *events) next(t testing.TB) *cri.ContainerEventResponse {
	t.Helper()
	got, err := e.stream.Recv()
	if err != nil {
		t.Fatalf("events: %v", err)
	}
	if got.GetCreatedAt() <= e.last {
		t.Errorf("an event of %d comes after one of %d", got.GetCreatedAt(), e.last)
	}
	e.last = got.GetCreatedAt()
	return got
}

// want waits for these events and no others.
func (e *events) want(t testing.TB, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if got := e.line(e.next(t)); got != line {
			t.Errorf("event %q instead of %q", got, line)
		}
	}
}

func (e *events) line(event *cri.ContainerEventResponse) string {
	short := func(value fmt.Stringer, around ...string) string {
		text := value.String()
		for _, part := range around {
			text = strings.ReplaceAll(text, part, "")
		}
		return strings.ToLower(text)
	}
	var states []string
	for _, c := range event.GetContainersStatuses() {
		state := e.names[c.GetId()] + " " + short(c.GetState(), "CONTAINER_")
		if c.GetState() == cri.ContainerState_CONTAINER_EXITED {
			state += fmt.Sprintf(" %d %s", c.GetExitCode(), c.GetReason())
		}
		states = append(states, state)
	}
	slices.Sort(states)
	return strings.Join(append([]string{short(event.GetContainerEventType(), "CONTAINER_", "_EVENT") + " " + e.names[event.GetContainerId()] +
		": " + short(event.GetPodSandboxStatus().GetState(), "SANDBOX_")}, states...), ", ")
}

func TestEventsOfALife(t *testing.T) {
	d := use(t)
	a, b := subscribe(t, d), subscribe(t, d)
	p := runPod(t, d, podNetwork)
	c := p.create(t, idle)
	failing := p.create(t, "", command("/no/such/program"))
	for _, e := range []*events{a, b} {
		e.name(p.id, "pod")
		e.name(c.id, "main")
		e.name(failing.id, "failing")
	}
	if err := c.tryStart(t); err != nil {
		t.Fatal(err)
	}
	if failing.tryStart(t) == nil {
		t.Error("a program that does not exist was started")
	}
	c.waitOutput(t, "ready")
	c.stop(t, 30)
	c.remove(t)
	c.remove(t)
	running := p.start(t, idle)
	for _, e := range []*events{a, b} {
		e.name(running.id, "second")
	}
	p.stop(t)
	p.stop(t)
	p.remove(t)
	p.remove(t)
	for _, e := range []*events{a, b} {
		first := e.next(t)
		if got := e.line(first); got != "created pod: ready" {
			t.Errorf("first event %q", got)
		}
		s := first.GetPodSandboxStatus()
		if s.GetMetadata().GetUid() != p.config.Metadata.Uid || s.GetNetwork().GetIp() == "" || s.GetCreatedAt() == 0 || s.GetLinux().GetNamespaces().GetOptions() == nil {
			t.Errorf("pod of the first event: %v", s)
		}
		e.want(t, "started pod: ready", "created main: ready, main created", "created failing: ready, failing created, main created",
			"started main: ready, failing created, main running", "stopped failing: ready, failing exited 128 StartError, main running",
			"stopped main: ready, failing exited 128 StartError, main exited 0 Completed", "deleted main: ready, failing exited 128 StartError",
			"created second: ready, failing exited 128 StartError, second created", "started second: ready, failing exited 128 StartError, second running",
			"stopped second: notready, failing exited 128 StartError, second exited 137 Error",
			"stopped pod: notready, failing exited 128 StartError, second exited 137 Error")
		deleted := []string{e.names[e.next(t).GetContainerId()], e.names[e.next(t).GetContainerId()]} // in any order
		slices.Sort(deleted)
		if !slices.Equal(deleted, []string{"failing", "second"}) {
			t.Errorf("containers deleted: %q", deleted)
		}
		e.want(t, "deleted pod: notready")
	}
}

// What an event says is the status at that time: the kubelet puts one in place of the other.
func TestEventsTellStatuses(t *testing.T) {
	d := use(t)
	e := subscribe(t, d)
	p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"note": "x"} })
	c := p.start(t, idle)
	var last *cri.ContainerEventResponse
	for range 4 {
		last = e.next(t)
	}
	r, err := d.runtime.PodSandboxStatus(bounded(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := last.GetPodSandboxStatus().String(), r.GetStatus().String(); got != want {
		t.Errorf("the event has the pod\n%s\nits status\n%s", got, want)
	}
	for what, all := range map[string][]*cri.ContainerStatus{"event": last.GetContainersStatuses(), "status of the pod": r.GetContainersStatuses()} {
		if len(all) != 1 || all[0].String() != c.status(t).String() {
			t.Errorf("the %s has the containers\n%v\nthe container's status is\n%v", what, all, c.status(t))
		}
	}
	if r.GetTimestamp() <= last.GetCreatedAt() {
		t.Errorf("the status is of %d, the last event of %d", r.GetTimestamp(), last.GetCreatedAt())
	}
}

func TestEventsWhenPauseDies(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, idle)
	c.waitOutput(t, "ready")
	e := subscribe(t, d)
	e.name(p.id, "pod")
	e.name(c.id, "main")
	if err := unix.Kill(p.pause(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var stopped []string
	for range 2 { // the container dies with pause, and either may be seen first
		event := e.next(t)
		if event.GetContainerEventType() != cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
			t.Errorf("event %q", e.line(event))
		}
		stopped = append(stopped, e.names[event.GetContainerId()])
	}
	slices.Sort(stopped)
	if !slices.Equal(stopped, []string{"main", "pod"}) {
		t.Errorf("stopped: %q", stopped)
	}
	p.remove(t)
	e.want(t, "deleted main: notready", "deleted pod: notready")
}

// A subscriber that does not read is cut off in the end and delays nobody; another gets everything once.
func TestEventsOfASlowSubscriber(t *testing.T) {
	d := use(t)
	slow, quick := subscribe(t, d), subscribe(t, d)
	const lives, lanes = 300, 4 // four events each
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for range lives / lanes {
				config := podConfig(t, func(c *cri.PodSandboxConfig) {
					c.Annotations = map[string]string{"much": strings.Repeat("x", 16<<10), "lane": fmt.Sprint(lane)}
				})
				r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
				if err == nil {
					_, err = d.runtime.RemovePodSandbox(bounded(t), &cri.RemovePodSandboxRequest{PodSandboxId: r.GetPodSandboxId()})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer wg.Wait()
	told := map[string][]cri.ContainerEventType{}
	last := map[string]int64{}
	for range 4 * lives {
		event, err := quick.stream.Recv()
		if err != nil {
			t.Errorf("the one that reads: %v", err)
			return
		}
		id := event.GetContainerId()
		if told[id] = append(told[id], event.GetContainerEventType()); event.GetCreatedAt() <= last[id] {
			t.Errorf("pod %s: an event of %d comes after one of %d", id, event.GetCreatedAt(), last[id])
		}
		last[id] = event.GetCreatedAt()
	}
	for id, types := range told {
		if !slices.Equal(types, []cri.ContainerEventType{0, 1, 2, 3}) {
			t.Errorf("pod %s: events %v", id, types)
		}
	}
	if len(told) != lives {
		t.Errorf("events of %d pods instead of %d", len(told), lives)
	}
	read := 0
	var err error
	for err == nil {
		if _, err = slow.stream.Recv(); err == nil {
			read++
		}
	}
	if status.Code(err) != codes.ResourceExhausted || read >= 4*lives {
		t.Errorf("the one that does not read got %d events, then %v", read, err)
	}
	again := subscribe(t, d) // after which nothing is missed any more
	p := runPod(t, d)
	again.name(p.id, "pod")
	again.want(t, "created pod: ready", "started pod: ready")
}

// A criserver that is told to stop does not wait for those that listen.
func TestEventsEndWithTheDaemon(t *testing.T) {
	d := use(t)
	runPod(t, d, podNetwork) // without a pod the network would be removed
	e := subscribe(t, d)
	process := d.cmd.Process
	if err := process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := e.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v", err)
	}
	<-d.ended
	d.resume(t)
}
