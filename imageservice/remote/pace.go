package remote

import (
	"fmt"
	"time"
)

// pace holds a sender to a rate: so many bytes in every window. A window that has brought them ends at once. Only the time
// spent waiting for the sender counts: a reader that is slow itself does not make the sender look slow.
type pace struct {
	want   int64 // bytes in a window
	window time.Duration

	got    int64         // bytes in this window
	waited time.Duration // in this window
}

func newPace(perSecond int64, window time.Duration) *pace {
	return &pace{want: max(1, int64(float64(perSecond)*window.Seconds())), window: window}
}

// patience is how long the next wait may last.
func (p *pace) patience() time.Duration { return p.window - p.waited }

// brought takes down that a wait of d has brought n bytes. An error says that the sender is too slow, and how slow.
func (p *pace) brought(n int, d time.Duration) error {
	p.got += int64(n)
	p.waited += d
	switch {
	case p.got >= p.want:
		p.got, p.waited = 0, 0
	case p.waited < p.window:
	case p.got == 0:
		return unavailable{err: fmt.Errorf("stalled: nothing in %v", p.window)}
	default:
		return unavailable{err: fmt.Errorf("too slow: %d bytes in %v, at least %d are wanted", p.got, p.window, p.want)}
	}
	return nil
}
