package layer

import (
	"archive/tar"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
)

// A root whose layers cannot be detached from the layer namespace any more is no root, and its mount goes.
func TestDetachFails(t *testing.T) {
	for _, roots := range []rootMode{rootsAttached, rootsMount} {
		s := open(t, Config{Root: t.TempDir(), roots: roots})
		layers := []digest.Digest{add(t, s, tartest.Archive(t, tar.Header{Name: "a", Size: 1}))}
		o := RootOptions{UIDs: []IDMap{{0, 200000, 65536}}, GIDs: []IDMap{{0, 300000, 65536}}}
		root, err := s.Root(ctx, "good", layers, o) // the layer is mounted then
		if err != nil {
			t.Fatal(err)
		}
		root.Close()
		keepNames(t, s, true)
		before := descriptors(t)
		if root, err := s.Root(ctx, "bad", layers, o); err == nil {
			t.Errorf("%s: a root in spite of what stays attached", roots.describe())
			root.Close()
		}
		s.cleanup.Wait()
		if more := descriptors(t) - before; more != 0 {
			t.Errorf("%s: %d descriptors more", roots.describe(), more)
		}
		keepNames(t, s, false)
	}
}

// keepNames has the layer namespace take new names and delete none, or again as usual.
func keepNames(t *testing.T, s *Store, keep bool) {
	t.Helper()
	const appendOnly = 0x20 // FS_APPEND_FL
	err := s.ns.do(func() error {
		dir, err := os.Open(nsLayers)
		if err != nil {
			return err
		}
		defer dir.Close()
		flags := 0
		if keep {
			flags = appendOnly
		}
		return unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, flags)
	})
	if err != nil {
		t.Skip("tmpfs has no such directories:", err)
	}
}
