package imageservice

import (
	"context"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/imagedb"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

// A layer that is expelled goes with all its images, whether a container runs on it or not, and a pull fetches it again.
func TestExpel(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	img, _ := twoLayers(t, "damaged", registry.Spec{})
	other := hello(t, "good")
	reg.PushImage(t, "app", "v1", img)
	reg.PushImage(t, "other", "v1", other)
	for _, runs := range []bool{false, true} {
		n := newNode(t)
		n.pull(t, reg.Addr+"/app:v1")
		n.pull(t, reg.Addr+"/other:v1")
		_, _, config, _ := n.Config(string(img.ID))
		bad := config.RootFS.DiffIDs[1]
		if runs {
			root, err := n.Rootfs(t.Context(), string(img.ID), "c", layer.RootOptions{})
			if err != nil {
				t.Fatal(err)
			}
			root.Close()
		}
		if err := n.Remove(t.Context(), string(img.ID)); err != nil || n.store.Has(bad) != runs {
			t.Errorf("removed, %v: has the layer: %v", err, n.store.Has(bad))
		}
		n.pull(t, reg.Addr+"/app:v1")
		if err := n.holds.acquire(t.Context(), []digest.Digest{bad}); err != nil { // as a pull does
			t.Fatal(err)
		}
		if gone, err := n.Expel(t.Context(), bad); !errors.Is(err, layer.ErrInUse) || len(gone) != 1 || !n.store.Has(bad) {
			t.Errorf("while a pull needs it: %+v, %v", gone, err)
		}
		if err := n.holds.release([]digest.Digest{bad}); err != nil {
			t.Fatal(err)
		}
		n.pull(t, reg.Addr+"/app:v1")
		if gone, err := n.Expel(t.Context(), bad); err != nil || len(gone) != 1 || gone[0].ID != string(img.ID) || n.store.Has(bad) {
			t.Errorf("%+v, %v", gone, err)
		}
		if list := n.List(); len(list) != 1 || list[0].ID != string(other.ID) {
			t.Errorf("%d images are left", len(list))
		}
		n.pull(t, reg.Addr+"/app:v1")
		if !n.store.Has(bad) {
			t.Error("a pull does not bring it anew")
		}
		if runs {
			if err := n.ReleaseRootfs(t.Context(), "c"); err != nil {
				t.Error(err)
			}
		}
	}
}

// removingStore is a store that tells when it is to remove a layer.
type removingStore struct {
	LayerStore
	tell func()
}

func (s *removingStore) Remove(id digest.Digest) (int64, error) {
	s.tell()
	return s.LayerStore.Remove(id)
}

// What comes while the images go does not keep the damaged layer: a pull that begins waits, and the image of one that held the layer
// before goes too.
func TestPullDuringExpel(t *testing.T) {
	store := &removingStore{}
	n := newNode(t, func(c *Config) {
		store.LayerStore = c.Layers
		c.Layers = store
	})
	img, _ := twoLayers(t, "damaged", registry.Spec{})
	reg := registry.Start(t, registry.Options{})
	reg.PushImage(t, "app", "v1", img)
	n.pull(t, reg.Addr+"/app:v1")
	_, _, config, _ := n.Config(string(img.ID))
	bad := []digest.Digest{config.RootFS.DiffIDs[1]}
	if err := n.holds.acquire(t.Context(), bad); err != nil { // as a pull does
		t.Fatal(err)
	}
	late := digest.FromString("late")
	told := 0
	store.tell = func() {
		if told++; told > 1 {
			return
		}
		if err := n.db.Put(imagedb.Image{ID: late, ManifestDigest: late, Config: []byte("late"), Manifest: []byte("late"), DiffIDs: bad}); err != nil { // to which the pull's hold passes
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.holds.acquire(ctx, bad); !errors.Is(err, context.Canceled) {
			t.Errorf("a pull that begins does not wait: %v", err)
		}
	}
	gone, err := n.Expel(t.Context(), bad[0])
	if err != nil || len(gone) != 2 || told != 1 {
		t.Errorf("%+v, %v; %d layers were removed", gone, err, told)
	}
	n.mustBeEmpty(t)
}

// A layer whose last holder lets it go while its expulsion fails is removed.
func TestExpelThatFails(t *testing.T) {
	n := newNode(t)
	img, _ := twoLayers(t, "damaged", registry.Spec{})
	reg := registry.Start(t, registry.Options{})
	reg.PushImage(t, "app", "v1", img)
	n.pull(t, reg.Addr+"/app:v1")
	_, _, config, _ := n.Config(string(img.ID))
	bad := config.RootFS.DiffIDs[1]
	failed := errors.New("failed")
	err := n.holds.expel(t.Context(), bad, func() error {
		return errors.Join(n.Remove(t.Context(), string(img.ID)), failed)
	})
	if !errors.Is(err, failed) {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}
