package events

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func publish(b *Broadcaster[int], from, to int) {
	for i := from; i < to; i++ {
		b.Publish(func() int { return i })
	}
}

func take(t *testing.T, s *Subscription[int], from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if got, err := s.Next(t.Context()); got != i || err != nil {
			t.Fatalf("got %d, %v; want %d", got, err, i)
		}
	}
}

func TestOrder(t *testing.T) {
	var b Broadcaster[int]
	first := b.Subscribe()
	defer first.Close()
	publish(&b, 0, 3)
	second := b.Subscribe()
	defer second.Close()
	publish(&b, 3, 5)
	take(t, first, 0, 5)
	take(t, second, 3, 5)
	publish(&b, 5, 6)
	take(t, first, 5, 6)
}

func TestSlowSubscriber(t *testing.T) {
	var b Broadcaster[int]
	slow, quick := b.Subscribe(), b.Subscribe()
	defer slow.Close()
	defer quick.Close()
	publish(&b, 0, Queue)
	take(t, quick, 0, Queue)
	take(t, slow, 0, 1)
	publish(&b, Queue, Queue+2) // one more than there is room for
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrSlow) {
		t.Errorf("the slow subscriber is told %v", err)
	}
	take(t, quick, Queue, Queue+2)
	publish(&b, 0, 1)
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrSlow) || slow.queue != nil {
		t.Errorf("after its end it is told %v and has %d in its queue", err, len(slow.queue))
	}
}

func TestNextWaits(t *testing.T) {
	var b Broadcaster[int]
	s := b.Subscribe()
	defer s.Close()
	var wg sync.WaitGroup
	wg.Go(func() { take(t, s, 0, 100) })
	publish(&b, 0, 100)
	wg.Wait()

	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	wg.Go(func() {
		if _, err := s.Next(ctx); !errors.Is(err, gone) {
			t.Errorf("got %v, want the cause of the context's end", err)
		}
	})
	cancel(gone)
	wg.Wait()
}

func TestNobodyListens(t *testing.T) {
	var b Broadcaster[int]
	s := b.Subscribe()
	s.Close()
	b.Publish(func() int {
		t.Error("news were made for nobody")
		return 0
	})
}
