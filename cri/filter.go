package cri

import (
	"slices"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
)

// What a filter asks for is ANDed; a nil filter lets everything through. An id may be shortened: one that fits nothing selects
// nothing, one that fits several is an error, as it is where one object is asked for.

// selectPods returns the pods that f lets through.
func selectPods(pods []*sandbox.PodStatus, f *runtimev1.PodSandboxFilter) ([]*sandbox.PodStatus, error) {
	var faults faults
	id := wholeID(&faults, "filter.id", f.GetId(), pods, podID)
	if err := faults.err(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(pods), func(pod *sandbox.PodStatus) bool {
		return !podMatches(f, id, string(pod.ID), podState(pod.State), pod.Labels)
	}), nil
}

// selectContainers returns the containers that f lets through. pods are all there are.
func selectContainers(containers []*sandbox.ContainerStatus, pods []*sandbox.PodStatus, f *runtimev1.ContainerFilter) ([]*sandbox.ContainerStatus, error) {
	var faults faults
	id := wholeID(&faults, "filter.id", f.GetId(), containers, containerID)
	pod := wholeID(&faults, "filter.pod_sandbox_id", f.GetPodSandboxId(), pods, podID)
	if err := faults.err(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(containers), func(c *sandbox.ContainerStatus) bool {
		return pod != "" && string(c.Pod) != pod || !containerMatches(f, id, string(c.ID), containerState(c.State), c.Labels)
	}), nil
}

// podMatches tells whether f lets a pod through. want is the whole id of f.
func podMatches(f *runtimev1.PodSandboxFilter, want, id string, state runtimev1.PodSandboxState, labels map[string]string) bool {
	return (want == "" || want == id) &&
		(f.GetState() == nil || f.GetState().GetState() == state) &&
		labelsMatch(f.GetLabelSelector(), labels)
}

// containerMatches does the same for a container, but for its pod.
func containerMatches(f *runtimev1.ContainerFilter, want, id string, state runtimev1.ContainerState, labels map[string]string) bool {
	return (want == "" || want == id) &&
		(f.GetState() == nil || f.GetState().GetState() == state) &&
		labelsMatch(f.GetLabelSelector(), labels)
}

func podID(pod *sandbox.PodStatus) string           { return string(pod.ID) }
func containerID(c *sandbox.ContainerStatus) string { return string(c.ID) }

// wholeID completes the id of a filter, which may be shortened. What fits nothing stays as it is.
func wholeID[T any](f *faults, field, id string, all []T, idOf func(T) string) string {
	if id == "" {
		return ""
	}
	whole := ""
	for _, one := range all {
		switch other := idOf(one); {
		case other == id:
			return id
		case !strings.HasPrefix(other, id):
		case whole != "":
			f.add(field, "%s fits more than one", id)
			return id
		default:
			whole = other
		}
	}
	if whole == "" {
		return id
	}
	return whole
}

// labelsMatch says whether labels has every label of want with its value.
func labelsMatch(want, labels map[string]string) bool {
	for key, value := range want {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}
