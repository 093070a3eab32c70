package stats

import (
	"sync"
	"time"
)

// shortest is the least time over which a rate is worth something.
const shortest = time.Second

// A Meter turns a counter into a rate, which is that since the latest reading that is long enough ago. The zero value has seen nothing.
type Meter struct {
	mu           sync.Mutex
	older, newer reading
}

type reading struct {
	at    time.Time
	count uint64
}

// Observe notes a reading and gives the rate per second since an earlier one; not ok if there is none. keep is how long a
// reading is the latest that is remembered, so that frequent callers do not make the time of measuring short.
func (m *Meter) Observe(at time.Time, count uint64, keep time.Duration) (rate uint64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if count < m.newer.count || at.Before(m.newer.at) { // it began anew
		m.older, m.newer = reading{}, reading{}
	}
	since := m.newer
	if at.Sub(since.at) < shortest {
		since = m.older
	}
	if m.newer.at.IsZero() || at.Sub(m.newer.at) >= max(keep, shortest) {
		m.older, m.newer = m.newer, reading{at, count}
	}
	if since.at.IsZero() {
		return 0, false
	}
	return uint64(float64(count-since.count) / at.Sub(since.at).Seconds()), true
}
