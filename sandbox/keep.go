package sandbox

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// LayerMounts hands the mounts of layers out to be kept by pods, and takes them back after a restart; *layer.Store is
// one. Without it every layer would be mounted, and its page cache filled, a second time beside the containers that run.
type LayerMounts interface {
	Kept(digest.Digest) (*os.File, error)  // nil if there is nothing to keep
	Adopt(*os.File) (digest.Digest, error) // "" if its layer is gone
}

// keeper knows which container keeps the mount of each layer: the first that used it. A mount is kept no longer than
// that container is there, whose root uses the layer anyway, so that keeping one never holds the space of a removed image.
type keeper struct {
	layers LayerMounts // nil: nothing is kept

	mu    sync.Mutex
	by    map[digest.Digest]ContainerID
	names map[ContainerID][]string // under which pause has them
}

// claim makes c the keeper of a layer that has none.
func (k *keeper) claim(d digest.Digest, id ContainerID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, kept := k.by[d]; kept {
		return false
	}
	k.by[d] = id
	return true
}

// note remembers a name under which the pause of a container's pod keeps mounts.
func (k *keeper) note(id ContainerID, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.names[id] = append(k.names[id], name)
}

// release ends all that a container keeps and returns the names.
func (k *keeper) release(id ContainerID) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for d, by := range k.by {
		if by == id {
			delete(k.by, d)
		}
	}
	names := k.names[id]
	delete(k.names, id)
	return names
}

const (
	keptPrefix = "layers/"
	keptAtOnce = 200 // as many descriptors as one message takes
	keepBound  = 10 * time.Second
)

// keptName is under what pause keeps the n-th lot of mounts for a container.
func keptName(id ContainerID, n int) string {
	return fmt.Sprintf("%s%s/%d", keptPrefix, id[:16], n)
}

// keepLayers lets pause keep those layers of the image that nobody keeps, while the next steps go on; publish waits for it. It is
// only for speed: failing is no failure.
func (b *building) keepLayers(ctx context.Context) error {
	if b.p.s.keeper.layers != nil {
		b.keeping.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepBound) // the step's own ctx ends with the step
			defer cancel()
			b.handOver(ctx)
		})
	}
	return nil
}

func (b *building) handOver(ctx context.Context) {
	k := &b.p.s.keeper
	log := b.p.s.log.With("pod", b.p.id)
	var files []*os.File
	for _, d := range b.image.Config.RootFS.DiffIDs {
		if !k.claim(d, b.id) {
			continue
		}
		f, err := k.layers.Kept(d)
		if err != nil {
			log.Debug("cannot keep the mount of a layer", "layer", d, "error", err)
		}
		if f != nil {
			files = append(files, f)
		}
	}
	n := 0
	for lot := range slices.Chunk(files, keptAtOnce) {
		name := keptName(b.id, n)
		n++
		if err := b.rtPod.Keep(ctx, name, lot...); err != nil {
			log.Debug("cannot keep the mounts of layers", "layers", len(lot), "error", err)
			continue
		}
		k.note(b.id, name)
	}
	for _, f := range files {
		_ = f.Close() // of a mount: nothing to lose
	}
}

// dropLayers ends keepLayers. A pause that is gone keeps nothing.
func (b *building) dropLayers(ctx context.Context) error {
	b.keeping.Wait()
	rt := b.p.runtime()
	for _, name := range b.p.s.keeper.release(b.id) {
		if rt == nil {
			continue
		}
		if err := rt.Drop(ctx, name); err != nil {
			b.p.s.log.Debug("pause keeps the mounts of layers until it ends", "pod", b.p.id, "error", err)
		}
	}
	return nil
}

// adoptLayers takes back what a pod's pause kept for an earlier criserver.
func (s *Service) adoptLayers(p *pod, rt RuntimePod) {
	for _, name := range rt.KeptNames() {
		short, _, ok := strings.Cut(strings.TrimPrefix(name, keptPrefix), "/")
		if !ok || !strings.HasPrefix(name, keptPrefix) {
			continue
		}
		var keeps ContainerID
		for _, c := range p.containers(func(containerPhase) bool { return true }) {
			if strings.HasPrefix(string(c.id), short) {
				keeps = c.id
				s.keeper.note(c.id, name)
			}
		}
		for _, f := range rt.Kept(name) {
			s.adoptLayer(p, keeps, f)
		}
	}
}

// adoptLayer takes over f, which container keeps.
func (s *Service) adoptLayer(p *pod, container ContainerID, f *os.File) {
	if s.keeper.layers == nil {
		_ = f.Close() // of a mount: nothing to lose
		return
	}
	d, err := s.keeper.layers.Adopt(f)
	if err != nil {
		s.log.Warn("cannot take the mount of a layer back", "pod", p.id, "error", err)
	}
	if d != "" && container != "" {
		s.keeper.claim(d, container)
	}
}
