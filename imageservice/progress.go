package imageservice

import (
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Progress says how far an import or export is. Anybody may read it at any time; nil takes everything and shows nothing.
type Progress struct {
	total, done atomic.Int64
	image       atomic.Pointer[string]
}

// Now returns the bytes of layers that have passed, those that are known to come all in all, and the image under way.
func (p *Progress) Now() (done, total int64, image string) {
	total = p.total.Load()
	if name := p.image.Load(); name != nil {
		image = *name
	}
	return min(p.done.Load(), total), total, image
}

func (p *Progress) begin(image string, bytes int64) {
	if p == nil {
		return
	}
	p.image.Store(&image)
	p.total.Add(bytes)
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
	if p != nil {
		p.done.Add(n)
	}
}
