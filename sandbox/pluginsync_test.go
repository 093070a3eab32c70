package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/sandbox/nri"
	"github.com/criserver/criserver/sandbox/nri/nritest"
)

// wantReplay wants that a plugin lost nothing and got nothing twice, and that all is removed of what it was told of.
func wantReplay(t *testing.T, p *nritest.Plugin) {
	t.Helper()
	faults, left := p.Replay()
	if len(faults) > 0 || len(left) > 0 {
		t.Errorf("plugin %s: faults %q, not removed %q, of\n%s", p.Name, faults, left, p.Text())
	}
}

// churn makes and removes pods until stop is closed, each in another way.
func (m *machine) churn(name string, stop <-chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		config := podConfig()
		config.Metadata.Name = fmt.Sprintf("%s-%d", name, i)
		pod, err := m.s.RunPod(m.t.Context(), config, "")
		if err != nil {
			return err
		}
		id, err := m.s.CreateContainer(m.t.Context(), pod, containerConfig(), nil)
		if err != nil {
			return err
		}
		if i%4 != 0 {
			err = m.s.StartContainer(m.t.Context(), id)
		}
		switch i % 3 {
		case 0:
			if i%4 != 0 {
				m.process(id).exits(ociruntime.Exit{Code: 1})
			}
		case 1:
			err = errors.Join(err, m.s.StopContainer(m.t.Context(), id, time.Minute), m.s.RemoveContainer(m.t.Context(), id))
		}
		if err := errors.Join(err, m.s.RemovePod(m.t.Context(), pod)); err != nil {
			return err
		}
	}
}

func TestSynchronisationLosesNothing(t *testing.T) {
	m := plugged(t)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for i := range 4 {
		busy.Go(func() {
			if err := m.churn(fmt.Sprintf("pod-%d", i), stop); err != nil {
				t.Error(err)
			}
		})
	}
	var all []*nritest.Plugin
	for i := range 30 {
		p := nritest.Connect(t, m.socket(), &nritest.Plugin{Name: fmt.Sprintf("p%d", i)})
		all = append(all, p)
		p.Await(t, "RunPodSandbox", 2)
		if i%3 != 0 {
			p.Close()
		}
	}
	close(stop)
	busy.Wait()
	met := 0
	for i, p := range all {
		met += len(nritest.Ids(p.Synced()))
		if i%3 == 0 {
			wantReplay(t, p)
		} else if faults, _ := p.Replay(); len(faults) > 0 {
			t.Errorf("plugin %s: %q of\n%s", p.Name, faults, p.Text())
		}
	}
	want(t, "some met pods that were there", met > 0, true)
	m.clean()
}

// A plugin that synchronises holds up no more than one event of each pod, and learns of all of them.
func TestCreationDuringSynchronisation(t *testing.T) {
	m := plugged(t)
	pod, _ := m.made()
	began, released := make(chan struct{}), make(chan struct{})
	p := &nritest.Plugin{Sync: func(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
		close(began)
		<-released
		return nil, nil
	}}
	p.Dial(t, m.socket())
	<-began
	made := make(chan ContainerID)
	go func() {
		second := containerConfig()
		second.Metadata.Name = "second"
		id, err := m.s.CreateContainer(t.Context(), pod, second, nil)
		if err != nil {
			t.Error(err)
		}
		made <- id
	}()
	close(released)
	id := <-made
	p.Await(t, "PostCreateContainer", 1)
	want(t, "container", p.Last(t, "CreateContainer").Container.Id, string(id))
	must(t, m.s.RemovePod(t.Context(), pod))
	p.Await(t, "RemovePodSandbox", 1)
	wantReplay(t, p)
}

func TestPluginsAfterRestart(t *testing.T) {
	m := plugged(t)
	before := nritest.Connect(t, m.socket(), &nritest.Plugin{Name: "before"})
	pod, running := m.made()
	add := func(name string) ContainerID {
		config := containerConfig()
		config.Metadata.Name = name
		id, err := m.s.CreateContainer(t.Context(), pod, config, nil)
		must(t, err)
		return id
	}
	created, exited := add("created"), add("exited")
	must(t, m.s.StartContainer(t.Context(), exited))
	m.crash()
	m.plugins.Close()
	before.Close()
	m.process(exited).exits(ociruntime.Exit{Code: 1})

	m.plug()
	m.start(nil)
	<-m.s.Recovered()
	t.Cleanup(func() { m.s.Close(context.Background()) })
	p := nritest.Connect(t, m.socket(), &nritest.Plugin{})
	pods, containers := p.Synced()
	want(t, "pods", len(pods), 1)
	ids := nritest.Ids(nil, containers)
	slices.Sort(ids)
	expected := []string{string(running), string(created)}
	slices.Sort(expected)
	want(t, "containers", fmt.Sprint(ids), fmt.Sprint(expected))
	for _, c := range containers {
		want(t, "state of "+c.Name, c.State, map[string]nri.State{"main": nri.Running, "created": nri.Created}[c.Name])
	}
	must(t, m.s.RemoveContainer(t.Context(), exited))
	must(t, m.s.RemovePod(t.Context(), pod))
	p.Await(t, "RemovePodSandbox", 1)
	want(t, "removal of one that ended meanwhile", p.Events()[0].String(), "RemoveContainer web/exited")
	wantReplay(t, p)
	m.clean()
}
