package critest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox/nri/nritest"
)

// nriSocket is where plugins connect, for a root that is not the default.
func (d *daemon) nriSocket() string { return filepath.Join(d.state(), "nri.sock") }

// plugged connects a plugin for the length of the test.
func plugged(t *testing.T, d *daemon, p *nritest.Plugin) *nritest.Plugin {
	t.Helper()
	return nritest.Connect(t, d.nriSocket(), p)
}

// wantTold compares the names of the events that are about id with a list.
func wantTold(t *testing.T, p *nritest.Plugin, id, want string) {
	t.Helper()
	var got []string
	for _, e := range p.Events() {
		if e.Container != nil && e.Container.Id == id || e.Container == nil && e.Pod.Id == id {
			got = append(got, e.Name)
		}
	}
	if text := strings.Join(got, " "); text != want {
		t.Errorf("of %s the plugin was told %s, want %s", id, text, want)
	}
}

const (
	toldOfPod       = "RunPodSandbox StopPodSandbox RemovePodSandbox"
	toldOfContainer = "CreateContainer PostCreateContainer StartContainer PostStartContainer StopContainer RemoveContainer"
)

func TestNRIEvents(t *testing.T) {
	d := use(t)
	for _, row := range []struct {
		name, script string
		end          func(*testing.T, *pod, *container)
	}{
		{"stopped and removed, each twice", idle, func(t *testing.T, p *pod, c *container) {
			for range 2 {
				c.stop(t, 0)
			}
			c.remove(t)
			for range 2 {
				p.stop(t)
			}
			p.remove(t)
		}},
		{"exits by itself", "exit 3", func(t *testing.T, p *pod, c *container) { c.wait(t); c.remove(t); p.remove(t) }},
		{"cannot be executed", "", func(t *testing.T, p *pod, c *container) { c.remove(t); p.remove(t) }},
		{"removed while it runs", idle, func(t *testing.T, p *pod, c *container) { c.remove(t); p.remove(t) }},
		{"pod removed whole", idle, func(t *testing.T, p *pod, _ *container) { p.remove(t) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			told := plugged(t, d, &nritest.Plugin{})
			p := runPod(t, d)
			events := toldOfContainer
			var c *container
			if row.script == "" {
				events = strings.ReplaceAll(events, "PostStartContainer ", "")
				c = p.create(t, "", command("/no/such/file"))
				refused(t, c.tryStart(t), codes.Unknown, "/no/such/file")
			} else {
				c = p.start(t, row.script)
			}
			row.end(t, p, c)
			wantTold(t, told, c.id, events)
			wantTold(t, told, p.id, toldOfPod)
			if faults, left := told.Replay(); len(faults)+len(left) > 0 {
				t.Errorf("faults %q, left %q of\n%s", faults, left, told.Text())
			}
		})
	}
}

func TestNRIRefusal(t *testing.T) {
	d := use(t)
	refuse := ""
	told := plugged(t, d, &nritest.Plugin{On: func(_ context.Context, e nritest.Event) error {
		if e.Name == refuse {
			return errors.New("not on this node")
		}
		return nil
	}})
	t.Run("RunPodSandbox", func(t *testing.T) {
		check(t, d)
		refuse = "RunPodSandbox"
		config := podConfig(t, podNetwork)
		_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
		refused(t, err, codes.Unknown, "not on this node")
		id := told.Last(t, "RunPodSandbox").Pod.Id
		wantTold(t, told, id, toldOfPod)
		_, err = d.runtime.PodSandboxStatus(bounded(t), &cri.PodSandboxStatusRequest{PodSandboxId: id})
		refused(t, err, codes.NotFound, id)
	})
	t.Run("CreateContainer", func(t *testing.T) {
		check(t, d)
		refuse = ""
		p := runPod(t, d)
		refuse = "CreateContainer"
		_, err := p.tryCreate(t, containerConfig(idle))
		refused(t, err, codes.Unknown, "not on this node")
		wantTold(t, told, told.Last(t, "CreateContainer").Container.Id, "CreateContainer StopContainer RemoveContainer")
		refuse = ""
		p.start(t, "exit 0").wait(t)
	})
	t.Run("StartContainer", func(t *testing.T) {
		check(t, d)
		p := runPod(t, d)
		c := p.create(t, idle)
		refuse = "StartContainer"
		refused(t, c.tryStart(t), codes.Unknown, "not on this node")
		refuse = ""
		if st := c.status(t); st.State != cri.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" {
			t.Errorf("state %v, reason %s", st.State, st.Reason)
		}
	})
}

// Plugins come and go while pods do. None of them loses anything or is told anything twice.
func TestNRISynchronisation(t *testing.T) {
	d := use(t)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 3 {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				t.Run("life", func(t *testing.T) {
					p := runPod(t, d)
					p.start(t, "exit 0").wait(t)
					p.start(t, idle)
					p.remove(t)
				})
			}
		})
	}
	var all []*nritest.Plugin
	for i := range 8 {
		p := plugged(t, d, &nritest.Plugin{Name: fmt.Sprintf("p%d", i)})
		all = append(all, p)
		p.Await(t, "RunPodSandbox", 2)
		if i%2 == 0 {
			p.Close()
		}
	}
	close(stop)
	busy.Wait()
	for i, p := range all {
		faults, left := p.Replay()
		if i%2 == 0 {
			left = nil
		}
		if len(faults)+len(left) > 0 {
			t.Errorf("plugin %s: faults %q, not removed %q of\n%s", p.Name, faults, left, p.Text())
		}
	}
}

func TestNRIRestart(t *testing.T) {
	for name, end := range map[string]func(*daemon) error{"killed": (*daemon).kill, "stopped": (*daemon).stop} {
		t.Run(name, func(t *testing.T) {
			d := use(t)
			alive(t, d)
			before := plugged(t, d, &nritest.Plugin{})
			p := runPod(t, d, podNetwork)
			running, created, exited := p.start(t, idle), p.create(t, idle), p.start(t, "exit 0")
			exited.wait(t)
			if err := end(d); err != nil {
				t.Fatal(err)
			}
			<-before.Closed()
			d.resume(t)
			after := plugged(t, d, &nritest.Plugin{})
			pods, containers := after.Synced()
			if len(pods) != 1 || pods[0].Id != p.id || len(pods[0].Ips) != 2 {
				t.Errorf("pods %v", pods)
			}
			states := map[string]string{}
			for _, c := range containers {
				states[c.Id] = fmt.Sprint(c.State, c.Pid > 0, len(c.Args) > 0, len(c.Mounts) > 0)
			}
			want := map[string]string{running.id: "CONTAINER_RUNNING true true true", created.id: "CONTAINER_CREATED false true true"}
			if fmt.Sprint(states) != fmt.Sprint(want) {
				t.Errorf("containers %v, want %v", states, want)
			}
			p.remove(t)
			wantTold(t, after, running.id, "StopContainer RemoveContainer")
			wantTold(t, after, created.id, "StopContainer RemoveContainer")
			wantTold(t, after, exited.id, "RemoveContainer")
			wantTold(t, after, p.id, "StopPodSandbox RemovePodSandbox")
		})
	}
}

func TestNRIPluginThatHangs(t *testing.T) {
	d := use(t)
	released := make(chan struct{})
	hanging := plugged(t, d, &nritest.Plugin{On: func(context.Context, nritest.Event) error { <-released; return nil }})
	defer close(released)
	other := plugged(t, d, &nritest.Plugin{Name: "other", Index: "20"})
	p := runPod(t, d) // goes on without it
	<-hanging.Closed()
	c := p.start(t, "exit 0")
	c.wait(t)
	p.remove(t)
	wantTold(t, hanging, p.id, "RunPodSandbox")
	wantTold(t, other, p.id, toldOfPod)
	wantTold(t, other, c.id, toldOfContainer)
}

func TestNRIPluginThatVanishes(t *testing.T) {
	d := use(t)
	var gone *nritest.Plugin
	gone = &nritest.Plugin{On: func(_ context.Context, e nritest.Event) error {
		if e.Name == "CreateContainer" {
			gone.Close()
		}
		return nil
	}}
	plugged(t, d, gone)
	p := runPod(t, d)
	p.start(t, "exit 0").wait(t)
	p.remove(t)
	wantTold(t, gone, p.id, "RunPodSandbox")
}
