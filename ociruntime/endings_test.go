package ociruntime

import (
	"context"
	"errors"
	"testing"
)

// Whoever cleans a pod waits for what still goes on for it, and for nothing of another one.
func TestEndings(t *testing.T) {
	var e endings
	var order []int
	first := make(chan struct{})
	e.begin("a", func() { <-first; order = append(order, 1) })
	e.begin("a", func() { order = append(order, 2) })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.wait(gone, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("wait without patience = %v", err)
	}
	if err := e.wait(gone, "b"); err != nil {
		t.Errorf("wait for a pod of which nothing is left = %v", err)
	}
	close(first)
	if err := e.wait(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if len(order) != 2 || order[0] != 1 {
		t.Errorf("order = %v", order)
	}
	e.all.Wait()
	if len(e.of) != 0 {
		t.Errorf("remembered: %v", e.of)
	}
}
