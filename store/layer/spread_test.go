package layer

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// An ext4 is told to spread roots, and nothing else; a file system without block groups is not.
func TestSpread(t *testing.T) {
	spreads := func(t *testing.T, root, dir string) bool {
		t.Helper()
		fd, err := unix.Open(filepath.Join(root, dir), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(fd) }()
		flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
		return err == nil && flags&topDirectory != 0
	}
	t.Run("tmpfs", func(t *testing.T) {
		disk := smallDisk(t, "2m")
		var said bytes.Buffer
		open(t, Config{Root: disk, Format: Overlay, Log: slog.New(slog.NewTextHandler(&said, nil))})
		if spreads(t, disk, "containers") || said.Len() > 0 {
			t.Errorf("roots are spread, or it is said that they are not: %s", &said)
		}
	})
	t.Run("ext4", func(t *testing.T) {
		disk := filepath.Join(loopDisk(t, "ext4", "noatime", "mkfs.ext4", "-q"), "store")
		for range 2 {
			s, err := Open(Config{Root: disk, Format: Overlay})
			if err != nil {
				t.Fatal(err)
			}
			if !spreads(t, disk, "containers") || spreads(t, disk, "layers") {
				t.Error("roots are not spread, or layers are")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
