package imageservice

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/registry"
)

// slowVerify is a store that verifies when it is told to.
type slowVerify struct {
	LayerStore
	began, proceed chan struct{}
}

func (s slowVerify) Verify(ctx context.Context, id digest.Digest) error {
	s.began <- struct{}{}
	<-s.proceed
	return s.LayerStore.Verify(ctx, id)
}

// A layer whose image is removed while it is verified goes when that has ended.
func TestVerifyLayerOfRemovedImage(t *testing.T) {
	slow := slowVerify{began: make(chan struct{}), proceed: make(chan struct{})}
	n := newNode(t, func(c *Config) {
		slow.LayerStore = c.Layers
		c.Layers = slow
	})
	img, _ := twoLayers(t, "verified", registry.Spec{})
	list, err := n.imported(t, tarOf(t, layout(t, []ocispec.Descriptor{named(img.Desc, "app:1", "")}, img)...), ImportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := n.Find(list[0].ID)
	verified := make(chan error, 1)
	go func() { verified <- n.VerifyLayer(t.Context(), got.DiffIDs[0]) }()
	<-slow.began
	if err := n.Remove(t.Context(), "app:1"); err != nil {
		t.Error(err)
	}
	if !n.store.Has(got.DiffIDs[0]) || n.store.Has(got.DiffIDs[1]) {
		t.Error("not the layer alone that is being verified is there")
	}
	close(slow.proceed)
	if err := <-verified; err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}
