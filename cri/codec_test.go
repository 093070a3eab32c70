package cri

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is encoded already is sent as it is, from where it is; everything else is encoded.
func TestCodec(t *testing.T) {
	container := &runtimev1.Container{Id: "c1", Labels: map[string]string{"a": "b"}}
	whole, err := proto.Marshal(&runtimev1.ListContainersResponse{Containers: []*runtimev1.Container{container}})
	if err != nil {
		t.Fatal(err)
	}
	encoded, both := &runtimev1.ListContainersResponse{}, &runtimev1.ListContainersResponse{Containers: []*runtimev1.Container{container}}
	encoded.ProtoReflect().SetUnknown(whole)
	both.ProtoReflect().SetUnknown(whole)
	for _, test := range []struct {
		name    string
		message *runtimev1.ListContainersResponse
		want    []byte
		shared  bool
	}{
		{"nothing", &runtimev1.ListContainersResponse{}, nil, false},
		{"a message", &runtimev1.ListContainersResponse{Containers: []*runtimev1.Container{container}}, whole, false},
		{"encoded", encoded, whole, true},
		{"a message and encoded", both, append(bytes.Clone(whole), whole...), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := newCodec().Marshal(test.message)
			if err != nil || !bytes.Equal(got.Materialize(), test.want) {
				t.Errorf("%q, %v instead of %q", got.Materialize(), err, test.want)
			}
			if shared := len(test.want) > 0 && &got[0].ReadOnlyData()[0] == &whole[0]; shared != test.shared {
				t.Errorf("shared: %t", shared)
			}
		})
	}
}

// Large answers of several sizes, at the same time and one after another in the same buffers, are what they are.
func TestCodecBuffers(t *testing.T) {
	c := newCodec()
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 40 {
				want := &runtimev1.ListContainersResponse{}
				for range 1 + (i*7919+w)%9 {
					want.Containers = append(want.Containers, &runtimev1.Container{Id: strings.Repeat(string(rune('a'+i%20)), 1<<(i%20))})
				}
				slice, err := c.Marshal(want)
				if err != nil {
					t.Error(err)
					return
				}
				got := &runtimev1.ListContainersResponse{}
				if err := proto.Unmarshal(slice.Materialize(), got); err != nil || !proto.Equal(got, want) {
					t.Errorf("an answer of %d bytes is another one: %v", proto.Size(want), err)
				}
				slice.Free()
			}
		})
	}
	all.Wait()
	for _, size := range []int{1, 2, 1 << 10, 1<<10 + 1, 1 << largestBuffer, 1<<largestBuffer + 1} {
		buffer := c.buffers.Get(size)
		if len(*buffer) != size {
			t.Errorf("a buffer of %d instead of %d", len(*buffer), size)
		}
		c.buffers.Put(buffer)
	}
}
