package imageservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/layer"
)

// holds counts who needs each layer: images, pulls under way, roots being made. A layer whose last holder lets go is
// removed from the store; an acquire meanwhile waits for the end of that. A layer that a container's root
// still uses is doomed and removed when the root is.
type holds struct {
	store LayerStore

	mu       sync.Mutex // never held across a call of the store
	count    map[digest.Digest]int
	removing map[digest.Digest]chan struct{} // closed when the removal has ended
	doomed   map[digest.Digest]bool
}

func newHolds(store LayerStore) *holds {
	return &holds{
		store:    store,
		count:    map[digest.Digest]int{},
		removing: map[digest.Digest]chan struct{}{},
		doomed:   map[digest.Digest]bool{},
	}
}

// acquire holds each layer once more, whether it is present or not. On error it holds none.
func (h *holds) acquire(ctx context.Context, layers []digest.Digest) error {
	for i, id := range layers {
		if err := h.acquireOne(ctx, id); err != nil {
			return errors.Join(err, h.release(layers[:i]))
		}
	}
	return nil
}

func (h *holds) acquireOne(ctx context.Context, id digest.Digest) error {
	return h.between(ctx, id, func() {
		h.count[id]++
		delete(h.doomed, id)
	})
}

// between calls do with mu held when no removal of the layer is under way.
func (h *holds) between(ctx context.Context, id digest.Digest, do func()) error {
	for {
		h.mu.Lock()
		busy := h.removing[id]
		if busy == nil {
			do()
			h.mu.Unlock()
			return nil
		}
		h.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return fmt.Errorf("wait for the removal of layer %s: %w", id, context.Cause(ctx))
		}
	}
}

// release lets each layer go once and removes those without holders.
func (h *holds) release(layers []digest.Digest) error {
	h.mu.Lock()
	for _, id := range layers {
		h.count[id]--
	}
	h.mu.Unlock()
	return h.remove(layers)
}

// sweep removes the doomed layers that no root uses any more, and all others of the store without holders.
func (h *holds) sweep() error {
	var all []digest.Digest
	for _, l := range h.store.List() {
		all = append(all, l.DiffID)
	}
	return h.remove(all)
}

// removeDoomed is to be called when a root is gone.
func (h *holds) removeDoomed() error {
	h.mu.Lock()
	doomed := slices.Sorted(maps.Keys(h.doomed))
	h.mu.Unlock()
	return h.remove(doomed)
}

// remove removes those layers from the store that have no holders.
func (h *holds) remove(layers []digest.Digest) error {
	var errs []error
	for _, id := range layers {
		done := h.beginRemoval(id)
		if done == nil {
			continue
		}
		_, err := h.store.Remove(id)
		h.endRemoval(id, done, errors.Is(err, layer.ErrInUse))
		if err != nil && !errors.Is(err, layer.ErrInUse) && !errors.Is(err, layer.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// expel removes a layer from the store, also if roots are built on it, when letGo has made its holders let it go. An acquire
// waits from before letGo on: what finds the layer present would vouch for it again.
func (h *holds) expel(ctx context.Context, id digest.Digest, letGo func() error) error {
	done := make(chan struct{})
	if err := h.between(ctx, id, func() { h.removing[id] = done }); err != nil {
		return err
	}
	err := letGo()
	if err == nil {
		err = h.expelUnheld(id)
	}
	h.endRemoval(id, done, false)
	if err != nil {
		return errors.Join(err, h.remove([]digest.Digest{id})) // which the last holder could not do meanwhile
	}
	return nil
}

// expelUnheld is called with the layer being removed, so that nobody can acquire it.
func (h *holds) expelUnheld(id digest.Digest) error {
	h.mu.Lock()
	held := h.count[id] > 0
	if !held {
		delete(h.count, id)
		delete(h.doomed, id)
	}
	h.mu.Unlock()
	if held {
		return fmt.Errorf("layer %s: %w", id, layer.ErrInUse)
	}
	if err := h.store.Expel(id); !errors.Is(err, layer.ErrNotFound) { // which is what was wanted
		return err
	}
	return nil
}

// beginRemoval returns nil if the layer is held or being removed.
func (h *holds) beginRemoval(id digest.Digest) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count[id] > 0 || h.removing[id] != nil {
		return nil
	}
	delete(h.count, id)
	delete(h.doomed, id)
	done := make(chan struct{})
	h.removing[id] = done
	return done
}

func (h *holds) endRemoval(id digest.Digest, done chan struct{}, inUse bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.removing, id)
	if inUse {
		h.doomed[id] = true
	}
	close(done)
}
