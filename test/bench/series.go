package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// lap is one measured time of a round.
type lap struct {
	name string
	took time.Duration
}

// laps measures consecutive steps.
type laps struct {
	began, last time.Time
	all         []lap
}

func startLaps() *laps {
	now := time.Now()
	return &laps{began: now, last: now}
}

// step notes what passed since the step before.
func (l *laps) step(name string) {
	now := time.Now()
	l.all = append(l.all, lap{name, now.Sub(l.last)})
	l.last = now
}

// total notes what passed since the beginning.
func (l *laps) total(name string) { l.all = append(l.all, lap{name, time.Since(l.began)}) }

// contender is one of those that take turns. A round returns what it took; preparing and cleaning up need not count.
type contender struct {
	name  string
	round func(context.Context) ([]lap, error)
}

// series are the times of one lap of one contender.
type series struct {
	contender, lap string
	times          []time.Duration
}

// percentile returns the smallest time that q (0 to 1) of all do not exceed.
func (s *series) percentile(q float64) time.Duration {
	sorted := slices.Clone(s.times)
	slices.Sort(sorted)
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// results hold the series of a measurement in the order in which they appeared.
type results []*series

func (r *results) add(contender string, l lap) {
	s := r.find(contender, l.name)
	if s == nil {
		s = &series{contender: contender, lap: l.name}
		*r = append(*r, s)
	}
	s.times = append(s.times, l.took)
}

// find returns nil if there is no such series.
func (r results) find(contender, lap string) *series {
	for _, s := range r {
		if s.contender == contender && s.lap == lap {
			return s
		}
	}
	return nil
}

// warmUp is how many rounds before the others are not counted.
func warmUp(rounds int) int { return min(2, rounds/10+1) }

// inTurns lets everybody run once in each round, with a pause before each run.
func inTurns(ctx context.Context, rounds int, gap time.Duration, everybody []contender) (results, error) {
	var r results
	warm := warmUp(rounds)
	for round := -warm; round < rounds; round++ {
		for i := range everybody {
			c := everybody[(i+round+warm)%len(everybody)] // nobody always follows the same one
			if err := wait(ctx, gap); err != nil {
				return r, fmt.Errorf("after %d of %d rounds: %w", max(round, 0), rounds, err)
			}
			all, err := c.round(ctx)
			if err != nil {
				return r, fmt.Errorf("%s, round %d: %w", c.name, round, err)
			}
			if round < 0 {
				continue
			}
			for _, l := range all {
				r.add(c.name, l)
			}
		}
	}
	return r, nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
