package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// LayerMounts hands the mounts of layers out to be kept by pods, and takes them back after a restart; *layer.Store is
// one. Without it every layer would be mounted, and its page cache filled, a second time beside the containers that run.
type LayerMounts interface {
	Kept(digest.Digest) (*os.File, error) // nil if there is nothing to keep
	Adopt(digest.Digest, *os.File) error
}

// keeper knows which container keeps the mount of each layer: the first that used it. A mount is kept no longer than
// that container is there, whose root uses the layer anyway, so that keeping one never holds the space of a removed image.
type keeper struct {
	layers LayerMounts // nil: nothing is kept

	mu sync.Mutex
	by map[digest.Digest]ContainerID
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

// release ends all that a container keeps and returns it.
func (k *keeper) release(id ContainerID) []digest.Digest {
	k.mu.Lock()
	defer k.mu.Unlock()
	var kept []digest.Digest
	for d, by := range k.by {
		if by == id {
			kept = append(kept, d)
			delete(k.by, d)
		}
	}
	return kept
}

const keptPrefix = "layer/"

// keptName is under what pause keeps a layer: with the algorithm it would be too long.
func keptName(d digest.Digest, id ContainerID) string {
	return keptPrefix + d.Encoded() + "/" + string(id[:16])
}

// keepLayers lets pause keep those layers of the image that nobody keeps, while the next steps go on; publish waits for it. It is
// only for speed: failing is no failure.
func (b *building) keepLayers(ctx context.Context) error {
	if b.p.s.keeper.layers != nil {
		b.keeping.Go(func() { b.handOver(ctx) })
	}
	return nil
}

func (b *building) handOver(ctx context.Context) {
	k := &b.p.s.keeper
	for _, d := range b.image.Config.RootFS.DiffIDs {
		if d.Algorithm() != digest.SHA256 || !k.claim(d, b.id) {
			continue
		}
		f, err := k.layers.Kept(d)
		if f == nil && err == nil {
			continue
		}
		if err == nil {
			err = errors.Join(b.rtPod.Keep(ctx, keptName(d, b.id), f), f.Close())
		}
		if err != nil {
			b.p.s.log.Debug("cannot keep the mount of a layer", "layer", d, "pod", b.p.id, "error", err)
		}
	}
}

// dropLayers ends keepLayers. A pause that is gone keeps nothing.
func (b *building) dropLayers(ctx context.Context) error {
	b.keeping.Wait()
	rt := b.p.runtime()
	for _, d := range b.p.s.keeper.release(b.id) {
		if rt == nil {
			continue
		}
		if err := rt.Drop(ctx, keptName(d, b.id)); err != nil {
			b.p.s.log.Debug("pause keeps the mount of a layer until it ends", "layer", d, "pod", b.p.id, "error", err)
		}
	}
	return nil
}

// adoptLayers takes back what a pod's pause kept for an earlier criserver.
func (s *Service) adoptLayers(p *pod, rt RuntimePod) {
	for _, name := range rt.KeptNames() {
		hex, short, ok := strings.Cut(strings.TrimPrefix(name, keptPrefix), "/")
		if !ok || !strings.HasPrefix(name, keptPrefix) {
			continue
		}
		for _, f := range rt.Kept(name) {
			s.adoptLayer(p, digest.NewDigestFromEncoded(digest.SHA256, hex), ContainerID(short), f)
		}
	}
}

// adoptLayer takes over f.
func (s *Service) adoptLayer(p *pod, d digest.Digest, short ContainerID, f *os.File) {
	if s.keeper.layers == nil || d.Validate() != nil {
		_ = f.Close() // of a mount: nothing to lose
		return
	}
	for _, c := range p.containers(func(containerPhase) bool { return true }) {
		if strings.HasPrefix(string(c.id), string(short)) {
			s.keeper.claim(d, c.id)
		}
	}
	if err := s.keeper.layers.Adopt(d, f); err != nil {
		s.log.Warn("cannot take the mount of a layer back", "layer", d, "pod", p.id, "error", err)
	}
}
