package remote

import (
	"context"
	"errors"
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
	begun    time.Time // when the present attempt began
	attempts []Attempt
}

func (s *Session) schedule(what string, hosts []*endpoint) *schedule {
	if s.cfg.fallback(s.registry) == FallbackNever && len(hosts) > 1 {
		hosts = hosts[:1]
	}
	return &schedule{s: s, what: what, hosts: slices.Clone(hosts)}
}

// pick returns the endpoint to ask, where an attempt begins. One that wants to be left alone is passed over; if all do, pick
// waits. It is an error when none is left, and when ctx ends.
func (p *schedule) pick(ctx context.Context) (*endpoint, error) {
	for len(p.hosts) > 0 {
		wait := time.Duration(0)
		for i := range p.hosts {
			at := (p.next + i) % len(p.hosts)
			closed := p.hosts[at].gate.closed()
			if closed <= 0 {
				p.next, p.begun = at, time.Now()
				return p.hosts[at], nil
			}
			if wait == 0 || closed < wait {
				wait = closed
			}
		}
		if err := p.sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
	return nil, p.error()
}

// failed takes down that the endpoint last picked failed and waits if that is due. It is an error when ctx ends, and when the
// attempts are used up, though not before each endpoint was asked.
func (p *schedule) failed(ctx context.Context, name string, err error) error {
	p.attempts = append(p.attempts, Attempt{URL: name, Err: err, Took: time.Since(p.begun)})
	p.inARow++
	if ctx.Err() != nil || len(p.attempts) >= maxAttempts {
		return p.error()
	}
	if !errors.Is(err, ErrUnavailable) && p.s.cfg.fallback(p.s.registry) == FallbackUnavailable {
		p.hosts = nil
		return p.error()
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
	if p.inARow >= p.s.cfg.Attempts {
		return p.error()
	}
	d := min(p.s.cfg.Backoff<<min(p.inARow-1, 16), p.s.cfg.MaxBackoff)
	d, p.wait = max(d, p.wait), 0
	return p.sleep(ctx, d)
}

// sleep is ended by ctx, which then is an attempt that failed.
func (p *schedule) sleep(ctx context.Context, d time.Duration) error {
	begun := time.Now()
	if err := sleep(ctx, spread(d)); err != nil {
		p.attempts = append(p.attempts, Attempt{URL: "waiting before the next attempt", Err: err, Took: time.Since(begun)})
		return p.error()
	}
	return nil
}

// progressed makes earlier failures count no more.
func (p *schedule) progressed() { p.inARow, p.wait = 0, 0 }

func (p *schedule) error() error { return &FetchError{What: p.what, Attempts: p.attempts} }
