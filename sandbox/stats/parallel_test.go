package stats

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
)

func TestInParallel(t *testing.T) {
	for _, n := range []int{0, 1, inPiece, 3*inPiece + 7} {
		var items, want []int
		for i := range n {
			items = append(items, i)
			if i%3 != 0 {
				want = append(want, 2*i)
			}
		}
		got := slices.Collect(InParallel(t.Context(), items, func(i int) (int, bool) { return 2 * i, i%3 != 0 }))
		if !slices.Equal(got, want) {
			t.Errorf("of %d: %v", n, got)
		}
	}
}

// Who stops asking stops the measuring, after at most a piece.
func TestInParallelEnds(t *testing.T) {
	items := make([]int, 10*inPiece)
	var calls atomic.Int64
	measure := func(int) (int, bool) { calls.Add(1); return 0, true }
	for range InParallel(t.Context(), items, measure) {
		break
	}
	if n := calls.Load(); n > inPiece {
		t.Errorf("%d are measured for one", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for range InParallel(ctx, items, measure) {
		n++
		cancel()
	}
	if n != 1 {
		t.Errorf("after the end of the context there are %d", n)
	}
}
