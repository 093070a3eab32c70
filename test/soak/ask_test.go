package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	patience  = 60 * time.Second // until a request that is repeated must have been answered
	rpcBound  = 30 * time.Second // of one request
	slowReply = 20 * time.Second // of one request is an error of its own
)

// passing are the failures after which a client asks again: its own deadline, and that criserver is away. Aborted is
// what one hears whose request a newer one replaced.
func passing(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// ask sends a request until it is answered: sometimes several at the same time, sometimes with a deadline that is too
// short. It returns all answers there were, the first one first, and the failure that is not a passing one.
func ask[T any](ctx context.Context, r *rand.Rand, what string, send func(context.Context) (T, error)) ([]T, error) {
	over := time.Now().Add(patience)
	var last error
	for try := 1; time.Now().Before(over); try++ {
		copies, bound := 1, rpcBound
		if r.IntN(4) == 0 {
			copies = 2 + r.IntN(2)
		}
		if r.IntN(4) == 0 && try < 20 {
			bound = time.Duration(1+r.IntN(40)) * time.Millisecond
		}
		answers, err := sendAll(ctx, copies, bound, send)
		switch {
		case err != nil && !passing(err):
			return answers, fmt.Errorf("%s: %w", what, err)
		case len(answers) > 0:
			return answers, nil
		}
		last = err
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("%s: no answer in %v, the last was: %w", what, patience, last)
}

// sendAll sends copies of a request at the same time. The error is one that is not passing, if there is any.
func sendAll[T any](ctx context.Context, copies int, bound time.Duration, send func(context.Context) (T, error)) (answers []T, worst error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range copies {
		wg.Go(func() {
			began := time.Now()
			answer, err := send(ctx)
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				answers = append(answers, answer)
			} else if worst == nil || passing(worst) {
				worst = err
			}
			if took > slowReply {
				worst = errors.Join(fmt.Errorf("took %v", took), err)
			}
		})
	}
	wg.Wait()
	return answers, worst
}
