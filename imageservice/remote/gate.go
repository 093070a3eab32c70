package remote

import (
	"context"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// Limit is how much one host may be asked, over all pulls. 0 is no limit.
type Limit struct {
	PerSecond float64 // requests; as many may come at once after a pause
	AtOnce    int     // requests of which the answer was not read to its end
}

// gate is what all requests to a host go through. A request keeps its place until its body is closed, so the reader of
// a body must not wait for another place of the same host while that body is open, nor for anything that others have who
// need such a place (see Blob.Pause).
type gate struct {
	limit  Limit
	rate   *rate.Limiter
	places *semaphore.Weighted // nil: any number
	shut   atomic.Int64        // until when the host wants to be left alone; see uptime
}

var started = time.Now()

// uptime is a time that no change of the machine's clock moves.
func uptime() time.Duration { return time.Since(started) }

func newGate(l Limit) *gate {
	g := &gate{limit: l, rate: rate.NewLimiter(rate.Inf, 0)}
	if l.PerSecond > 0 {
		g.rate = rate.NewLimiter(rate.Limit(l.PerSecond), max(1, int(math.Ceil(l.PerSecond))))
	}
	if l.AtOnce > 0 {
		g.places = semaphore.NewWeighted(int64(l.AtOnce))
	}
	return g
}

// enter waits for a place, which leave gives back.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	if g.places == nil {
		return func() {}, nil
	}
	if err := g.places.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { g.places.Release(1) }, nil
}

// pace waits until one more request is within the rate.
func (g *gate) pace(ctx context.Context) error {
	turn := g.rate.Reserve()
	if err := sleep(ctx, turn.Delay()); err != nil {
		turn.Cancel()
		return err
	}
	return nil
}

// close keeps requests off for a time, unless they are kept off for longer already.
func (g *gate) close(d time.Duration) {
	until := int64(uptime() + d)
	for {
		old := g.shut.Load()
		if old >= until || g.shut.CompareAndSwap(old, until) {
			return
		}
	}
}

// closed is how long requests are kept off, at least.
func (g *gate) closed() time.Duration { return time.Duration(g.shut.Load()) - uptime() }

// idle says whether nothing is lost with g but what its rate has counted.
func (g *gate) idle() bool {
	if all := int64(g.limit.AtOnce); g.places != nil {
		if !g.places.TryAcquire(all) {
			return false
		}
		g.places.Release(all)
	}
	return g.closed() <= 0
}

// spread makes a wait a random part longer, so that many who wait for the same do not come back at once.
func spread(d time.Duration) time.Duration { return d + rand.N(d/4+1) }

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
