package cri

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A list of encoded items is, to those who receive it, the list of the items; each is translated once, and forgotten when it is
// not in a whole list any more.
func TestEncodings(t *testing.T) {
	type item struct{ name string }
	translations := 0
	e := encodings[item]{translate: func(i *item) proto.Message {
		translations++
		return &runtimev1.Container{Id: i.name, Labels: map[string]string{"name": i.name}, State: runtimev1.ContainerState_CONTAINER_RUNNING}
	}}
	var items []*item
	for i := range 3 {
		items = append(items, &item{fmt.Sprintf("c%d", i)})
	}
	for _, step := range []struct {
		of           []*item
		whole        bool
		translations int
	}{
		{items[:1], false, 1}, // not remembered: it may be a list of what is about to go
		{items, true, 4},
		{items, true, 4},
		{items[1:], false, 4},
		{items[1:], true, 4},
		{items, true, 5},
		{nil, true, 5},
		{items, true, 8},
	} {
		response := &runtimev1.ListContainersResponse{}
		if err := e.fill(response, step.of, step.whole); err != nil {
			t.Fatal(err)
		}
		data, err := proto.Marshal(response)
		if err != nil {
			t.Fatal(err)
		}
		received := &runtimev1.ListContainersResponse{}
		if err := proto.Unmarshal(data, received); err != nil {
			t.Fatal(err)
		}
		want := &runtimev1.ListContainersResponse{}
		for _, i := range step.of {
			want.Containers = append(want.Containers, &runtimev1.Container{Id: i.name, Labels: map[string]string{"name": i.name}, State: runtimev1.ContainerState_CONTAINER_RUNNING})
		}
		if !proto.Equal(received, want) {
			t.Errorf("received %v, want %v", received, want)
		}
		if translations != step.translations {
			t.Errorf("%d translations, want %d", translations, step.translations)
		}
	}
}

func TestItemsAreInField1(t *testing.T) {
	for _, m := range []proto.Message{&runtimev1.ListContainersResponse{}, &runtimev1.ListPodSandboxResponse{}} {
		fields := m.ProtoReflect().Descriptor().Fields()
		if f := fields.ByNumber(itemsField); fields.Len() != 1 || f == nil || !f.IsList() {
			t.Errorf("%s has other fields than its items", m.ProtoReflect().Descriptor().FullName())
		}
	}
}

// What is encoded once is, to those who receive it, the message; each value is translated once, by whoever asks first, and forgotten
// when it is gone.
func TestEncodedOnce(t *testing.T) {
	type value struct{ name string }
	translated := func(v *value) *runtimev1.ContainerStatus {
		return &runtimev1.ContainerStatus{Id: v.name, Labels: map[string]string{"name": v.name}}
	}
	var translations atomic.Int32
	e := encodedOnce[value, *runtimev1.ContainerStatus]{translate: func(v *value) *runtimev1.ContainerStatus {
		translations.Add(1)
		return translated(v)
	}}
	known := func() (n int) {
		e.known.Range(func(any, any) bool { n++; return true })
		return n
	}
	values := []*value{{"c0"}, {"c1"}, {"c2"}}
	for _, of := range [][]*value{values[:1], values, values[1:], nil, values} {
		sent, want := &runtimev1.PodSandboxStatusResponse{Timestamp: 7}, &runtimev1.PodSandboxStatusResponse{Timestamp: 7}
		var err error
		if sent.ContainersStatuses, err = e.all(of); err != nil {
			t.Fatal(err)
		}
		data, err := newCodec().Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		received := &runtimev1.PodSandboxStatusResponse{}
		if err := proto.Unmarshal(data.Materialize(), received); err != nil {
			t.Fatal(err)
		}
		for _, v := range of {
			want.ContainersStatuses = append(want.ContainersStatuses, translated(v))
		}
		if !proto.Equal(received, want) {
			t.Errorf("received %v, want %v", received, want)
		}
	}
	if n := translations.Load(); n != 3 || known() != 3 {
		t.Errorf("%d translations, %d are known", n, known())
	}
	kept := values[1]
	clear(values)
	for deadline := time.Now().Add(30 * time.Second); known() != 1; runtime.Gosched() {
		if runtime.GC(); time.Now().After(deadline) {
			t.Fatalf("%d are known, one is there", known())
		}
	}
	if _, err := e.of(kept); err != nil || translations.Load() != 3 {
		t.Errorf("what is kept was forgotten: %v", err)
	}
}
