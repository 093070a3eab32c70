package ociruntime

import (
	"context"
	"fmt"
	"sync"
)

// endings are the pods whose last pieces go in the background.
type endings struct {
	mu  sync.Mutex
	of  map[string]chan struct{} // by the pod's id; closed at the end
	all sync.WaitGroup
}

// begin runs end in the background, after what was begun before for the same pod.
func (e *endings) begin(id string, end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil {
		e.of = map[string]chan struct{}{}
	}
	before, done := e.of[id], make(chan struct{})
	e.of[id] = done
	e.all.Go(func() {
		if before != nil {
			<-before
		}
		end()
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.of[id] == done {
			delete(e.of, id)
		}
		close(done)
	})
}

// wait returns when nothing goes on for the pod.
func (e *endings) wait(ctx context.Context, id string) error {
	e.mu.Lock()
	done := e.of[id]
	e.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until the rest of pod %s is removed: %w", id, ctx.Err())
	}
}
