package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/mount"
)

// deadMount mounts a FUSE file system whose server never answers.
func deadMount(t *testing.T) string {
	t.Helper()
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	options := mount.ParseOptions([]string{fmt.Sprintf("fd=%d", server.Fd()), "rootmode=40000", "user_id=0", "group_id=0"})
	f, err := mount.New("fuse", "dead", options)
	if err != nil {
		_ = server.Close()
		t.Skipf("no FUSE: %v", err)
	}
	defer f.Close()
	dir := t.TempDir()
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), server.Close()); err != nil { // the close fails what waits
			t.Error(err)
		}
	})
	return dir
}

func bindSpec(source string) *specs.Spec {
	spec := DefaultSpec("sh", "-c", "cat /volume/file 2>/dev/null; echo end")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: source, Options: []string{"bind"}})
	return spec
}

// A volume whose file system does not answer costs its own start, after a bound, and nothing else.
func TestDeadVolume(t *testing.T) {
	f := newFixture(t)
	f.runtime.sourceBound = time.Second
	dead := deadMount(t)
	p := f.pod(t, nil)
	c, _ := f.create(t, p, bindSpec(filepath.Join(dead, "data")), nil)
	failed := make(chan error, 1)
	go func() { failed <- c.Start(testContext(t)) }()
	if out, exit := f.run(t, p, DefaultSpec("echo", "meanwhile")); out != "meanwhile\n" || exit.Code != 0 {
		t.Errorf("another container of the pod: %q, %+v", out, exit)
	}
	err := <-failed
	if err == nil || !strings.Contains(err.Error(), "open volume "+dead+"/data: no answer after 1s: the file system does not answer") {
		t.Errorf("start: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(children(t, p.Pid())) > 0 { // the process that waited for the volume ends by its timer
		if time.Now().After(deadline) {
			t.Fatalf("pause has the children %v", children(t, p.Pid()))
		}
	}
}

func children(t *testing.T, pid int) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))
}

// The root of a dead file system can be bound: that asks it nothing.
func TestDeadVolumeRoot(t *testing.T) {
	f := newFixture(t)
	dead := deadMount(t)
	p := f.pod(t, nil)
	spec := bindSpec(dead)
	spec.Process.Args = []string{"echo", "end"}
	if out, exit := f.run(t, p, spec); out != "end\n" || exit.Code != 0 {
		t.Errorf("%q, %+v", out, exit)
	}
}

// With a foreign file system on the way, volumes are opened by a child of pause.
func TestForeignVolume(t *testing.T) {
	f := newFixture(t)
	dead := deadMount(t) // a symbolic link could lead there
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("data "), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	p := f.pod(t, nil)
	for _, path := range []string{dir, link} {
		if out, _ := f.run(t, p, bindSpec(path)); out != "data end\n" {
			t.Errorf("%s: %q", path, out)
		}
	}
	missing := filepath.Join(link, "missing")
	_, err := p.openSource(testContext(t), missing)
	var wrong *os.PathError
	if !errors.As(err, &wrong) || wrong.Path != missing || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing path behind a link: %v", err)
	}
	if crosses, some, err := f.runtime.foreign.Crosses(filepath.Join(dead, "x")); !crosses || !some || err != nil {
		t.Errorf("crosses %v, some %v, %v", crosses, some, err)
	}
}
