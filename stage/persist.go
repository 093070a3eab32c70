package stage

import (
	"context"
	"time"
)

// FirstPause and LastPause are between tries of what nobody waits for and nothing in particular is known of.
const (
	FirstPause = time.Second
	LastPause  = 5 * time.Minute
)

// Persist calls try until it says that it is done or ctx ends, with pauses that double from first to last.
func Persist(ctx context.Context, first, last time.Duration, try func(context.Context) bool) {
	for pause := first; !try(ctx); pause = min(2*pause, last) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}
