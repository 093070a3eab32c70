package stats

import (
	"context"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// Bounds of InParallel.
const (
	most    = 4  // goroutines for one list
	inPiece = 64 // items that are measured ahead of their use
)

// InParallel gives, in the order of items, what measure makes of those for which it says ok. It ends with ctx.
func InParallel[T, U any](ctx context.Context, items []T, measure func(T) (result U, ok bool)) iter.Seq[U] {
	return func(yield func(U) bool) {
		for piece := range slices.Chunk(items, inPiece) {
			for _, m := range measureAll(ctx, piece, measure) {
				if ctx.Err() != nil || m.ok && !yield(m.result) {
					return
				}
			}
		}
	}
}

type measured[U any] struct {
	result U
	ok     bool
}

func measureAll[T, U any](ctx context.Context, items []T, measure func(T) (U, bool)) []measured[U] {
	all := make([]measured[U], len(items))
	var next atomic.Int64
	work := func() {
		for ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= len(items) {
				return
			}
			all[i].result, all[i].ok = measure(items[i])
		}
	}
	var others sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), most, len(items)) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	return all
}
