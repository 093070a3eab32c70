package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
	"github.com/criserver/criserver/test/crash"
	"github.com/criserver/criserver/test/registry"
)

// Marks of the program that is watched.
const (
	markPulled   = "pulled"   // Pull has returned
	markDurable  = "durable"  // and Sync
	markRemoving = "removing" // Remove is about to be called
	markRemoved  = "removed"  // Remove has returned
)

// crashChild has, in the environment of the program that is watched, what it is to do.
const crashChild = "IMAGESERVICE_CRASH_CHILD"

func TestMain(m *testing.M) {
	if task := os.Getenv(crashChild); task != "" {
		if err := pullAndRemove(strings.Fields(task)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// pullAndRemove is the life that is cut at each of its changes: directory, format and reference are in task.
func pullAndRemove(task []string) error {
	dir, format, ref := task[0], layer.Format(task[1]), task[2]
	if err := crash.Watch(); err != nil {
		return err
	}
	n, err := bootedNode(dir, format, "before")
	if err != nil {
		return err
	}
	ctx := context.Background()
	mark := func(name string) { _, _ = os.Lstat(crash.Marker(name)) }
	if _, err := n.Pull(ctx, PullRequest{Ref: ref}); err != nil {
		return err
	}
	mark(markPulled)
	if err := n.store.Sync(ctx); err != nil {
		return err
	}
	mark(markDurable)
	mark(markRemoving)
	if err := n.Remove(ctx, ref); err != nil {
		return err
	}
	mark(markRemoved)
	if _, err := n.Pull(ctx, PullRequest{Ref: ref}); err != nil {
		return err
	}
	return errors.Join(n.Close(), n.store.Close())
}

func bootedNode(dir string, format layer.Format, boot string) (*node, error) {
	store, err := layer.Open(layer.Config{Root: filepath.Join(dir, "store"), Format: format, BootID: boot})
	if err != nil {
		return nil, err
	}
	s, err := New(Config{Dir: filepath.Join(dir, "images"), Layers: store, Registry: remote.Config{Backoff: time.Millisecond}})
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &node{Service: s, store: store, dir: dir}, nil
}

// crashed are two images that share a layer: kept is there before the crash, cut is pulled and removed when it comes.
type crashedImages struct {
	kept, cut       *registry.Image
	keptRef, cutRef string
	keptAll, cutAll map[string]string // what their files are
	format          layer.Format
}

func crashImages(t *testing.T, format layer.Format) *crashedImages {
	files := func(name string, more ...registry.File) registry.Layer {
		return registry.Layer{Compression: "gzip", Files: append([]registry.File{
			{Header: tar.Header{Name: name + "/"}}, {Header: tar.Header{Name: name + "/large"}, Body: strings.Repeat(name+" ", 3000)},
			{Header: tar.Header{Name: name + "/small", Mode: 0o4755, Uid: 7}, Body: name}}, more...)}
	}
	c := &crashedImages{format: format}
	c.kept = registry.Build(t, registry.Spec{Layers: []registry.Layer{files("base"), files("kept")}})
	c.cut = registry.Build(t, registry.Spec{Layers: []registry.Layer{files("base"), files("cut",
		registry.File{Header: tar.Header{Name: "cut/hard", Typeflag: tar.TypeLink, Linkname: "cut/small"}},
		registry.File{Header: tar.Header{Name: "cut/soft", Typeflag: tar.TypeSymlink, Linkname: "small"}},
		registry.File{Header: tar.Header{Name: "base/.wh.small"}},
		registry.File{Header: tar.Header{Name: "cut/xattr", PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v"}}, Body: "x"})}})
	reg := registry.Start(t, registry.Options{})
	reg.PushImage(t, "kept", "v1", c.kept)
	reg.PushImage(t, "cut", "v1", c.cut)
	c.keptRef, c.cutRef = reg.Addr+"/kept:v1", reg.Addr+"/cut:v1"
	n, err := bootedNode(t.TempDir(), format, "before")
	if err != nil {
		t.Fatal(err)
	}
	defer n.stop()
	n.pull(t, c.keptRef)
	n.pull(t, c.cutRef)
	if c.keptAll, err = n.everything(c.kept); err == nil {
		c.cutAll, err = n.everything(c.cut)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// everything says what each file of each layer of an image is.
func (n *node) everything(img *registry.Image) (map[string]string, error) {
	_, _, config, err := n.Config(string(img.ID))
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, id := range config.RootFS.DiffIDs {
		if err := n.layerFiles(id, all); err != nil {
			return nil, fmt.Errorf("layer %s: %w", id, err)
		}
	}
	return all, nil
}

func (n *node) layerFiles(id digest.Digest, all map[string]string) error {
	root, release, err := n.store.Lower(id)
	if err != nil {
		return err
	}
	defer release()
	defer func() { _ = root.Close() }() // only a handle
	top := fmt.Sprintf("/proc/self/fd/%d/", root.Fd())
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		what := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Rdev)
		switch {
		case d.Type().IsRegular():
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // only read from
			sum := sha256.New()
			if _, err := io.Copy(sum, f); err != nil {
				return err
			}
			value := make([]byte, 16)
			length, _ := unix.Lgetxattr(path, "user.k", value) // most have none
			what += fmt.Sprintf(" links %d size %d at %d: %x %q", st.Nlink, st.Size, st.Mtim.Sec, sum.Sum(nil), value[:max(length, 0)])
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " to " + target
		}
		all[string(id)+strings.TrimPrefix(path, top)] = what
		return nil
	})
}

// Wherever a pull and a removal are cut, by a kill or by a power loss, each image is perfect or absent, nothing is left that
// belongs to none, and the image can be pulled.
func TestCrashAtEveryChange(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("layers need root")
	}
	for _, format := range []layer.Format{layer.EROFS, layer.Overlay} {
		for _, first := range []bool{false, true} {
			name := string(format)
			if first {
				name += " of an empty node"
			}
			t.Run(name, func(t *testing.T) {
				images := crashImages(t, format)
				began := time.Now()
				steps := images.record(t, filepath.Join(disk(t, "64M"), "node"), first, nil)
				states := crash.States(steps)
				t.Logf("%d changes and %d states in %v", len(steps), len(states), time.Since(began))
				began = time.Now()
				scratch := disk(t, "64M")
				for _, s := range states {
					if first && s.PowerLoss && s.Kind != "ordered" && s.Kind != "names" { // the rest of them is told by the others
						continue
					}
					if err := images.recover(t, scratch, s, !first); err != nil {
						t.Errorf("%v: %v", &s, err)
					}
				}
				t.Logf("recovered in %v", time.Since(began))
			})
		}
	}
}

// record watches the program on a node that has the kept image, or is empty.
func (c *crashedImages) record(t *testing.T, dir string, first bool, each func(int, *crash.Step) error) []crash.Step {
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := bootedNode(dir, c.format, "before")
	if err != nil {
		t.Fatal(err)
	}
	if !first {
		n.pull(t, c.keptRef)
	}
	if err := errors.Join(n.store.Sync(t.Context()), n.Close(), n.store.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", crashChild, dir, c.format, c.cutRef))
	cmd.Stderr = os.Stderr
	steps, err := crash.Record(dir, cmd, each)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

// recover starts a node on what a crash left, and looks at it.
func (c *crashedImages) recover(t *testing.T, scratch string, s crash.State, withKept bool) (err error) {
	dir, err := os.MkdirTemp(scratch, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := s.Write(dir); err != nil {
		return err
	}
	return c.restart(t, dir, s, withKept)
}

// restart starts a node on dir, and looks at it.
func (c *crashedImages) restart(t *testing.T, dir string, s crash.State, withKept bool) error {
	boot := "before"
	if s.PowerLoss {
		boot = "after"
	}
	n, err := bootedNode(dir, c.format, boot)
	if err != nil {
		return err
	}
	err = c.inspect(t, n, s, withKept)
	if err = errors.Join(err, n.Close(), n.store.Close()); err != nil {
		return err
	}
	return n.accounted(t)
}

func (c *crashedImages) inspect(t *testing.T, n *node, s crash.State, withKept bool) error {
	whole := func(img *registry.Image, want map[string]string) error {
		got, err := n.everything(img)
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("image %s: %v %s", img.ID, err, diff)
		}
		return err
	}
	if withKept {
		if err := whole(c.kept, c.keptAll); err != nil {
			return err
		}
	}
	_, err := n.Find(c.cutRef)
	there := err == nil
	promised := s.Step.Has(markDurable) || s.Step.Has(markPulled) && !s.PowerLoss
	switch {
	case promised && !s.Step.Has(markRemoving) && !there:
		return errors.New("the image that was pulled is gone")
	case there:
		if err := whole(c.cut, c.cutAll); err != nil {
			return err
		}
	}
	if _, err := n.Pull(t.Context(), PullRequest{Ref: c.cutRef}); err != nil {
		return fmt.Errorf("pull again: %w", err)
	}
	return whole(c.cut, c.cutAll)
}

// accounted says whether all that lies on the disk belongs to an image. The node is stopped.
func (n *node) accounted(t *testing.T) error {
	known := map[string]bool{"images/images.db": true, "images/images.db.lock": true, "images/images.db.reserve": true}
	for _, l := range n.store.List() {
		known["store/layers/"+strings.Replace(string(l.DiffID), ":", "-", 1)] = true
	}
	var stray []string
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, n.dir+"/")
		switch {
		case err != nil || path == n.dir:
			return err
		case known[name] && d.IsDir():
			return fs.SkipDir
		case !known[name] && (!d.IsDir() || strings.Count(name, "/") > 1):
			stray = append(stray, name)
		}
		return nil
	})
	if len(stray) > 0 {
		return errors.Join(err, fmt.Errorf("nobody knows %q", stray))
	}
	return err
}

// The same with a disk whose power fails: what the kernel has not written to it is lost, and the journal is replayed. The
// disk of ext4 is a file, copied at the changes while the program stands still.
func TestPowerLossOfExt4(t *testing.T) {
	for _, format := range []layer.Format{layer.EROFS, layer.Overlay} {
		t.Run(string(format), func(t *testing.T) {
			images := crashImages(t, format)
			dir := memory(t)
			image, cut := filepath.Join(dir, "image"), filepath.Join(dir, "cut")
			command(t, "truncate", "-s", "24M", image)
			command(t, "mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", image)
			checked := 0
			images.record(t, filepath.Join(mounted(t, image), "node"), false, func(at int, s *crash.Step) error {
				if at%2 == 0 && !strings.Contains(s.Op, "sync") {
					return nil // half of the changes are enough, and all that are to be durable
				}
				if err := copyDisk(image, cut); err != nil {
					return err
				}
				checked++
				t.Run(fmt.Sprint(at), func(t *testing.T) {
					state := crash.State{Step: s, At: at, Kind: "power cut", PowerLoss: true}
					if err := images.restart(t, filepath.Join(mounted(t, cut), "node"), state, true); err != nil {
						t.Errorf("%v: %v", &state, err)
					}
				})
				return nil
			})
			t.Logf("%d cuts", checked)
		})
	}
}

// copyDisk copies a disk that is not being written to.
func copyDisk(from, to string) error {
	for {
		one, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		two, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if bytes.Equal(one, two) {
			return os.WriteFile(to, one, 0o600)
		}
	}
}
