package readahead

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMount lets mounts come and go in a sysfs of its own.
func TestMount(t *testing.T) {
	fault := errors.New("no mount")
	for _, c := range []struct {
		name string
		disk string            // of the test's directory: where its read-ahead is, with DEV for its device
		kib  string            // what it is there
		made []string          // by the mount
		err  error             // of the mount
		want map[string]string // read-ahead of the mounts then, if not the kernel's
	}{
		{name: "a disk", disk: "class/bdi/DEV/read_ahead_kb", kib: "512\n", made: []string{"erofs-8"}, want: map[string]string{"erofs-8": "512"}},
		{name: "a disk with very much", disk: "class/bdi/DEV/read_ahead_kb", kib: "8192\n", made: []string{"erofs-8"}, want: map[string]string{"erofs-8": "1024"}},
		{name: "a disk with less", disk: "class/bdi/DEV/read_ahead_kb", kib: "64\n", made: []string{"erofs-8"}, want: map[string]string{"erofs-8": "64"}},
		{name: "a partition", disk: "devices/disk/queue/read_ahead_kb", kib: "256\n", made: []string{"erofs-8"}, want: map[string]string{"erofs-8": "256"}},
		{name: "another mount of EROFS at that moment", disk: "class/bdi/DEV/read_ahead_kb", kib: "8192\n", made: []string{"erofs-8", "erofs-9"}},
		{name: "another kind of mount at that moment", disk: "class/bdi/DEV/read_ahead_kb", kib: "8192\n", made: []string{"0:77", "erofs-8"},
			want: map[string]string{"erofs-8": "1024"}},
		{name: "no disk", made: []string{"erofs-8"}},
		{name: "no number", disk: "class/bdi/DEV/read_ahead_kb", kib: "much\n", made: []string{"erofs-8"}},
		{name: "no BDI", disk: "class/bdi/DEV/read_ahead_kb", kib: "8192\n"},
		{name: "the mount fails", disk: "class/bdi/DEV/read_ahead_kb", kib: "8192\n", made: []string{"erofs-8"}, err: fault},
	} {
		t.Run(c.name, func(t *testing.T) {
			sys := t.TempDir()
			var st unix.Stat_t
			if err := unix.Stat(sys, &st); err != nil {
				t.Fatal(err)
			}
			dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
			put := func(path, text string) {
				path = filepath.Join(sys, path)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			bdi := func(name string) string { return "class/bdi/" + name + "/read_ahead_kb" }
			put(bdi("erofs-7"), "128")
			if c.disk != "" {
				put(strings.Replace(c.disk, "DEV", dev, 1), c.kib)
			}
			put("devices/disk/part/size", "1")
			if err := errors.Join(os.MkdirAll(filepath.Join(sys, "dev/block"), 0o700),
				os.Symlink("../../devices/disk/part", filepath.Join(sys, "dev/block", dev))); err != nil {
				t.Fatal(err)
			}
			d := &Disk{sys: sys}
			err := d.Mount(sys, func() error {
				for _, name := range c.made {
					put(bdi(name), "128")
				}
				return c.err
			})
			if !errors.Is(err, c.err) {
				t.Errorf("error %v", err)
			}
			for _, name := range append(c.made, "erofs-7") {
				want := c.want[name]
				if want == "" {
					want = "128"
				}
				if got, err := os.ReadFile(filepath.Join(sys, bdi(name))); err != nil || string(got) != want {
					t.Errorf("%s reads %s KiB ahead instead of %s, %v", name, got, want, err)
				}
			}
		})
	}
}

// TestMountWithoutSysfs mounts where there is nothing to read, and below a directory that is not there.
func TestMountWithoutSysfs(t *testing.T) {
	d := &Disk{sys: filepath.Join(t.TempDir(), "none")}
	for _, dir := range []string{t.TempDir(), "/none/such"} {
		calls := 0
		if err := d.Mount(dir, func() error { calls++; return nil }); err != nil || calls != 1 {
			t.Errorf("%s: %d mounts, %v", dir, calls, err)
		}
	}
}
