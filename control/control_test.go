package control

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

// daemon serves calls on stores of its own.
type daemon struct {
	images *imageservice.Service
	layers *layer.Store
	root   string
	socket string
	used   []string
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("layers need root")
	}
	d := &daemon{root: t.TempDir(), socket: filepath.Join(t.TempDir(), "s")}
	var err error
	if d.layers, err = layer.Open(layer.Config{Root: filepath.Join(d.root, "layers")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.layers.Close() })
	if d.images, err = imageservice.New(imageservice.Config{Dir: d.root, Layers: d.layers}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.images.Close() })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, Config{Images: d.images, Containers: func() []string { return d.used }, SpoolDir: d.root, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { _ = s.Close() })
	return d
}

func (d *daemon) call(t *testing.T, call string, args any, file *os.File, result any) error {
	t.Helper()
	return Call(t.Context(), d.socket, call, args, file, nil, result)
}

// archived is an archive with images that are named by their texts.
func archived(t *testing.T, texts ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "images.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var exports []archive.Export
	for _, text := range texts {
		plain := registry.Tar(t, registry.File{Header: tar.Header{Name: "text"}, Body: strings.Repeat(text, 1000)})
		img := registry.Build(t, registry.Spec{Layers: []registry.Layer{{Tar: plain}}})
		exports = append(exports, archive.Export{Names: []string{"example.com/" + text + ":1"}, Desc: img.Desc, Manifest: img.Manifest, Config: img.Config,
			Layers: []archive.Layer{{DiffID: img.Layers[0].Digest, Size: int64(len(plain)), Write: func(w io.Writer) error {
				_, err := w.Write(plain)
				return err
			}}}})
	}
	if err := errors.Join(archive.Write(f, exports), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func (d *daemon) imported(t *testing.T, texts ...string) []imageservice.Imported {
	t.Helper()
	f, err := os.Open(archived(t, texts...))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []imageservice.Imported
	if err := d.call(t, "import", Import{}, f, &list); err != nil || len(list) != len(texts) {
		t.Fatalf("%+v, %v", list, err)
	}
	return list
}

func TestCalls(t *testing.T) {
	d := newDaemon(t)
	first := d.imported(t, "one", "two")
	d.used = []string{first[0].ID}

	var list []Image
	if err := d.call(t, "list", Refs{}, nil, &list); err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := d.call(t, "list", Refs{Refs: []string{"example.com/one:1"}}, nil, &list); err != nil || len(list) != 1 || list[0].Containers != 1 || list[0].Platform == "" || time.Since(list[0].PulledAt) > time.Hour {
		t.Errorf("%+v, %v", list, err)
	}
	var verified []Verified
	if err := d.call(t, "verify", Verify{}, nil, &verified); err != nil || len(verified) != 2 || verified[0].Layers[0].Error != "" {
		t.Errorf("%+v, %v", verified, err)
	}
	var usage imageservice.DiskUsage
	if err := d.call(t, "usage", struct{}{}, nil, &usage); err != nil || len(usage.Images) != 2 {
		t.Errorf("%+v, %v", usage, err)
	}
	for _, refs := range [][]string{{"no/such"}, {"example.com/one:1", "no/such"}} {
		if err := d.call(t, "remove", Refs{Refs: refs}, nil, &Removed{}); !errors.Is(err, imageservice.ErrNotFound) || !strings.Contains(err.Error(), "no/such") {
			t.Errorf("remove %q: %v", refs, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, r)
		out <- n
	}()
	if err := d.call(t, "export", Refs{Refs: []string{"example.com/two:1"}}, w, &struct{}{}); err != nil {
		t.Error(err)
	}
	w.Close()
	if n := <-out; n < 4000 {
		t.Errorf("%d bytes were exported", n)
	}
	for call, want := range map[string]string{"import": "no archive came", "export": "no place", "dance": "not known", "pull": "invalid image reference"} {
		if err := d.call(t, call, struct{}{}, nil, &struct{}{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", call, err)
		}
	}
	if err := Call(t.Context(), d.socket+"x", "list", Refs{}, nil, nil, &list); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody listens: %v", err)
	}
}

// The beginning of several ids is refused with their names, by whatever takes images by reference.
func TestAmbiguousIDs(t *testing.T) {
	d := newDaemon(t)
	byDigit := map[string]imageservice.Imported{}
	var digit string
	var two []string // as errors name them
	for i := 0; len(two) == 0; i++ {
		img := d.imported(t, fmt.Sprintf("app%d", i))[0]
		digit = strings.TrimPrefix(img.ID, "sha256:")[:1]
		if other, taken := byDigit[digit]; taken {
			two = []string{other.ID + " (" + other.Names[0] + ")", img.ID + " (" + img.Names[0] + ")"}
		}
		byDigit[digit] = img
	}
	slices.Sort(two)
	want := fmt.Sprintf("invalid image reference %q: ambiguous image id, it may be %s", digit, strings.Join(two, ", "))
	refs := Refs{Refs: []string{digit}}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	for call, args := range map[string]any{"list": refs, "remove": refs, "verify": Verify{Refs: refs.Refs}, "export": refs} {
		err := d.call(t, call, args, out, new(any))
		if !errors.Is(err, imageservice.ErrInvalidReference) || errors.Is(err, imageservice.ErrNotFound) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", call, err, want)
		}
	}
	if n := len(d.images.List()); n != len(byDigit)+1 {
		t.Errorf("%d images are left", n)
	}
}

// A damaged layer that is in use stays and is said to; the others go, and what went is said too.
func TestExpelOfSeveral(t *testing.T) {
	d := newDaemon(t)
	d.imported(t, "one", "two")
	for _, pattern := range []string{"*/data", "*/fs/text"} { // of both kinds of stores
		paths, _ := filepath.Glob(filepath.Join(d.root, "layers", "layers", pattern))
		for _, path := range paths {
			if err := os.WriteFile(path, []byte("damage"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	images := d.images.List()
	r, w := io.Pipe()
	exported := make(chan error, 1)
	go func() { exported <- d.images.Export(t.Context(), []string{images[0].ID}, w, &imageservice.Progress{}) }()
	if _, err := r.Read(make([]byte, 1)); err != nil { // it holds its layers
		t.Fatal(err)
	}
	err := d.call(t, "verify", Verify{Expel: true}, nil, &[]Verified{})
	for _, want := range []string{"layer " + string(images[0].DiffIDs[0]), "in use", images[0].ID, images[1].ID} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %s", err, want)
		}
	}
	if d.layers.Has(images[1].DiffIDs[0]) || len(d.images.List()) != 0 {
		t.Errorf("the layer that nobody uses, or an image is left: %d images", len(d.images.List()))
	}
	r.Close()
	if err := <-exported; err == nil {
		t.Error("the export succeeded")
	}
}

// A connection that cannot be taken, for want of descriptors, is not the last. It is said once until one is.
func TestAcceptGoesOn(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	said := make(told, 100)
	s := Serve(l, Config{Log: slog.New(slog.NewTextHandler(said, nil))})
	defer s.Close()
	if err := l.SetDeadline(time.Now()); err != nil { // an error of accept(2), as EMFILE is one
		t.Fatal(err)
	}
	if line := <-said; !strings.Contains(line, "takes no connection") {
		t.Errorf("it says %s", line)
	}
	select {
	case line := <-said:
		t.Errorf("it says more: %s", line)
	case <-time.After(3 * acceptPause):
	}
	if err := l.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	err = Call(t.Context(), l.Addr().String(), "dance", struct{}{}, nil, nil, new(any))
	if err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("it no longer answers: %v", err)
	}
	if line := <-said; !strings.Contains(line, "again") {
		t.Errorf("then it says %s", line)
	}
}

// told is told of each line of a log.
type told chan string

func (c told) Write(p []byte) (int, error) {
	select {
	case c <- string(p):
	default:
	}
	return len(p), nil
}

// What prune says is freed is what the store no longer has.
func TestPrune(t *testing.T) {
	d := newDaemon(t)
	images := d.imported(t, "used", "unused", "pinned")
	d.used = []string{images[0].ID}
	if err := d.images.SetPinned([]string{"example.com/pinned:1"}); err != nil {
		t.Fatal(err)
	}
	var dry, wet, none Removed
	if err := d.call(t, "prune", Prune{OlderThan: time.Hour}, nil, &none); err != nil || len(none.Images) != 0 || none.Freed != 0 {
		t.Errorf("images are too young: %+v, %v", none, err)
	}
	if err := d.call(t, "prune", Prune{DryRun: true}, nil, &dry); err != nil || len(dry.Images) != 1 || dry.Images[0].ID != images[1].ID || dry.Freed == 0 {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	before := d.images.Usage().Bytes
	if err := d.call(t, "prune", Prune{}, nil, &wet); err != nil || len(wet.Images) != 1 || wet.Freed != dry.Freed {
		t.Errorf("%+v, %v", wet, err)
	}
	if freed := before - d.images.Usage().Bytes; int64(freed) != wet.Freed {
		t.Errorf("%d bytes are said to be freed, the store has %d less", wet.Freed, freed)
	}
}

// A client that goes away ends its call, also one that waits for a pipe which nobody writes.
func TestClientGoesAway(t *testing.T) {
	d := newDaemon(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Call(ctx, d.socket, "import", Import{}, r, nil, &struct{}{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("import from a silent pipe: %v", err)
	}
	r.Close()
	for i := 0; ; i++ { // the server's end is closed once its call has ended
		if _, err := w.Write([]byte("x")); err != nil {
			break
		}
		if i == 1000 {
			t.Fatal("the call goes on")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
