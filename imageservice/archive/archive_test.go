package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// entryOf is a file of a tar; body is the target of a link.
type entryOf struct {
	name, body string
	kind       byte
}

func pack(t testing.TB, entries ...entryOf) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o644}
		if e.kind == 0 || e.kind == tar.TypeReg {
			h.Size = int64(len(e.body))
		} else {
			h.Linkname = e.body
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, e.body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(t testing.TB, data []byte) (*Archive, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(context.Background(), f, SpoolAtMost(t.TempDir(), 1<<20))
	if err == nil {
		t.Cleanup(func() { _ = a.Close() })
	}
	return a, err
}

const config = `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}`

func dockerOf(layer string, more ...entryOf) []entryOf {
	return append([]entryOf{
		{name: "manifest.json", body: `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["` + layer + `"]}]`},
		{name: "c.json", body: config},
	}, more...)
}

// Links lead within the archive, a few steps and not in circles.
func TestLinks(t *testing.T) {
	many := []entryOf{}
	for i := range 20 {
		many = append(many, entryOf{fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1), tar.TypeSymlink})
	}
	entry := `{"Config":"c.json","RepoTags":[` + strings.Repeat(`"a:1",`, maxNames/2) + `"b:1"],"Layers":["l"]}`
	for name, row := range map[string]struct {
		entries []entryOf
		want    string // in the error; empty: it is good
	}{
		"plain":              {dockerOf("x/layer.tar", entryOf{name: "x/layer.tar"}), ""},
		"symbolic link":      {dockerOf("x/layer.tar", entryOf{name: "y/layer.tar"}, entryOf{"x/layer.tar", "../y/layer.tar", tar.TypeSymlink}), ""},
		"hard link":          {dockerOf("x/layer.tar", entryOf{name: "y/layer.tar"}, entryOf{"x/layer.tar", "y/layer.tar", tar.TypeLink}), ""},
		"spelled otherwise":  {dockerOf("./x//layer.tar", entryOf{name: "./x/layer.tar"}), ""},
		"nowhere":            {dockerOf("l", entryOf{"l", "gone", tar.TypeSymlink}), "which is not there"},
		"circle":             {dockerOf("l", entryOf{"l", "m", tar.TypeSymlink}, entryOf{"m", "l", tar.TypeSymlink}), "circle"},
		"too many":           {dockerOf("l0", append(many, entryOf{name: "l20"})...), "too many"},
		"absolute":           {dockerOf("l", entryOf{"l", "/etc/passwd", tar.TypeSymlink}), "outside of the archive"},
		"above":              {dockerOf("l", entryOf{"l", "../etc/passwd", tar.TypeSymlink}), "outside of the archive"},
		"hard link above":    {dockerOf("l", entryOf{"l", "../etc/passwd", tar.TypeLink}), "outside of the archive"},
		"device":             {dockerOf("l", entryOf{"l", "", tar.TypeChar}), "has type"},
		"twice":              {dockerOf("l", entryOf{name: "l"}, entryOf{name: "l"}), "more than once"},
		"missing":            {dockerOf("l"), "is missing"},
		"config twice":       {dockerOf("l", entryOf{name: "l"}, entryOf{name: "c.json", body: "{}"}), "more than once"},
		"long name":          {dockerOf("l", entryOf{name: strings.Repeat("n/", 600)}), "a name of"},
		"too large document": {[]entryOf{{name: "index.json", body: strings.Repeat(" ", maxDocument+1)}}, "more than"},
		"too many names":     {[]entryOf{{name: "manifest.json", body: "[" + entry + "," + entry + "]"}, {name: "c.json", body: config}, {name: "l"}}, "1002 names"},
		"too many images":    {[]entryOf{{name: "manifest.json", body: "[" + strings.Repeat("{},", maxImages) + "{}]"}}, "1001 images"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := open(t, pack(t, row.entries...))
			switch {
			case row.want != "":
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), row.want) {
					t.Errorf("error is %v", err)
				}
			case err != nil:
				t.Error(err)
			case len(a.Images()) != 1 || !a.Has(digest.FromString("")) || !a.Has(a.Images()[0].Desc.Digest):
				t.Errorf("images are %+v", a.Images())
			}
		})
	}
}

// A directory is not left through its links, and what is no file in it is not read.
func TestLayoutDirectory(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	id := digest.FromString("secret")
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.MkdirAll(blobs, 0o755),
		os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"manifests":[]}`), 0o600),
		os.Symlink(secret, filepath.Join(blobs, id.Encoded())), os.Mkdir(filepath.Join(blobs, digest.FromString("d").Encoded()), 0o755)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	for _, d := range []digest.Digest{id, digest.FromString("d"), digest.FromString("none")} {
		if b, err := a.Blob(d); err == nil {
			t.Errorf("%s was read, %d bytes", d, b.Size())
		}
	}
	if _, err := a.Blob(digest.FromString("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := a.Blob("sha256:../../../etc/passwd"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// A packed layer is read for its digest once, whatever names the images of an archive have for it, and no longer than ctx.
func TestPackedLayersAreDigestedOnce(t *testing.T) {
	gz := "\x1f\x8b\x08 packed"
	a, err := open(t, pack(t, dockerOf("l.tar.gz", entryOf{name: "l.tar.gz", body: gz})...))
	if err != nil {
		t.Fatal(err)
	}
	d := docker{a, true, map[string]digest.Digest{}}
	diffID := digest.FromString("unpacked")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.layer(ended, "l.tar.gz", diffID); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its call: %v", err)
	}
	for _, ctx := range []context.Context{t.Context(), ended} {
		if desc, err := d.layer(ctx, "./l.tar.gz", diffID); err != nil || desc.Digest != digest.FromString(gz) {
			t.Errorf("%+v, %v", desc, err)
		}
	}
}

// The configs of a Docker archive, of which there may be many and large ones, are read when they are asked for.
func TestDockerConfigsAreNotKept(t *testing.T) {
	a, err := open(t, pack(t, dockerOf("l.tar", entryOf{name: "l.tar"})...))
	if err != nil {
		t.Fatal(err)
	}
	id := digest.FromString(config)
	if a.blobs[id].data != nil {
		t.Error("the config is kept in memory")
	}
	if got, err := a.Document(id, maxConfig); err != nil || string(got) != config {
		t.Errorf("%s, %v", got, err)
	}
}

// FuzzOpen reads whatever there is of whatever comes.
func FuzzOpen(f *testing.F) {
	f.Add(pack(f, dockerOf("l", entryOf{name: "l"})...))
	f.Add(pack(f, entryOf{name: "index.json", body: `{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}`}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := os.CreateTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.Remove(file.Name()) }()
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		a, err := Open(context.Background(), file, SpoolAtMost(dir, 1<<20))
		if err != nil {
			return
		}
		defer func() { _ = a.Close() }()
		for _, img := range a.Images() {
			if data, err := a.Document(img.Desc.Digest, 1<<20); err == nil && digest.FromBytes(data) != img.Desc.Digest && img.Desc.Digest.Algorithm() == digest.SHA256 {
				t.Errorf("a document of another digest than %s", img.Desc.Digest)
			}
		}
		for d := range a.blobs {
			if b, err := a.Blob(d); err == nil {
				_, _ = io.Copy(io.Discard, b)
				_ = b.Close()
			}
		}
	})
}
