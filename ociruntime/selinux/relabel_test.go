package selinux

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Without SELinux the kernel keeps the attribute as it would keep any.
const (
	one, two = "system_u:object_r:container_file_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c3,c4"
	before   = "system_u:object_r:tmp_t:s0"
)

func labelOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, attribute, buf)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestRelabel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("labels are root's to change")
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(in("volume/a/b"), 0o700), os.WriteFile(in("volume/a/file"), nil, 0o600), os.WriteFile(in("outside"), nil, 0o600),
		os.Symlink(in("outside"), in("volume/link")), os.Symlink("volume", in("to-volume")), unix.Mkfifo(in("volume/fifo"), 0o600),
		os.Mkdir(in("volume/many"), 0o700))
	for i := range 600 {
		must(t, os.WriteFile(in("volume/many/"+strings.Repeat("x", i%200+1)+string(rune('a'+i/200))), nil, 0o600))
	}
	for _, path := range []string{in("outside"), dir} {
		must(t, unix.Setxattr(path, attribute, []byte(before), 0))
	}
	all := func(want string) {
		t.Helper()
		must(t, filepath.WalkDir(in("volume"), func(path string, _ os.DirEntry, err error) error {
			if err == nil && labelOf(t, path) != want {
				t.Errorf("%s has %q", path, labelOf(t, path))
			}
			return err
		}))
		if got := labelOf(t, in("outside")); got != before {
			t.Errorf("outside has %q", got)
		}
		if got := labelOf(t, dir); got != before {
			t.Errorf("the parent has %q", got)
		}
	}
	must(t, Relabel(t.Context(), in("volume"), one))
	all(one)
	must(t, Relabel(t.Context(), in("to-volume"), two))
	all(two)
	var old, fresh unix.Stat_t
	must(t, unix.Stat(in("volume/a/file"), &old), Relabel(t.Context(), in("volume"), two), unix.Stat(in("volume/a/file"), &fresh))
	if old.Ctim != fresh.Ctim {
		t.Error("a file was written to that had the label")
	}
	must(t, Relabel(t.Context(), in("volume/a/file"), one))
	if got := labelOf(t, in("volume/a/file")); got != one {
		t.Errorf("a single file has %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Relabel(ctx, in("volume"), one); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRelabelRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("labels are root's to change")
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink("/usr", link))
	for _, path := range []string{"/", "/etc", "/usr/", link} {
		if err := Relabel(t.Context(), path, one); !errors.Is(err, ErrSystemPath) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// not a process's directory, which is immutable: EPERM comes first with SELinux
	if err := Relabel(t.Context(), "/proc/tty", one); err != nil {
		t.Errorf("a file system without labels: %v", err)
	}
	if err := Relabel(t.Context(), "/no/such/file", one); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

func TestSetFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	must(t, err)
	defer f.Close()
	if os.Geteuid() != 0 {
		t.Skip("labels are root's to change")
	}
	must(t, SetFile(f, one))
	if got := labelOf(t, f.Name()); got != one {
		t.Errorf("got %q", got)
	}
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	must(t, SetFile(w, one)) // without SELinux a pipe keeps no label
}
