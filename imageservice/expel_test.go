package imageservice

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

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
