package imageservice

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/imageservice/progress"
)

// Standing is how far a pull, import or export is.
type Standing struct {
	Done, Total int64  // bytes of layers that have passed, and that are known to come all in all
	Image       string // under way
	Ended       int    // layers of a pull that have come, of those in Layers, which were not there
	Layers      int
	Stage       string // of a pull: what takes its time; empty if that is not known
}

// Progress is told how far a pull, import or export is. Anybody may read it at any time; nil takes everything and shows nothing.
type Progress struct {
	mu    sync.Mutex
	now   Standing
	pull  *account       // nil: it is no pull, or has not begun
	stage func() string  // of the pull that runs
	times progress.Times // of its layers, when somebody looked last
}

// Now is called by one reader, again and again: Stage is what has taken the time since it was last called.
func (p *Progress) Now() Standing {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pull != nil {
		p.look()
	}
	now := p.now
	now.Done = min(now.Done, now.Total)
	return now
}

// look brings now up to date. p.mu is held.
func (p *Progress) look() {
	now, times := p.pull.standing()
	if added := times.Since(p.times); added != (progress.Times{}) {
		now.Stage = added.Slowest().String()
	}
	if running := p.stage(); running != stageLayers {
		now.Stage = running
	}
	p.now, p.times = now, times
}

func (p *Progress) begin(image string, bytes int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Image = image
	p.now.Total += bytes
}

// expect adds the layers of an image.
func (p *Progress) expect(r *resolved) {
	counted := map[digest.Digest]bool{}
	sum := int64(0)
	for i, l := range r.doc.Layers {
		if id := r.image.RootFS.DiffIDs[i]; !counted[id] {
			counted[id] = true
			sum += l.Size
		}
	}
	p.begin(string(r.doc.Config.Digest), sum)
}

func (p *Progress) add(n int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Done += n
}

// follow shows the pull with this key, whoever began it.
func (p *Progress) follow(s *Service, key string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = func() string { return s.pulls.stage(key) }
	if a, _ := s.accounts.Load(key); a != nil {
		p.pull = a.(*account)
	}
}

// see shows the pull of this account.
func (p *Progress) see(a *account) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pull = a
}
