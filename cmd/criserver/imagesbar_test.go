package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/control"
	"github.com/criserver/criserver/test/registry"
)

func TestBar(t *testing.T) {
	var b bytes.Buffer
	lines := &bar{w: &b, what: "import", last: time.Now().Add(-time.Hour)}
	lines.show(control.Progress{Done: 3 << 20, Total: 4 << 20})
	lines.show(control.Progress{Done: 4 << 20, Total: 4 << 20}) // too soon for another line
	lines.end(true)
	if got := b.String(); got != "import:  75% 3.0 MiB of 4.0 MiB\n" {
		t.Errorf("lines: %q", got)
	}
	b.Reset()
	pull := &bar{w: &b, what: "pull", last: time.Now().Add(-time.Hour)}
	for _, p := range []control.Progress{{Stage: "resolve"}, {Done: 1, Total: 4, Layers: 2, Stage: "network"}, {Done: 2, Total: 4, Ended: 1, Layers: 2},
		{Done: 3, Total: 4, Ended: 1, Layers: 2}, {Done: 4, Total: 4, Ended: 2, Layers: 2}} {
		pull.show(p)
	}
	if got := b.String(); got != "pull:  50% 2 B of 4 B, 1 of 2 layers\npull: 100% 4 B of 4 B, 2 of 2 layers\n" {
		t.Errorf("lines of a pull: %q", got)
	}
	b.Reset()
	terminal := &bar{w: &b, what: "import", terminal: true}
	terminal.show(control.Progress{Done: 1, Total: 2})
	terminal.end(true)
	if got := b.String(); got != "\r\x1b[Kimport:  50% 1 B of 2 B [===============               ]\r\x1b[K" {
		t.Errorf("terminal: %q", got)
	}
	long := strings.Repeat("long ", 10)
	for columns, want := range map[int]string{20: long[:19], 58: long[:50], 63: long + " [====     ]", 200: long + " [" + strings.Repeat("=", 15) + strings.Repeat(" ", 15) + "]"} {
		if got := withBar(long, control.Progress{Done: 1, Total: 2}, columns); got != want {
			t.Errorf("%d columns: %q instead of %q", columns, got, want)
		}
	}
	for bytes, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5.0 GiB", 3 << 50: "3072.0 TiB"} {
		if got := human(bytes); got != want {
			t.Errorf("%d is %q instead of %q", bytes, got, want)
		}
	}
}

// slowRegistry serves an image of two layers of the same size, one of which stops in its middle until it is let go on.
func slowRegistry(t *testing.T) (ref string, goOn func()) {
	t.Helper()
	var spec registry.Spec
	for i := range 2 {
		noise := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(noise) // never fails
		spec.Layers = append(spec.Layers, registry.Layer{Files: []registry.File{{Header: tar.Header{Name: fmt.Sprint(i)}, Body: string(noise)}}})
	}
	img := registry.Build(t, spec)
	released := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", img.Desc.MediaType)
			_, _ = w.Write(img.Manifest) // the client may be gone
			return
		}
		d := digest.Digest(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
		data := img.Blobs[d]
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if d != img.Layers[1].Digest {
			_, _ = w.Write(data)
			return
		}
		_, _ = w.Write(data[:len(data)/2])
		w.(http.Flusher).Flush()
		select {
		case <-released:
		case <-r.Context().Done():
		}
		_, _ = w.Write(data[len(data)/2:])
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/app:v1", sync.OnceFunc(func() { close(released) })
}

// pty is a terminal of the given width.
func pty(t *testing.T, columns uint16) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// A pull on a terminal shows how far it is and what it waits for, in one line that goes away; elsewhere a line when layers have come.
func TestPullShowsProgress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("layers need root")
	}
	dir := t.TempDir()
	installed(t, filepath.Join(dir, "bin"))
	pull := func(store, ref string, stderr *os.File) *exec.Cmd {
		cmd := exec.Command(filepath.Join(dir, "bin", "criserver"), "images", "--offline", "--root", filepath.Join(dir, store, "root"), "--state", filepath.Join(dir, store, "state"), "pull", ref)
		cmd.Env = append(os.Environ(), beCriserver+"=1")
		cmd.Stderr = stderr
		return cmd
	}
	ref, goOn := slowRegistry(t)
	defer goOn()
	const columns = 90
	master, slave := pty(t, columns)
	cmd := pull("terminal", ref, slave)
	ended := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait(); _ = slave.Close() }() // then reading ends
	waits := regexp.MustCompile(`pull:  75% 1\.5 MiB of 2\.0 MiB[^\r]*, waits for the network \[=+ +\]`)
	var shown bytes.Buffer
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf)
		shown.Write(buf[:n])
		if waits.MatchString(shown.String()) {
			goOn()
		}
		if err != nil {
			break
		}
	}
	if err := <-ended; err != nil {
		t.Fatalf("%v: %q", err, shown.String())
	}
	text := shown.String()
	if !waits.MatchString(text) || !strings.HasSuffix(text, "\r\x1b[K") || strings.Contains(text, "\n") {
		t.Errorf("the terminal shows %q", text)
	}
	for line := range strings.SplitSeq(text, "\r\x1b[K") {
		if len(line) >= columns {
			t.Errorf("a line of %d characters: %q", len(line), line)
		}
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := pull("pipe", ref, w).Run(); err != nil {
		t.Error(err)
	}
	_ = w.Close()
	said, err := io.ReadAll(r)
	lines := strings.Split(strings.TrimSuffix(string(said), "\n"), "\n")
	if err != nil || len(lines) > 2 || !strings.HasPrefix(lines[len(lines)-1], "pull: 100% 2.0 MiB of 2.0 MiB") || !strings.HasSuffix(lines[len(lines)-1], ", 2 of 2 layers") {
		t.Errorf("a pipe gets %q, %v", said, err)
	}
}
