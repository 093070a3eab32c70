package remote

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"
)

// maxAttempts bounds the attempts at one thing, with or without progress between them.
const maxAttempts = 100

// schedule decides where the next attempt goes. Endpoints are tried in order; one that fails for good is left out; when
// all that remain have failed it waits.
type schedule struct {
	s        *Session
	what     string
	hosts    []*endpoint // that may still be asked
	next     int         // in hosts
	inARow   int         // failures since the last progress
	wait     time.Duration
	attempts []Attempt
}

func (s *Session) schedule(what string, hosts []*endpoint) *schedule {
	return &schedule{s: s, what: what, hosts: slices.Clone(hosts)}
}

// pick returns the endpoint to ask. It is an error when none is left.
func (p *schedule) pick() (*endpoint, error) {
	if len(p.hosts) == 0 {
		return nil, &FetchError{What: p.what, Attempts: p.attempts}
	}
	p.next %= len(p.hosts)
	return p.hosts[p.next], nil
}

// failed takes down that the endpoint last picked failed and waits if that is due. It is an error when ctx ends or the
// attempts are used up.
func (p *schedule) failed(ctx context.Context, name string, err error) error {
	p.attempts = append(p.attempts, Attempt{URL: name, Err: err})
	p.inARow++
	if ctx.Err() != nil || p.inARow >= p.s.cfg.Attempts || len(p.attempts) >= maxAttempts {
		return &FetchError{What: p.what, Attempts: p.attempts}
	}
	if !retryable(err, p.s.cfg.MaxBackoff) {
		p.hosts = slices.Delete(p.hosts, p.next, p.next+1)
	} else {
		p.next++
		var status *statusError
		if errors.As(err, &status) {
			p.wait = max(p.wait, status.retryAfter)
		}
	}
	if p.next < len(p.hosts) || len(p.hosts) == 0 {
		return nil // the next one has not been asked in this round
	}
	return p.sleep(ctx)
}

// sleep waits longer with every failure, and a random part longer, so that many pulls do not come back at once.
func (p *schedule) sleep(ctx context.Context) error {
	d := min(p.s.cfg.Backoff<<min(p.inARow-1, 16), p.s.cfg.MaxBackoff)
	d = max(d, p.wait)
	d += rand.N(d/4 + 1)
	p.wait = 0
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		p.attempts = append(p.attempts, Attempt{URL: "waiting before the next attempt", Err: context.Cause(ctx)})
		return &FetchError{What: p.what, Attempts: p.attempts}
	}
}

// progressed makes earlier failures count no more.
func (p *schedule) progressed() { p.inARow, p.wait = 0, 0 }
