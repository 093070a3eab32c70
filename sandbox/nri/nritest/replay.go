package nritest

import (
	"fmt"
	"slices"

	"github.com/containerd/nri/pkg/api"
)

// steps are the events of one object in the order in which it may get them, and those that it must have got before.
var steps = map[string][]string{
	"RunPodSandbox":        {""},
	"UpdatePodSandbox":     {"RunPodSandbox", "PostUpdatePodSandbox", "UpdatePodSandbox"},
	"PostUpdatePodSandbox": {"UpdatePodSandbox"},
	"StopPodSandbox":       {"RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox"},
	"RemovePodSandbox":     {"StopPodSandbox"},

	"CreateContainer":     {""},
	"PostCreateContainer": {"CreateContainer"},
	"StartContainer":      {"PostCreateContainer", "PostUpdateContainer", "UpdateContainer"},
	"PostStartContainer":  {"StartContainer"},
	"UpdateContainer":     {"PostCreateContainer", "PostStartContainer", "PostUpdateContainer", "UpdateContainer"},
	"PostUpdateContainer": {"UpdateContainer"},
	"StopContainer":       {"CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "UpdateContainer", "PostUpdateContainer"},
	"RemoveContainer":     {"StopContainer"},
}

// Replay follows what the plugin was told from what it was told at first, and says what was lost, twice or out of order,
// and which pods and containers are not removed at the end.
func (p *Plugin) Replay() (faults []string, left []string) {
	pods, containers := p.Synced()
	last := map[string]string{}  // event of an object
	owner := map[string]string{} // pod of a container
	for _, pod := range pods {
		last[pod.Id] = "" // running or stopped
	}
	unclear := map[string]bool{}
	for _, c := range containers {
		if _, ok := last[c.PodSandboxId]; !ok {
			faults = append(faults, fmt.Sprintf("synchronised container %s without its pod", c.Id))
		}
		last[c.Id], owner[c.Id] = "", c.PodSandboxId
	}
	for id := range last {
		unclear[id] = true
	}
	for i, e := range p.Events() {
		if fault := follow(e, last, owner, unclear); fault != "" {
			faults = append(faults, fmt.Sprintf("event %d: %s: %s", i, e, fault))
		}
	}
	for id := range last {
		left = append(left, id)
	}
	slices.Sort(left)
	return faults, left
}

// follow is one event. What a new plugin was told of can be anywhere in its life: unclear until its first event.
func follow(e Event, last, owner map[string]string, unclear map[string]bool) string {
	id, first := e.Pod.GetId(), "RunPodSandbox"
	if e.Container != nil {
		id, first = e.Container.GetId(), "CreateContainer"
	}
	before, known := last[id]
	switch {
	case e.Name == first && known:
		return "it is known already"
	case e.Name == first:
	case !known && e.Name == "RemoveContainer":
		return "" // it had ended before the plugin came
	case !known:
		return "it is not known"
	case unclear[id]:
	case !slices.Contains(steps[e.Name], before):
		return "it follows " + before
	}
	delete(unclear, id)
	last[id] = e.Name
	if e.Container != nil {
		if _, ok := last[e.Container.PodSandboxId]; !ok {
			return "its pod is not known"
		}
		owner[id] = e.Container.PodSandboxId
	}
	if e.Name == "StopPodSandbox" || e.Name == "RemovePodSandbox" {
		for c, pod := range owner {
			if pod == id && (last[c] != "StopContainer" || e.Name == "RemovePodSandbox") {
				return "container " + c + " is still there"
			}
		}
	}
	if e.Name == "RemovePodSandbox" || e.Name == "RemoveContainer" {
		delete(last, id)
		delete(owner, id)
	}
	return ""
}

// Ids are those of what a plugin was told of at first.
func Ids(pods []*api.PodSandbox, containers []*api.Container) (ids []string) {
	for _, p := range pods {
		ids = append(ids, p.Id)
	}
	for _, c := range containers {
		ids = append(ids, c.Id)
	}
	return ids
}
