package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/criserver/criserver/store/layer"
)

// TestCheckContainerRoots asks on a disk and, as inside of a container, on an overlay.
func TestCheckContainerRoots(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	f := checkContainerRoots(Config{Root: dir, Images: Images{Store: "auto"}})
	if f.verdict != good || !strings.Contains(f.found, "roots: overlay") {
		t.Errorf("on a disk: %+v", f)
	}
	s, err := layer.Open(layer.Config{Root: dir + "/store"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	root, err := s.Root(context.Background(), "c", nil, layer.RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	nested := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
	f = checkContainerRoots(Config{Root: nested, Images: Images{Store: "auto"}})
	if f.verdict != missing || !strings.Contains(f.found, "overlay file systems cannot be mounted here: ") || strings.Contains(f.found, "\n") {
		t.Errorf("on an overlay: %+v", f)
	}
	for _, d := range []string{dir, nested} {
		left, err := os.ReadDir(d)
		if err != nil || len(left) > 1 {
			t.Errorf("%s has %v, %v", d, left, err)
		}
	}
}
