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
	for {
		h.mu.Lock()
		busy := h.removing[id]
		if busy == nil {
			h.count[id]++
			delete(h.doomed, id)
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

// expel removes a layer from the store that has no holders, also if roots are built on it.
func (h *holds) expel(id digest.Digest) error {
	done := h.beginRemoval(id)
	if done == nil {
		return fmt.Errorf("layer %s: %w", id, layer.ErrInUse)
	}
	err := h.store.Expel(id)
	h.endRemoval(id, done, false)
	if errors.Is(err, layer.ErrNotFound) { // it went with its last holder
		return nil
	}
	return err
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
