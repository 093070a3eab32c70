package critest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/registry"
)

const (
	// upstreamEnv names a critest of Kubernetes' cri-tools.
	upstreamEnv = "CRITEST_UPSTREAM"
	// upstreamArgsEnv has more arguments for it, such as -ginkgo.focus=Streaming.
	upstreamArgsEnv = "CRITEST_UPSTREAM_ARGS"
	// upstreamPageEnv names the page whose last section becomes the table of results.
	upstreamPageEnv = "CRITEST_UPSTREAM_PAGE"
)

// upstreamBound is how long critest may take. It sleeps and waits much.
var upstreamBound = patience * 30 * time.Minute

// upstreamRoot has what critest runs in containers. This busybox, unlike the static one, has a shell that runs what is in the
// file system and not its own ls.
var upstreamRoot = debianRoot{packages: []string{"nginx-light", "procps", "iproute2", "net-tools", "bridge-utils", "busybox"}, cmd: []string{"sh"}}

// busyboxWords are the programs whose messages critest compares with busybox's, and top, which needs no terminal there.
var busyboxWords = []string{"sh", "ls", "touch", "grep", "ping", "top"}

// makeUpstreamRoot makes the image where the machine's network is, if critest is to run.
func makeUpstreamRoot() error {
	if os.Getenv(upstreamEnv) == "" {
		return nil
	}
	return upstreamRoot.make()
}

// The hosts of the images that critest pulls, all of which are the suite's registry.
var upstreamHosts = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"}

// Kubernetes' own conformance tests of a container runtime: critest, from outside the project.
func TestUpstream(t *testing.T) {
	critest := os.Getenv(upstreamEnv)
	if critest == "" {
		t.Skip("no critest: make critest CRITEST=/path/to/critest")
	}
	d := upstreamDaemon(t)
	pushUpstreamImages(t, critest)
	reports := t.TempDir()
	args := append([]string{"-runtime-endpoint", d.socket(), "-nri-socket", d.nriSocket(), "-ginkgo.no-color", "-ginkgo.junit-report", filepath.Join(reports, "report.xml")},
		strings.Fields(os.Getenv(upstreamArgsEnv))...)
	specs := runUpstream(t, critest, reports, args)
	websocket := runUpstream(t, critest, reports, append(args, "-websocket-exec", "-websocket-attach", "-websocket-portforward", "-ginkgo.focus", "Streaming"))
	for _, s := range websocket {
		if s.Status != "skipped" {
			s.Name += " (WebSocket)"
			specs = append(specs, s)
		}
	}
	for _, s := range specs {
		if s.Status != "passed" && s.Status != "skipped" {
			t.Errorf("%s: %s\n%s", s.Name, s.Status, s.Failure.Message)
		}
	}
	table := upstreamTable(t, critest, specs)
	t.Log(table)
	if page := os.Getenv(upstreamPageEnv); page != "" {
		writeUpstream(t, page, table)
	}
}

// upstreamDaemon starts a criserver that takes the suite's registry for those of critest's images.
func upstreamDaemon(t *testing.T) *daemon {
	use(t)
	d, err := makeDaemon("upstream", storeAuto)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range upstreamHosts {
		dir := filepath.Join(d.certs(), host)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		toml := fmt.Sprintf("server = %q\n[host.%[1]q]\ncapabilities = [\"pull\", \"resolve\"]\n", suite.registry.URL())
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// pushUpstreamImages pushes what critest pulls, made of Debian's busybox and nginx and of a program for set-user-ID.
func pushUpstreamImages(t *testing.T, critest string) {
	shell := ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}
	http := func(port string) ocispec.ImageConfig {
		return ocispec.ImageConfig{Env: shell.Env, Cmd: []string{"sh", "-c", "echo httpd; exec httpd -f -p " + port + " -h /srv"}}
	}
	page := registry.Layer{Files: []registry.File{dir("srv/", 0o755), file("srv/index.html", "It works\n", 0o644)}}
	users := registry.Layer{Files: []registry.File{
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\ndefault-user:x:1000:1000::/:/bin/sh\n", 0o644),
		file("etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n", 0o644),
	}}
	debian := upstreamRoot.tar(t)
	root := []registry.Layer{{Tar: debian}, busyboxOver(t, debian)}
	for _, image := range []struct {
		repo, tag string
		config    ocispec.ImageConfig
		layers    []registry.Layer
	}{
		{"e2e-test-images/busybox", "1.29-2", shell, root},
		{"e2e-test-images/nginx", "1.14-2", ocispec.ImageConfig{Env: shell.Env, Cmd: []string{"nginx", "-g", "daemon off;"}}, root},
		{"e2e-test-images/httpd", "2.4.39-4", http("80"), []registry.Layer{page}},
		{"e2e-test-images/nonewprivs", "1.3", ocispec.ImageConfig{Entrypoint: []string{"/nnp"}}, []registry.Layer{effectiveUser(t)}},
		{"pause", "3.9", shell, []registry.Layer{different("pause")}},
		{"k8s-staging-cri-tools/hostnet-nginx-amd64", "latest", http("12003"), []registry.Layer{page}},
		{"k8s-staging-cri-tools/hostnet-nginx-arm64", "latest", http("12003"), []registry.Layer{page}},
		{"k8s-staging-cri-tools/test-image-latest", "latest", shell, []registry.Layer{different("latest")}},
		{"k8s-staging-cri-tools/test-image-tag", "test", shell, []registry.Layer{different("tag test")}},
		{"k8s-staging-cri-tools/test-image-tag", "all", shell, []registry.Layer{different("tag all")}},
		{"k8s-staging-cri-tools/test-image-1", "latest", shell, []registry.Layer{different("1")}},
		{"k8s-staging-cri-tools/test-image-2", "latest", shell, []registry.Layer{different("2")}},
		{"k8s-staging-cri-tools/test-image-3", "latest", shell, []registry.Layer{different("3")}},
		{"k8s-staging-cri-tools/test-image-tags", "1", shell, []registry.Layer{different("tags")}},
		{"k8s-staging-cri-tools/test-image-tags", "2", shell, []registry.Layer{different("tags")}},
		{"k8s-staging-cri-tools/test-image-tags", "3", shell, []registry.Layer{different("tags")}},
		{"k8s-staging-cri-tools/test-image-user-uid", "latest", asUser("1002"), []registry.Layer{users}},
		{"k8s-staging-cri-tools/test-image-user-username", "latest", asUser("www-data"), []registry.Layer{users}},
		{"k8s-staging-cri-tools/test-image-user-uid-group", "latest", asUser("1003:users"), []registry.Layer{users}},
		{"k8s-staging-cri-tools/test-image-user-username-group", "latest", asUser("www-data:100"), []registry.Layer{users}},
		{"k8s-staging-cri-tools/test-image-predefined-group", "latest", asUser("1000"), append(root, users)},
	} {
		layers := image.layers
		if len(layers) == 1 {
			layers = append([]registry.Layer{*busyboxLayer}, layers...)
		}
		suite.registry.PushImage(t, image.repo, image.tag, registry.Build(t, registry.Spec{Config: ocispec.Image{Config: image.config}, Layers: layers}))
	}
	pushByDigest(t, critest)
}

// pushByDigest pushes the image that critest knows by its digest only, which must be ours.
func pushByDigest(t *testing.T, critest string) {
	img := registry.Build(t, registry.Spec{Config: ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"/hello"}}},
		Layers: []registry.Layer{{Files: []registry.File{file("hello", "an image that is pulled by its digest\n", 0o644)}}}})
	suite.registry.PushImage(t, "k8s-staging-cri-tools/test-image-digest", "", img)
	binary, err := os.ReadFile(critest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(binary, []byte("/test-image-digest@"+img.Desc.Digest.String())) {
		t.Fatalf("%s wants another image by digest: set testLinuxImageWithDigest in its pkg/validate/consts.go to test-image-digest@%s, and build it again",
			critest, img.Desc.Digest)
	}
}

// busyboxOver is a layer over root with busyboxWords. They are hard links: critest masks one of them.
func busyboxOver(t *testing.T, root []byte) registry.Layer {
	archive := tar.NewReader(bytes.NewReader(root))
	for {
		h, err := archive.Next()
		if err != nil {
			t.Fatalf("look for busybox in the root: %v", err)
		}
		if path.Base(h.Name) != "busybox" || h.Typeflag != tar.TypeReg || path.Base(path.Dir(h.Name)) != "bin" {
			continue
		}
		body, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files := []registry.File{file("usr/bin/busybox", string(body), 0o755)}
		for _, name := range busyboxWords {
			files = append(files, hardlink("usr/bin/"+name, "usr/bin/busybox"))
		}
		return registry.Layer{Files: files}
	}
}

func asUser(user string) ocispec.ImageConfig {
	return ocispec.ImageConfig{User: user, Cmd: []string{"sh"}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}
}

// different is a layer that makes an image another one.
func different(text string) registry.Layer {
	return registry.Layer{Files: []registry.File{file("different", text, 0o644)}}
}

// effectiveUser is a layer with a set-user-ID program of root that says whom it runs as.
func effectiveUser(t *testing.T) registry.Layer {
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "nnp.c"), filepath.Join(dir, "nnp")
	text := "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"Effective uid: %d\\n\", (int)geteuid()); return 0; }\n"
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("musl-gcc", "-static", "-O", "-o", binary, source).CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	return registry.Layer{Files: []registry.File{{Header: tar.Header{Name: "nnp", Mode: 0o4755}, Body: string(program)}}}
}

// upstreamSpec is one spec in critest's report.
type upstreamSpec struct {
	Name    string `xml:"name,attr"`
	Status  string `xml:"status,attr"`
	Failure struct {
		Message string `xml:",chardata"`
	} `xml:"failure"`
	Skipped struct {
		Message string `xml:"message,attr"`
	} `xml:"skipped"`
}

// runUpstream runs critest and returns its specs without those that were not selected.
func runUpstream(t *testing.T, critest, reports string, args []string) []upstreamSpec {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), upstreamBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, critest, args...)
	cmd.Dir = reports
	out, err := cmd.CombinedOutput()
	text, readErr := os.ReadFile(filepath.Join(reports, "report.xml"))
	if readErr != nil {
		t.Fatalf("critest left no report: %v\n%s", err, out)
	}
	if log := os.Getenv("CRITEST_UPSTREAM_LOG"); log != "" {
		if err := os.WriteFile(log, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var report struct {
		Suites []struct {
			Specs []upstreamSpec `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	var specs []upstreamSpec
	for _, s := range report.Suites {
		for _, spec := range s.Specs {
			if name, is := strings.CutPrefix(spec.Name, "[It] "); is {
				spec.Name = strings.TrimPrefix(name, "[k8s.io] ")
				specs = append(specs, spec)
			}
		}
	}
	slices.SortStableFunc(specs, func(a, b upstreamSpec) int { return strings.Compare(a.Name, b.Name) })
	return specs
}

// upstreamTable is the section of results for people.
func upstreamTable(t *testing.T, critest string, specs []upstreamSpec) string {
	version, err := exec.Command(critest, "-version").CombinedOutput()
	if err != nil {
		t.Fatalf("critest -version: %v\n%s", err, version)
	}
	count := map[string]int{}
	var rows strings.Builder
	for _, s := range specs {
		count[s.Status]++
		result := s.Status
		if s.Skipped.Message != "" {
			result += ": " + strings.TrimPrefix(s.Skipped.Message, "skipped - ")
		}
		fmt.Fprintf(&rows, "| %s | %s |\n", strings.ReplaceAll(s.Name, "|", "\\|"), result)
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("`make critest`, Linux %s, driver %s, %s: %d passed, %d failed, %d skipped.\n\n| spec | result |\n|---|---|\n%s",
		strings.TrimSpace(string(kernel)), suite.driver, regexp.MustCompile(`critest version: \S+`).FindString(string(version)),
		count["passed"], count["failed"]+count["panicked"]+count["timedout"], count["skipped"], rows.String())
}

// writeUpstream replaces the last section of the page.
func writeUpstream(t *testing.T, page, table string) {
	const heading = "## Upstream critest\n\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(text, []byte(heading))
	if at < 0 {
		t.Fatalf("%s has no %q", page, heading)
	}
	text = append(text[:at:at], heading+table...)
	if err := os.WriteFile(page, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
