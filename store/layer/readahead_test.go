package layer

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/tartest"
)

// TestMountReadsAheadAsItsDisk gives a disk of its own a read-ahead and expects it of a layer's mount.
func TestMountReadsAheadAsItsDisk(t *testing.T) {
	const kib = "512"
	disk := loopDisk(t, "ext4", "noatime", "mkfs.ext4", "-q")
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		t.Fatal(err)
	}
	bdi := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	before, err := os.ReadFile(bdi)
	if err == nil {
		err = os.WriteFile(bdi, []byte(kib), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the loop device may be somebody else's next
		if err := os.WriteFile(bdi, before, 0); err != nil {
			t.Error(err)
		}
	})
	for _, mode := range []rootMode{rootsDetached, rootsAttached} {
		t.Run(mode.describe(), func(t *testing.T) {
			s := open(t, Config{Root: filepath.Join(disk, fmt.Sprint(mode)), Format: EROFS, roots: mode})
			name := mountLayer(t, s)
			if got := readAhead(t, name); got != kib {
				t.Errorf("%s reads %s KiB ahead, its disk %s", name, got, kib)
			}
		})
	}
}

// mountLayer mounts a new layer of s and names its BDI. Somebody else may mount at the same time: then it takes the next.
func mountLayer(t *testing.T, s *Store) string {
	t.Helper()
	var made []string
	for i := range 20 {
		id := add(t, s, tartest.Archive(t, tar.Header{Name: fmt.Sprint("f", i), Size: 1}))
		before := erofsBDIs(t)
		f, release, err := s.Lower(id)
		if err != nil {
			t.Fatal(err)
		}
		made = nil
		for name := range erofsBDIs(t) {
			if !before[name] {
				made = append(made, name)
			}
		}
		release()
		f.Close()
		if len(made) == 1 {
			return made[0]
		}
	}
	t.Fatalf("a mount of a layer came with %q each time", made)
	return ""
}

func erofsBDIs(t *testing.T) map[string]bool {
	t.Helper()
	paths, err := filepath.Glob("/sys/class/bdi/erofs-*")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, p := range paths {
		names[filepath.Base(p)] = true
	}
	return names
}

func readAhead(t *testing.T, bdi string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/class/bdi", bdi, "read_ahead_kb"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
