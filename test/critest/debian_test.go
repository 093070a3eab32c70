package critest

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// debianBound is how long making the Debian root may take.
const debianBound = 5 * time.Minute

// debianRoot is an image of a Debian release: the smallest set of packages, others, and what a container of it runs.
type debianRoot struct{ packages, cmd []string }

var plainDebian = debianRoot{cmd: []string{"bash"}}

// command makes the root file system as an archive.
func (r debianRoot) command() []string {
	command := []string{"mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=path-exclude=/usr/share/doc/*"}
	for _, p := range r.packages {
		command = append(command, "--include="+p)
	}
	return append(command, "bookworm", "-", "http://deb.debian.org/debian")
}

// debianEnv names an OCI layout to be used instead of the one that is made once.
const debianEnv = "CRITEST_DEBIAN"

// layout is the directory of the image, an OCI layout that outlives the suite. Its name is a digest of how it is made.
func (r debianRoot) layout() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(strings.Join(append(r.command(), r.cmd...), "\x00")))
	return filepath.Join(cache, "criserver-test", fmt.Sprintf("debian-%x", key[:8])), nil
}

// debianLayout is the layout of plainDebian, or the one that was brought along.
func debianLayout() (string, error) {
	if dir := os.Getenv(debianEnv); dir != "" {
		return dir, nil
	}
	return plainDebian.layout()
}

// noDebian is the file that says why there is no Debian image.
func noDebian() string { return filepath.Join(suite.dir, "no-debian") }

// makeDebian makes the image unless it is there or no test wants it. That it cannot be made is no error.
func makeDebian() error {
	wanted, err := regexp.Compile(flag.Lookup("test.run").Value.String())
	if err != nil || !wanted.MatchString("TestDebian") {
		return err
	}
	if os.Getenv(debianEnv) != "" {
		return nil
	}
	if err := plainDebian.make(); err != nil {
		return os.WriteFile(noDebian(), []byte(err.Error()), 0o644)
	}
	return nil
}

// make makes the layout unless it is there.
func (r debianRoot) make() error {
	layout, err := r.layout()
	if err != nil {
		return err
	}
	if _, err = os.Stat(layout); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), debianBound)
	defer cancel()
	command := r.command()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var problems strings.Builder
	cmd.Stderr = &problems
	root, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %.500s", command[0], err, problems.String())
	}
	tb := &suiteTB{dir: suite.dir}
	return tb.catch(func() {
		writeLayout(tb, layout, registry.Build(tb, registry.Spec{
			Config: ocispec.Image{Config: ocispec.ImageConfig{Cmd: r.cmd, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}},
			Layers: []registry.Layer{{Tar: root, Compression: "gzip"}},
		}))
	})
}

// tar returns the root file system of the layout.
func (r debianRoot) tar(t testing.TB) []byte {
	t.Helper()
	layout, err := r.layout()
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	decode(t, filepath.Join(layout, ocispec.ImageIndexFile), &index)
	blobs := filepath.Join(layout, "blobs", "sha256")
	decode(t, filepath.Join(blobs, index.Manifests[0].Digest.Encoded()), &manifest)
	f, err := os.Open(filepath.Join(blobs, manifest.Layers[0].Digest.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	root, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func decode(t testing.TB, path string, value any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, value); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// writeLayout writes an image as an OCI layout, which appears as a whole.
func writeLayout(tb testing.TB, layout string, img *registry.Image) {
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{img.Desc}})
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(layout), 0o755); err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(layout), "new-")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // was renamed
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		tb.Fatal(err)
	}
	files := map[string][]byte{
		filepath.Join(dir, ocispec.ImageLayoutFile):     []byte(`{"imageLayoutVersion":"1.0.0"}`),
		filepath.Join(dir, ocispec.ImageIndexFile):      index,
		filepath.Join(blobs, img.Desc.Digest.Encoded()): img.Manifest,
	}
	for digest, blob := range img.Blobs {
		files[filepath.Join(blobs, digest.Encoded())] = blob
	}
	for path, data := range files {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.Rename(dir, layout); err != nil {
		tb.Fatal(err)
	}
}

// copyLayout pushes an OCI layout.
func copyLayout(t *testing.T, layout, ref string) {
	t.Helper()
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("skopeo is not installed")
	}
	out, err := exec.CommandContext(bounded(t), "skopeo", "--insecure-policy", "--tmpdir", t.TempDir(), "copy", "--quiet", "--dest-tls-verify=false", "oci:"+layout, "docker://"+ref).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
}

// A real distribution's root, pushed by skopeo as people do.
func TestDebian(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		if reason, err := os.ReadFile(noDebian()); err == nil {
			t.Skipf("no Debian image: %s", reason)
		}
		layout, err := debianLayout()
		if err != nil {
			t.Fatal(err)
		}
		ref := suite.registry.Addr + "/debian:12"
		copyLayout(t, layout, ref)
		pull(t, d, ref)
		p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) { c.Hostname = "debian" })
		c := p.start(t, "trap 'exit 0' TERM; echo started; sleep 1000 & wait", func(c *cri.ContainerConfig) {
			c.Image.Image = ref
			c.Command = []string{"bash", "-c"}
			c.Args = []string{"trap 'exit 0' TERM; echo started; sleep 1000 & wait"}
			c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		})
		c.waitOutput(t, "started")
		for _, row := range []struct{ name, script, want string }{
			{"release", "cut -d. -f1 /etc/debian_version", "12\n"},
			{"package manager", "dpkg -s base-files | grep ^Status; dpkg --audit", "Status: install ok installed\n"},
			{"every file is what its package says", "cd / && for f in /var/lib/dpkg/info/{libc6*,bash,coreutils,dpkg,apt}.md5sums; do md5sum --quiet -c $f 2>&1 | grep -v 'usr/share/doc\\|WARNING'; done; true", ""},
			{"set-uid program", "stat -c '%U %a' /usr/bin/passwd", "root 4755\n"},
			{"users", "getent passwd www-data | cut -d: -f3; su -s /bin/sh www-data -c 'id -un'", "33\nwww-data\n"},
			{"many small files", "find /usr -xdev -type f | wc -l | awk '{print ($1 > 1000)}'", "1\n"},
			{"hard links", "stat -c %h /usr/bin/perl", "2\n"},
			{"host name", "hostname; getent hosts debian >/dev/null; id -un", "debian\nroot\n"},
			{"writes", "cp -a /usr/lib/apt /root/ && diff -r /usr/lib/apt /root/apt && rm -r /root/apt && echo same", "same\n"},
		} {
			t.Run(row.name, func(t *testing.T) {
				r, err := c.tryExec(t, execBound, "bash", "-c", row.script)
				if err != nil || r.GetExitCode() != 0 || string(r.GetStdout()) != row.want {
					t.Errorf("%q instead of %q; stderr %q, exit code %d: %v", r.GetStdout(), row.want, r.GetStderr(), r.GetExitCode(), err)
				}
			})
		}
		c.stop(t, 10)
		if s := c.status(t); s.GetExitCode() != 0 {
			t.Errorf("exit code %d", s.GetExitCode())
		}
	})
}
