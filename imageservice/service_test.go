package imageservice

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/registry"
)

// node is a service on its own directories.
type node struct {
	*Service
	store *layer.Store
	dir   string
}

// newNode starts a service that ends with the test; change may alter its configuration.
func newNode(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	return nodeAt(t, t.TempDir(), change...)
}

func nodeAt(t testing.TB, dir string, change ...func(*Config)) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("layers need root")
	}
	store, err := layer.Open(layer.Config{Root: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Dir: filepath.Join(dir, "images"), Layers: store, Registry: remote.Config{Backoff: time.Millisecond}}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(errors.Join(err, store.Close()))
	}
	n := &node{Service: s, store: store, dir: dir}
	t.Cleanup(n.stop)
	return n
}

// stop is harmless the second time.
func (n *node) stop() {
	_ = n.Close()
	_ = n.store.Close()
}

func (n *node) pull(t testing.TB, ref string) string {
	t.Helper()
	id, err := n.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// files lists what the stores have on disk, without the databases and empty directories. What goes while it looks is not there.
func (n *node) files(t testing.TB) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != n.dir {
			return nil
		}
		if err == nil && !d.IsDir() && !strings.HasPrefix(d.Name(), "images.db") {
			all = append(all, strings.TrimPrefix(path, n.dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (n *node) mustBeEmpty(t testing.TB) {
	t.Helper()
	eventually(t, "what is left of removed roots is deleted in the background", func() bool {
		return !slices.ContainsFunc(n.files(t), func(path string) bool { return strings.HasPrefix(path, "/store/trash/") })
	})
	if left := n.files(t); len(left) > 0 {
		t.Errorf("files left behind: %q", left)
	}
	if l := n.List(); len(l) > 0 {
		t.Errorf("%d images are listed", len(l))
	}
	n.holds.mu.Lock()
	defer n.holds.mu.Unlock()
	for id, count := range n.holds.count {
		t.Errorf("layer %s is held %d times", id, count)
	}
}

// hello is an image of three layers, one of each compression.
func hello(t testing.TB, text string) *registry.Image {
	return registry.Build(t, registry.Spec{
		Config: ocispec.Image{Config: ocispec.ImageConfig{User: "1000:1000", Cmd: []string{"/hello"}}},
		Layers: []registry.Layer{
			{Compression: "gzip", Files: []registry.File{
				{Header: tar.Header{Name: "etc/"}}, {Header: tar.Header{Name: "etc/a"}, Body: "lower"}, {Header: tar.Header{Name: "gone"}, Body: "x"},
			}},
			{Compression: "zstd", Files: []registry.File{{Header: tar.Header{Name: "etc/a"}, Body: text}, {Header: tar.Header{Name: ".wh.gone"}}}},
			{Files: []registry.File{{Header: tar.Header{Name: "hello", Mode: 0o755}, Body: strings.Repeat(text, 10000)}}},
		},
	})
}

// read reads a file of a detached mount.
func read(t testing.TB, root *os.File, name string) (string, error) {
	t.Helper()
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }() // only read from
	data := make([]byte, 1<<20)
	n, err := f.Read(data)
	return string(data[:n]), err
}

func TestPullListStatusRemove(t *testing.T) {
	for name, o := range map[string]registry.Options{"http": {}, "https": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			reg := registry.Start(t, o)
			img := hello(t, name)
			reg.PushImage(t, "team/hello", "v1", img)
			reg.PushImage(t, "team/hello", "v2", img)
			reg.PushImage(t, "team/hello", "latest", img)
			n := newNode(t, func(c *Config) {
				c.Registry.CertsDirs = []string{filepath.Join(t.TempDir(), "absent"), reg.CertsDir(t)}
			})
			repo := reg.Addr + "/team/hello"

			if id := n.pull(t, repo); id != string(img.ID) {
				t.Fatalf("id %s, want %s", id, img.ID)
			}
			n.pull(t, repo+":v2")
			n.pull(t, repo+":v1")
			want := &Image{
				ID: string(img.ID), RepoTags: []string{repo + ":latest", repo + ":v1", repo + ":v2"},
				RepoDigests: []string{repo + "@" + img.Desc.Digest.String()}, User: "1000:1000", Config: img.Config, Manifest: img.Manifest,
			}
			for _, ref := range []string{
				repo, repo + ":v1", repo + "@" + img.Desc.Digest.String(), string(img.ID), img.ID.Encoded(), img.ID.Encoded()[:12], string(img.ID)[:20],
			} {
				got, err := n.Find(ref)
				if err != nil {
					t.Fatal(err)
				}
				if got.Size < uint64(len(img.Config)) {
					t.Errorf("size %d", got.Size)
				}
				want.Size, want.DiffIDs, want.PulledAt = got.Size, diffIDs(t, img), got.PulledAt
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: %s", ref, diff)
				}
			}
			if diff := cmp.Diff([]*Image{want}, n.List()); diff != "" {
				t.Error(diff)
			}
			if u := n.Usage(); u.Bytes == 0 || u.Inodes == 0 || u.Mountpoint != n.cfg.Dir {
				t.Errorf("usage %+v", u)
			}
			for range 2 { // the second time it is gone already
				if err := n.Remove(t.Context(), repo+":v2"); err != nil {
					t.Fatal(err)
				}
				n.mustBeEmpty(t)
			}
			if _, err := n.Find(repo); err == nil {
				t.Error("still there")
			}
		})
	}
}

func TestPullByDigestHasNoTag(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	img := hello(t, "d")
	reg.PushImage(t, "hello", "v1", img)
	n := newNode(t)
	n.pull(t, reg.Addr+"/hello:ignored@"+img.Desc.Digest.String())
	got, err := n.Find(string(img.ID))
	if err != nil || len(got.RepoTags) != 0 || !slices.Equal(got.RepoDigests, []string{reg.Addr + "/hello@" + img.Desc.Digest.String()}) {
		t.Errorf("%+v", got)
	}
}

func TestIndexesAndDockerTypes(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	n := newNode(t)
	for _, docker := range []bool{false, true} {
		build := func(os, arch string) *registry.Image {
			return registry.Build(t, registry.Spec{
				Docker: docker, Config: ocispec.Image{Platform: ocispec.Platform{OS: os, Architecture: arch}, Author: fmt.Sprint(docker)},
				Layers: []registry.Layer{{Compression: "gzip", Files: []registry.File{{Header: tar.Header{Name: "arch"}, Body: arch}}}},
			})
		}
		native, attestation := build("linux", n.platformName()), build("unknown", "unknown")
		top := reg.PushIndex(t, "multi", "v1", docker, attestation, build("linux", "s390x"), native, build("windows", n.platformName()))
		if id := n.pull(t, reg.Addr+"/multi:v1"); id != string(native.ID) {
			t.Errorf("pulled %s, want %s", id, native.ID)
		}
		got, _ := n.Find(string(native.ID))
		if diff := cmp.Diff([]string{reg.Addr + "/multi@" + top.String()}, got.RepoDigests); diff != "" {
			t.Error(diff)
		}
		reg.PushIndex(t, "foreign", "v1", docker, build("linux", "s390x"))
		_, err := n.Pull(t.Context(), PullRequest{Ref: reg.Addr + "/foreign:v1"})
		if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "linux/s390x") {
			t.Errorf("foreign platform: %v", err)
		}
		if err := n.Remove(t.Context(), string(native.ID)); err != nil {
			t.Fatal(err)
		}
	}
	n.mustBeEmpty(t)
}

func (n *node) platformName() string { return platforms.DefaultSpec().Architecture }

func TestAuthentication(t *testing.T) {
	img := hello(t, "secret")
	basic := registry.Start(t, registry.Options{Basic: true})
	token := registry.Start(t, registry.Options{Token: true})
	basic.PushImage(t, "private", "v1", img)
	token.PushImage(t, "private", "v1", img)
	good := remote.Auth{Username: registry.User, Password: registry.Password}
	const encoded = "YWxpY2U6czNjcmV0OndpdGgvY29sb24="
	for _, c := range []struct {
		name string
		reg  *registry.Registry
		auth remote.Auth
		ok   bool
	}{
		{"basic", basic, good, true},
		{"basic, encoded", basic, remote.Auth{Auth: encoded}, true},
		{"basic, for this server", basic, remote.Auth{Auth: encoded, ServerAddress: "http://" + basic.Addr + "/v2/"}, true},
		{"basic, for another server", basic, remote.Auth{Auth: encoded, ServerAddress: "127.0.0.1:1"}, false},
		{"basic, anonymous", basic, remote.Auth{}, false},
		{"basic, wrong password", basic, remote.Auth{Username: registry.User, Password: "wrong-pa55"}, false},
		{"token", token, good, true},
		{"token, identity", token, remote.Auth{IdentityToken: registry.IdentityToken}, true},
		{"token, bearer", token, remote.Auth{RegistryToken: token.BearerToken(t, "private")}, true},
		{"token, for another server", token, remote.Auth{Auth: encoded, ServerAddress: "example.com"}, false},
		{"token, anonymous", token, remote.Auth{}, false},
		{"token, wrong password", token, remote.Auth{Username: registry.User, Password: "wrong-pa55"}, false},
		{"token, bearer of another repository", token, remote.Auth{RegistryToken: token.BearerToken(t, "other")}, false},
		{"not base64", basic, remote.Auth{Auth: "s3cret!"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			_, err := n.Pull(t.Context(), PullRequest{Ref: c.reg.Addr + "/private:v1", Auth: c.auth})
			if c.ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("pulled")
			}
			if c.name != "not base64" && !errors.Is(err, ErrUnauthorized) {
				t.Errorf("%v is not ErrUnauthorized", err)
			}
			for _, secret := range []string{"s3cret", "wrong-pa55", encoded, registry.IdentityToken} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("secret in error: %v", err)
				}
			}
			n.mustBeEmpty(t)
		})
	}
	if token.TokensGiven() != 2 {
		t.Errorf("%d tokens were fetched for two pulls", token.TokensGiven())
	}
}

func TestRootsKeepLayersOfRemovedImages(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	img := hello(t, "upper")
	reg.PushImage(t, "hello", "v1", img)
	dir := t.TempDir()
	n := nodeAt(t, dir)
	n.pull(t, reg.Addr+"/hello:v1")
	root, err := n.Rootfs(t.Context(), string(img.ID), "c1", layer.RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }() // closed below if all goes well
	if got, err := read(t, root, "etc/a"); got != "upper" {
		t.Errorf("etc/a is %q, %v", got, err)
	}
	if _, err := read(t, root, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the second layer removed: %v", err)
	}
	if _, err := n.Rootfs(t.Context(), string(img.ID), "c1", layer.RootOptions{}); !errors.Is(err, layer.ErrExists) {
		t.Errorf("second root: %v", err)
	}
	if err := n.Remove(t.Context(), string(img.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Rootfs(t.Context(), string(img.ID), "c2", layer.RootOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("root of a removed image: %v", err)
	}
	if len(n.store.List()) != 3 {
		t.Errorf("%d layers, the container uses 3", len(n.store.List()))
	}
	n.stop()

	n = nodeAt(t, dir) // a restart
	if len(n.store.List()) != 3 {
		t.Fatalf("%d layers after a restart, the container uses 3", len(n.store.List()))
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.ReleaseRootfs(context.Background(), "c1"); err != nil {
			t.Fatal(err)
		}
	}
	n.mustBeEmpty(t)
}

func TestRestart(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	a, b := hello(t, "a"), hello(t, "b") // share their first layer
	reg.PushImage(t, "hello", "a", a)
	reg.PushImage(t, "hello", "b", b)
	dir := t.TempDir()
	n := nodeAt(t, dir)
	n.pull(t, reg.Addr+"/hello:a")
	n.pull(t, reg.Addr+"/hello:b")
	want := n.List()
	n.stop()

	n = nodeAt(t, dir)
	if diff := cmp.Diff(want, n.List()); diff != "" {
		t.Error(diff)
	}
	n.stop()

	// A layer of b is lost; b must go, with its other layers, and a stay.
	store, err := layer.Open(layer.Config{Root: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	lost := diffIDs(t, b)[2]
	if _, err := store.Remove(lost); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	n = nodeAt(t, dir)
	if l := n.List(); len(l) != 1 || l[0].ID != string(a.ID) {
		t.Errorf("%d images", len(l))
	}
	if got := len(n.store.List()); got != 3 {
		t.Errorf("%d layers, a has 3", got)
	}
	n.pull(t, reg.Addr+"/hello:b")
	n.stop()

	// The database is lost: nothing vouches for the layers.
	if err := os.WriteFile(filepath.Join(dir, "images", "images.db"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	n = nodeAt(t, dir)
	if err := os.Remove(filepath.Join(dir, "images", "images.db.corrupt-1")); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
	n.pull(t, reg.Addr+"/hello:b")
}

func diffIDs(t testing.TB, img *registry.Image) []digest.Digest {
	t.Helper()
	var config ocispec.Image
	if err := json.Unmarshal(img.Config, &config); err != nil {
		t.Fatal(err)
	}
	return config.RootFS.DiffIDs
}

func TestSharedLayersAndMovedTags(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	a, b := hello(t, "a"), hello(t, "b")
	reg.PushImage(t, "hello", "v1", a)
	n := newNode(t)
	ref := reg.Addr + "/hello:v1"
	n.pull(t, ref)
	reg.PushImage(t, "hello", "v1", b)
	if id := n.pull(t, ref); id != string(b.ID) {
		t.Errorf("pulled %s, want %s", id, b.ID)
	}
	old, err := n.Find(string(a.ID))
	if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
		t.Errorf("the image that lost its tag: %+v", old)
	}
	if got := len(n.store.List()); got != 5 {
		t.Errorf("%d layers, want 5 of which one is shared", got)
	}
	if err := n.Remove(t.Context(), string(a.ID)); err != nil {
		t.Fatal(err)
	}
	root, err := n.Rootfs(t.Context(), string(b.ID), "c1", layer.RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, root, "etc/a"); got != "b" {
		t.Errorf("etc/a is %q, %v", got, err)
	}
	if err := errors.Join(root.Close(), n.ReleaseRootfs(t.Context(), "c1"), n.Remove(t.Context(), ref)); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

func TestPinned(t *testing.T) {
	reg := registry.Start(t, registry.Options{})
	img := hello(t, "p")
	for _, tag := range []string{"exact", "wild-1"} {
		reg.PushImage(t, "hello", tag, img)
		n := newNode(t, func(c *Config) { c.Pinned = []string{reg.Addr + "/hello:exact", reg.Addr + "/hello:wild*", "busybox"} })
		n.pull(t, reg.Addr+"/hello:"+tag)
		if got, _ := n.Find(string(img.ID)); got == nil || !got.Pinned {
			t.Errorf("%s: %+v", tag, got)
		}
	}
	reg.PushImage(t, "hello", "other", img)
	n := newNode(t, func(c *Config) { c.Pinned = []string{reg.Addr + "/hello:exact"} })
	n.pull(t, reg.Addr+"/hello:other")
	if got, _ := n.Find(string(img.ID)); got == nil || got.Pinned {
		t.Errorf("%+v", got)
	}
	if err := n.SetPinned([]string{"UPPER"}); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("got error %v", err)
	}
	if err := n.SetPinned([]string{reg.Addr + "/hello:*"}); err != nil {
		t.Error(err)
	}
	if got, _ := n.Find(string(img.ID)); got == nil || !got.Pinned {
		t.Errorf("pinned meanwhile, but: %v", got)
	}
	if _, err := New(Config{Dir: t.TempDir(), Pinned: []string{"UPPER"}}); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("invalid pin: %v", err)
	}
}
