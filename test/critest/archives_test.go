package critest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// images runs `criserver images` beside the daemon and wants it to succeed.
func (d *daemon) imagesCommand(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	out, code := d.tryImages(t, stdin, args...)
	if code != 0 {
		t.Fatalf("criserver images %q: exit code %d: %s", args, code, out)
	}
	return out
}

func (d *daemon) tryImages(t *testing.T, stdin []byte, args ...string) (out string, code int) {
	t.Helper()
	cmd := d.command(append([]string{"images"}, args...)...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	text, _ := cmd.CombinedOutput() // how it ended is in its state
	return string(text), cmd.ProcessState.ExitCode()
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// An image goes out, leaves the node and comes back without a registry: the same id, names and digests, and containers run from it.
func TestImageExportAndImport(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		dir := t.TempDir()
		ref := pullNew(t, d, "exported", ocispec.ImageConfig{User: "bob"}, registry.Layer{Compression: "gzip", Files: []registry.File{
			file("text", "through the archive", 0o644), hardlink("linked", "text"), file("bytes\xff", "odd", 0o4755), file("bin/.wh.vi", "", 0o644),
		}})
		before := imageStatus(t, d, ref)
		first, second := filepath.Join(dir, "first.tar"), filepath.Join(dir, "second.tar")
		d.imagesCommand(t, nil, "export", "-o", first, ref)
		removeImage(t, d, ref)
		var list []struct{ ID string }
		out := d.imagesCommand(t, nil, "--json", "import", first)
		if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].ID != before.GetId() {
			t.Fatalf("import says %s, %v", out, err)
		}
		after := imageStatus(t, d, ref)
		if after.GetId() != before.GetId() || !slices.Equal(after.GetRepoTags(), before.GetRepoTags()) || !slices.Equal(after.GetRepoDigests(), before.GetRepoDigests()) {
			t.Errorf("before %v, after %v", before, after)
		}
		d.imagesCommand(t, nil, "export", "-o", second, ref)
		if !bytes.Equal(readFile(t, first), readFile(t, second)) {
			t.Error("the second export has other bytes")
		}
		p := runPod(t, d)
		c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
		if got := c.exec(t, "cat /linked /bytes*; stat -c %h /text; id -un; ls /bin/vi 2>/dev/null || echo hidden"); got != "through the archiveodd2\nbob\nhidden\n" {
			t.Errorf("the container sees %q", got)
		}
	})
}

// An artifact goes out and comes back the same, to be a volume again; one of which compressed bytes would be needed says which.
func TestArtifactExportAndImport(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		dir := t.TempDir()
		img := registry.Artifact(t, "application/vnd.critest.model", "", registry.Named("model.bin", strings.Repeat("weights ", 1000)), registry.Named("docs/readme", "read me"),
			registry.Part{MediaType: "application/vnd.critest.data.tar", Data: registry.Tar(t, file("data/set", "from an archive", 0o640))})
		suite.registry.PushImage(t, "exported-artifact", "v1", img)
		ref := suite.registry.Addr + "/exported-artifact:v1"
		pull(t, d, ref)
		t.Cleanup(func() { removeImage(t, d, ref) })
		before := imageStatus(t, d, ref)
		first, second := filepath.Join(dir, "first.tar"), filepath.Join(dir, "second.tar")
		d.imagesCommand(t, nil, "export", "-o", first, ref)
		removeImage(t, d, ref)
		d.imagesCommand(t, nil, "import", first)
		if after := imageStatus(t, d, ref); !proto.Equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
		d.imagesCommand(t, nil, "export", "-o", second, ref)
		if !bytes.Equal(readFile(t, first), readFile(t, second)) {
			t.Error("the second export has other bytes")
		}
		c := runPod(t, d).start(t, "cd /vol; wc -c <model.bin; cat docs/readme data/set", mounts(imageVolume(ref)))
		c.wait(t)
		c.wrote(t, "8000\nread mefrom an archive")

		packed, _ := artifact(t, d, "exported-packed")
		t.Cleanup(func() { removeImage(t, d, packed) })
		if out, code := d.tryImages(t, nil, "export", "-o", filepath.Join(dir, "packed.tar"), packed); code != 1 || !strings.Contains(out, "layer 3 of 3: archive sha256:") || !strings.Contains(out, "was compressed") {
			t.Errorf("export of a compressed part: %d, %s", code, out)
		}
	})
}

// What skopeo makes of an export, and what it writes itself, is the same image; from a pipe, compressed, under another name.
func TestImageArchivesOfSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	d := use(t)
	dir := t.TempDir()
	ref := pullNew(t, d, "skopeo", ocispec.ImageConfig{}, registry.Layer{Compression: "zstd", Files: []registry.File{file("text", "by skopeo", 0o644)}})
	id := imageStatus(t, d, ref).GetId()
	exported := filepath.Join(dir, "export.tar")
	d.imagesCommand(t, nil, "export", "-o", exported, ref)
	removeImage(t, d, ref)
	for i, copies := range [][2]string{
		{"oci-archive:" + exported + ":" + ref, "oci-archive:" + dir + "/oci.tar:example.com/copied:1"},
		{"docker-archive:" + exported + ":" + ref, "docker-archive:" + dir + "/docker.tar:example.com/copied:1"},
		{"docker-archive:" + exported + ":" + ref, "oci:" + dir + "/layout:example.com/copied:1"},
	} {
		if out, err := exec.Command(skopeo, "--insecure-policy", "copy", "-q", copies[0], copies[1]).CombinedOutput(); err != nil {
			t.Fatalf("skopeo copy %s: %v: %s", copies[0], err, out)
		}
		_, path, _ := strings.Cut(strings.TrimSuffix(copies[1], ":example.com/copied:1"), ":")
		var stdin []byte
		args := []string{"import", path}
		if i == 1 { // through a pipe
			stdin, args = registry.Compress(t, "gzip", readFile(t, path)), []string{"import", "-"}
		}
		if out := d.imagesCommand(t, stdin, args...); !strings.Contains(out, id) || !strings.Contains(out, "example.com/copied:1") {
			t.Errorf("import of %s says %s instead of %s", copies[1], out, id)
		}
		removeImage(t, d, "example.com/copied:1")
	}
	d.imagesCommand(t, nil, "import", "--name", "no.such.host/named:2", exported)
	t.Cleanup(func() { removeImage(t, d, "no.such.host/named:2") })
	p := runPod(t, d)
	c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = "no.such.host/named:2" })
	if got := c.exec(t, "cat /text"); got != "by skopeo" {
		t.Errorf("the container sees %q", got)
	}
}

// The other commands, as an operator uses them beside containers that run.
func TestImageCommands(t *testing.T) {
	d := use(t)
	used := pullNew(t, d, "commands/used", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("text", "used", 0o644)}})
	unused := suite.registry.Addr + "/commands/unused:latest"
	push(t, "commands/unused", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("text", strings.Repeat("unused", 100000), 0o644)}})
	if out := d.imagesCommand(t, nil, "pull", unused); !strings.Contains(out, imageStatus(t, d, unused).GetId()) {
		t.Errorf("pull says %s", out)
	}
	t.Cleanup(func() { removeImage(t, d, unused) })
	runPod(t, d).start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = used })
	for _, command := range []string{"list", "usage", "verify"} {
		if out := d.imagesCommand(t, nil, command); !strings.Contains(out, used) || !strings.Contains(out, unused) {
			t.Errorf("%s says %s", command, out)
		}
	}
	if out := d.imagesCommand(t, nil, "prune", "--older-than", "24h"); !strings.Contains(out, "freed 0 B") {
		t.Errorf("prune of old images says %s", out)
	}
	var pruned struct {
		Images     []struct{ ID string }
		FreedBytes int64
	}
	out := d.imagesCommand(t, nil, "--json", "prune", "--dry-run")
	if err := json.Unmarshal([]byte(out), &pruned); err != nil || !strings.Contains(out, imageStatus(t, d, unused).GetId()) || strings.Contains(out, imageStatus(t, d, used).GetId()) || pruned.FreedBytes < 600000 {
		t.Errorf("dry run says %s, %v", out, err)
	}
	if out := d.imagesCommand(t, nil, "remove", unused); !strings.Contains(out, "removed") || strings.Contains(out, "freed 0 B") {
		t.Errorf("remove says %s", out)
	}
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"remove", unused}, 1, "image not found: " + unused},
		{[]string{"export", "-o", filepath.Join(t.TempDir(), "x"), unused}, 1, "image not found"},
		{[]string{"pull", "Bad Reference"}, 1, "invalid image reference"},
		{[]string{"import", "/dev/null"}, 1, "neither index.json"},
		{[]string{"--offline", "list"}, 1, "is in use by the criserver with pid"},
		{[]string{"--state", t.TempDir(), "list"}, 3, "does not run"},
	} {
		if out, code := d.tryImages(t, nil, row.args...); code != row.code || !strings.Contains(out, row.want) {
			t.Errorf("%q: exit code %d, %s", row.args, code, out)
		}
	}
}

// A node without a registry starts with archives in its preload directory: images are there after a restart, a broken
// archive is named in the log, and containers run.
func TestImagePreload(t *testing.T) {
	d := use(t)
	dir := t.TempDir()
	ref := pullNew(t, d, "preloaded", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("text", "preloaded", 0o644)}})
	id := imageStatus(t, d, ref).GetId()
	d.imagesCommand(t, nil, "export", "-o", filepath.Join(dir, "good.tar.zst"), ref)
	removeImage(t, d, ref)
	write(t, filepath.Join(dir, "broken.tar"), "no archive")
	config := string(readFile(t, d.config()))
	changed := strings.Replace(config, "[images]\n", fmt.Sprintf("[images]\npreload = %q\n", dir), 1)
	again := func(text string) {
		t.Helper()
		write(t, d.config(), text)
		if err := d.kill(); err != nil { // stopping without pods would take the network away
			t.Fatal(err)
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		again(config)
		if err := os.Remove(filepath.Join(d.root(), "images", "preloaded")); err != nil {
			t.Error(err)
		}
	})
	again(changed)
	if !within(settleBound, func() bool { return imageStatus(t, d, ref).GetId() == id }) {
		t.Fatalf("the image is not there: %s", d.lastLog())
	}
	if !strings.Contains(d.lastLog(), filepath.Join(dir, "broken.tar")) {
		t.Errorf("the log does not name the broken archive: %s", d.lastLog())
	}
	c := runPod(t, d).start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
	if got := c.exec(t, "cat /text"); got != "preloaded" {
		t.Errorf("the container sees %q", got)
	}
}
