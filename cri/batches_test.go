package cri

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSendBatches(t *testing.T) {
	item := func(i, size int) *runtimev1.Image {
		return &runtimev1.Image{Id: fmt.Sprint(i), Username: strings.Repeat("x", size)}
	}
	many := make([]int, 5000)
	for i := range many {
		many[i] = i % 1000
	}
	for _, test := range []struct {
		name    string
		sizes   []int
		batches int
	}{
		{"none", nil, 0},
		{"one", []int{0}, 1},
		{"small ones together", []int{1, 2, 3}, 1},
		{"one larger than a batch", []int{2 * batchBytes}, 1},
		{"a large one travels alone", []int{1, 2 * batchBytes, 1}, 3},
		{"full", []int{batchBytes / 2, batchBytes / 2, 1}, 2},
		{"many", many, 3},
	} {
		var items []*runtimev1.Image
		for i, size := range test.sizes {
			items = append(items, item(i, size))
		}
		var got []*runtimev1.Image
		batches := 0
		err := sendBatches(slices.Values(items), func(batch []*runtimev1.Image) error {
			batches++
			if size := proto.Size(&runtimev1.StreamImagesResponse{Images: batch}); len(batch) == 0 || len(batch) > 1 && size > batchBytes {
				t.Errorf("%s: a batch of %d items, %d bytes", test.name, len(batch), size)
			}
			got = append(got, batch...)
			return nil
		})
		if err != nil || !slices.Equal(got, items) || batches != test.batches {
			t.Errorf("%s: got %d of %d items in %d batches, want %d: %v", test.name, len(got), len(items), batches, test.batches, err)
		}
	}
	gone := errors.New("gone")
	sent := 0
	err := sendBatches(slices.Values([]*runtimev1.Image{item(1, batchBytes), item(2, batchBytes)}), func([]*runtimev1.Image) error { sent++; return gone })
	if !errors.Is(err, gone) || sent != 1 {
		t.Errorf("after an error: %v, %d batches were sent", err, sent)
	}
}
