package imageservice

import (
	"context"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/criserver/criserver/imageservice/remote"
)

// Bounds limit what all pulls together take at a time. Zero values mean the defaults beside them.
type Bounds struct {
	Layers      int   // that are fetched and unpacked; two a processor, from 4 to 8
	Connections int   // over which layers come; 16
	PerLayer    int   // of these for one layer; 4
	Memory      int64 // bytes of buffers, MinMemory at least; 32 MiB. What unpacking keeps of each entry is not in it
}

// MinMemory is what one layer may need, in bytes.
const MinMemory = packedMemory + storeMemory + usualZstdWindow + remote.PartSize

// What a layer takes of Bounds.Memory, in bytes.
const (
	packedMemory = 2*pumpDepth*pumpBuffer + headSize + 256<<10 // pumps, what is looked at first, inflating
	storeMemory  = 3 << 20                                     // buffers of the layer store
)

func (b Bounds) withDefaults() Bounds {
	for _, v := range []struct {
		value *int
		to    int
	}{{&b.Layers, min(max(4, 2*runtime.GOMAXPROCS(0)), 8)}, {&b.Connections, 16}, {&b.PerLayer, 4}} {
		if *v.value <= 0 {
			*v.value = v.to
		}
	}
	if b.Memory <= 0 {
		b.Memory = 32 << 20
	}
	b.Memory = max(b.Memory, MinMemory)
	return b
}

// bounds are the places that Bounds gives. They are taken in the order of the fields, and who has the last of them needs no
// more of them to come to an end. It may need a place at a registry's gate, for which see transfer.rest.
type bounds struct {
	layers      *semaphore.Weighted
	connections *semaphore.Weighted
	memory      *semaphore.Weighted
	wide        *semaphore.Weighted // for one zstd stream with an unusual window
}

func newBounds(b Bounds) *bounds {
	return &bounds{layers: semaphore.NewWeighted(int64(b.Layers)), connections: semaphore.NewWeighted(int64(b.Connections)),
		memory: semaphore.NewWeighted(b.Memory), wide: semaphore.NewWeighted(1)}
}

// enter waits for a layer's places, which leave gives back.
func (b *bounds) enter(ctx context.Context, desc ocispec.Descriptor) (leave func(), err error) {
	places := []struct {
		of *semaphore.Weighted
		n  int64
	}{{b.layers, 1}, {b.connections, 1}, {b.memory, memoryOf(desc)}}
	for i, p := range places {
		if err := p.of.Acquire(ctx, p.n); err != nil {
			for _, taken := range places[:i] {
				taken.of.Release(taken.n)
			}
			return nil, context.Cause(ctx)
		}
	}
	return func() {
		for _, p := range places {
			p.of.Release(p.n)
		}
	}, nil
}

// memoryOf is what a layer needs while it is fetched over one connection.
func memoryOf(desc ocispec.Descriptor) int64 {
	need := int64(packedMemory + storeMemory)
	if c := layerCompressions[desc.MediaType]; c == zstandard {
		need += usualZstdWindow
	}
	if desc.Size >= 2*remote.HeadSize {
		need += remote.PartSize
	}
	return need
}
