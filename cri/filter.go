package cri

import (
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a filter asks for is ANDed; an id may be shortened; a nil filter lets everything through.

func podMatches(f *runtimev1.PodSandboxFilter, id string, state runtimev1.PodSandboxState, labels map[string]string) bool {
	return strings.HasPrefix(id, f.GetId()) &&
		(f.GetState() == nil || f.GetState().GetState() == state) &&
		labelsMatch(f.GetLabelSelector(), labels)
}

func containerMatches(f *runtimev1.ContainerFilter, id, pod string, state runtimev1.ContainerState, labels map[string]string) bool {
	return strings.HasPrefix(id, f.GetId()) &&
		strings.HasPrefix(pod, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == state) &&
		labelsMatch(f.GetLabelSelector(), labels)
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
