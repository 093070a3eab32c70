package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/control"
	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/test/registry"
)

// archiveOf writes an archive with one image.
func archiveOf(t *testing.T, path, name string) (id string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	plain := registry.Tar(t, registry.File{Header: tar.Header{Name: "text"}, Body: strings.Repeat(name, 2000)})
	img := registry.Build(t, registry.Spec{Layers: []registry.Layer{{Tar: plain}}})
	err = archive.Write(f, []archive.Export{{Names: []string{name}, Desc: img.Desc, Manifest: img.Manifest, Config: img.Config,
		Layers: []archive.Layer{{DiffID: img.Layers[0].Digest, Size: int64(len(plain)), Write: func(w io.Writer) error {
			_, err := w.Write(plain)
			return err
		}}}}})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return img.ID.String()
}

// What `criserver images` does without a daemon, and what it says.
func TestImagesOffline(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("layers need root")
	}
	dir := t.TempDir()
	criserver := installed(t, filepath.Join(dir, "bin"))
	images := func(args ...string) (string, int) {
		return criserver(append([]string{"images", "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state")}, args...)...)
	}
	in, out := filepath.Join(dir, "in.tar"), filepath.Join(dir, "out.tar.gz")
	id := archiveOf(t, in, "example.com/app:1")
	for _, row := range []struct {
		args []string
		want []string
		code int
	}{
		{[]string{"list"}, []string{"does not run", "--offline"}, exitNotRunning},
		{[]string{"--offline", "list"}, []string{"NAME"}, 0},
		{[]string{"--offline", "import", in}, []string{id, "example.com/app:1"}, 0},
		{[]string{"--offline", "import", in}, []string{"(was present)"}, 0},
		{[]string{"--offline", "import", filepath.Join(dir, "no such")}, []string{"no such file"}, 1},
		{[]string{"--offline", "import", "--platform", "linux/amd64", "--all-platforms", in}, []string{"platform"}, 1},
		{[]string{"--offline", "list"}, []string{"example.com/app:1", short(id), "just now"}, 0},
		{[]string{"--offline", "verify"}, []string{"good"}, 0},
		{[]string{"--offline", "usage"}, []string{"example.com/app:1", "1 layers take"}, 0},
		{[]string{"--offline", "export", "-o", out, "example.com/app:1"}, nil, 0},
		{[]string{"--offline", "export", "-o", filepath.Join(dir, "nothing"), "no/such"}, []string{"image not found: no/such"}, 1},
		{[]string{"--offline", "export", "example.com/app:1"}, []string{"output"}, 1},
		{[]string{"--offline", "prune", "--older-than", "1h"}, []string{"freed 0 B"}, 0},
		{[]string{"--offline", "prune", "--dry-run"}, []string{"would remove " + short(id), "would free"}, 0},
		{[]string{"--offline", "remove", "example.com/app:1"}, []string{"removed " + short(id), "freed"}, 0},
		{[]string{"--offline", "remove", "example.com/app:1"}, []string{"image not found"}, 1},
		{[]string{"--offline", "import", out}, []string{id}, 0},
	} {
		text, code := images(row.args...)
		if code != row.code {
			t.Errorf("%q: exit code %d instead of %d: %s", row.args, code, row.code, text)
		}
		for _, want := range row.want {
			if !strings.Contains(text, want) {
				t.Errorf("%q: no %q in %s", row.args, want, text)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*nothing*")); len(left) > 0 {
		t.Errorf("a failed export left %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".criserver-export-*")); len(left) > 0 {
		t.Errorf("exports left %q", left)
	}
	text, _ := images("--offline", "--json", "list")
	var list []control.Image
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 || list[0].ID != id {
		t.Errorf("JSON is %s, %v", text, err)
	}
	lock, err := lockDir("root", filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if text, code := images("--offline", "list"); code != 1 || !strings.Contains(text, "is in use by the criserver with pid") {
		t.Errorf("beside a criserver that runs: exit code %d, %s", code, text)
	}
	var usage imageservice.DiskUsage
	if err := showUsage(io.Discard, usage); err != nil {
		t.Error(err)
	}
}

// Verify says which image is damaged, and its exit code does.
func TestImagesVerifyFindsDamage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("layers need root")
	}
	dir := t.TempDir()
	criserver := installed(t, filepath.Join(dir, "bin"))
	in := filepath.Join(dir, "in.tar")
	archiveOf(t, in, "example.com/app:1")
	args := []string{"images", "--offline", "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state")}
	if text, code := criserver(append(args, "import", in)...); code != 0 {
		t.Fatal(text)
	}
	damage := func(patterns ...string) (found int) {
		for _, pattern := range patterns {
			paths, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, path := range paths {
				found++
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				data[0] ^= 1
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		return found
	}
	found := damage("root/layers/layers/*/frame")
	text, code := criserver(append(args, "verify")...)
	if found != 1 || code != exitDamaged || !strings.Contains(text, "example.com/app:1: good, but a frame is DAMAGED: it cannot be exported") || !strings.Contains(text, "containers can use it") {
		t.Errorf("%d frames were damaged; exit code %d: %s", found, code, text)
	}
	found = damage("root/layers/layers/*/data", "root/layers/layers/*/fs/text")
	text, code = criserver(append(args, "verify")...)
	if found != 1 || code != exitDamaged || !strings.Contains(text, "example.com/app:1: DAMAGED") {
		t.Errorf("%d files were damaged; exit code %d: %s", found, code, text)
	}
	if text, code := criserver(append(args, "--json", "verify")...); code != exitDamaged || !strings.Contains(text, `"damaged": true`) {
		t.Errorf("as JSON: exit code %d: %s", code, text)
	}
	if text, code := criserver(append(args, "verify", "--expel")...); code != exitDamaged || !strings.Contains(text, "example.com/app:1: DAMAGED, removed") {
		t.Errorf("expelled: exit code %d: %s", code, text)
	}
	if text, code := criserver(append(args, "import", in)...); code != 0 {
		t.Error(text)
	}
	if text, code := criserver(append(args, "verify")...); code != 0 || !strings.Contains(text, "example.com/app:1: good") {
		t.Errorf("brought anew: exit code %d: %s", code, text)
	}
}

// A device or pipe that an export goes to stays what it is, also if the export fails.
func TestExportToWhatIsNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	for _, failed := range []error{nil, errors.New("failed")} {
		d, err := newDestination(pipe, "none", io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(d.pipe, "archive"); err != nil {
			t.Error(err)
		}
		if err := d.finish(failed); !errors.Is(err, failed) {
			t.Errorf("%v instead of %v", err, failed)
		}
		if got, err := io.ReadAll(reader); err != nil || string(got) != "archive" {
			t.Errorf("the pipe gave %q, %v", got, err)
		}
		if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
			t.Errorf("the pipe is %v, %v", info, err)
		}
	}
	if _, err := newDestination(t.TempDir(), "none", io.Discard); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
}

func TestPreloadIsAbsolute(t *testing.T) {
	c := defaultConfig()
	c.Images.Preload = "archives"
	if faults := strings.Join(validate(&c), "\n"); !strings.Contains(faults, `images.preload: "archives" is not an absolute path`) {
		t.Errorf("faults are %s", faults)
	}
}
