package events

import (
	"context"
	"errors"
	"sync"
)

// ErrSlow says that a subscriber has missed news, because it did not take them in time.
var ErrSlow = errors.New("events were dropped because the subscriber is too slow")

// Queue is how many pieces of news wait for one subscriber.
const Queue = 1024

// Broadcaster has the subscribers. The zero value has none.
type Broadcaster[T any] struct {
	mu          sync.Mutex
	subscribers map[*Subscription[T]]struct{}
}

// Subscription is one subscriber's queue.
type Subscription[T any] struct {
	from *Broadcaster[T]
	wake chan struct{} // tells Next to look again

	mu    sync.Mutex
	queue []T
	slow  bool // it overflowed and takes no more
}

// Subscribe begins a subscription. It must be closed.
func (b *Broadcaster[T]) Subscribe() *Subscription[T] {
	s := &Subscription[T]{from: b, wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subscribers == nil {
		b.subscribers = map[*Subscription[T]]struct{}{}
	}
	b.subscribers[s] = struct{}{}
	return s
}

// Publish gives all subscribers what news makes, which is not asked if there are none.
func (b *Broadcaster[T]) Publish(news func() T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.subscribers) == 0 {
		return
	}
	one := news()
	for s := range b.subscribers {
		s.put(one)
	}
}

func (s *Subscription[T]) put(one T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.slow:
		return
	case len(s.queue) == Queue:
		s.queue, s.slow = nil, true
	default:
		s.queue = append(s.queue, one)
	}
	select {
	case s.wake <- struct{}{}:
	default: // it has not looked since the last time
	}
}

// Next waits for the next piece of news. It returns ErrSlow once some are lost, or the error of ctx.
func (s *Subscription[T]) Next(ctx context.Context) (one T, err error) {
	for {
		one, found, err := s.take()
		if found || err != nil {
			return one, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return one, context.Cause(ctx)
		}
	}
}

func (s *Subscription[T]) take() (one T, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.slow:
		return one, false, ErrSlow
	case len(s.queue) == 0:
		return one, false, nil
	}
	one = s.queue[0]
	var none T
	s.queue[0] = none // which may be the last that refers to much
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return one, true, nil
}

// Close ends the subscription.
func (s *Subscription[T]) Close() {
	s.from.mu.Lock()
	defer s.from.mu.Unlock()
	delete(s.from.subscribers, s)
}
