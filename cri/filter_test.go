package cri

import (
	"strings"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/sandbox"
)

func TestFilters(t *testing.T) {
	ready, running := runtimev1.PodSandboxState_SANDBOX_READY, runtimev1.ContainerState_CONTAINER_RUNNING
	labels := map[string]string{"app": "web", "tier": ""}
	for filter, want := range map[string]bool{
		`{}`: true, `{"id":"abcdef"}`: true, `{"id":"abcdef0"}`: false,
		`{"state":{"state":"SANDBOX_READY"}}`: true, `{"state":{"state":"SANDBOX_NOTREADY"}}`: false,
		`{"labelSelector":{"app":"web"}}`: true, `{"labelSelector":{"app":"web","tier":""}}`: true, `{"labelSelector":{"none":""}}`: false,
		`{"labelSelector":{"app":"db"}}`: false, `{"id":"abcdef","labelSelector":{"app":"db"}}`: false,
	} {
		f := read[runtimev1.PodSandboxFilter](t, filter)
		if got := podMatches(f, f.GetId(), "abcdef", ready, labels); got != want {
			t.Errorf("pod filter %s: got %v", filter, got)
		}
	}
	for filter, want := range map[string]bool{
		`{}`: true, `{"id":"abcdef"}`: true, `{"id":"x"}`: false,
		`{"state":{"state":"CONTAINER_RUNNING"}}`: true, `{"state":{}}`: false, `{"labelSelector":{"app":"web"}}`: true,
		`{"id":"abcdef","state":{"state":"CONTAINER_RUNNING"},"labelSelector":{"app":"db"}}`: false,
	} {
		f := read[runtimev1.ContainerFilter](t, filter)
		if got := containerMatches(f, f.GetId(), "abcdef", running, labels); got != want {
			t.Errorf("container filter %s: got %v", filter, got)
		}
	}
	if !podMatches(nil, "", "a", ready, nil) || !containerMatches(nil, "", "a", running, nil) {
		t.Error("a nil filter holds something back")
	}
}

func TestShortIDsInFilters(t *testing.T) {
	pods := []*sandbox.PodStatus{{ID: "a11"}, {ID: "a12"}, {ID: "b1"}, {ID: "b123"}}
	for _, test := range []struct{ id, want, fault string }{
		{id: "", want: ""},
		{id: "a11", want: "a11"},
		{id: "a1", fault: "filter.id: a1 fits more than one"},
		{id: "a", fault: "filter.id: a fits more than one"},
		{id: "b1", want: "b1"}, // although another begins with it
		{id: "b12", want: "b123"},
		{id: "c", want: "c"},
		{id: "1", want: "1"},
	} {
		var f faults
		got := wholeID(&f, "filter.id", test.id, pods, podID)
		fault := strings.Join(f.list, "; ")
		if fault != test.fault || fault == "" && got != test.want {
			t.Errorf("%q: got %q, %q; want %q, %q", test.id, got, fault, test.want, test.fault)
		}
	}
}
