package critest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// Every fault of a request is InvalidArgument and named by its field.
func TestBadPods(t *testing.T) {
	d := use(t)
	setTo := func(name, value string) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{name: value} }
	}
	for _, row := range []struct {
		name   string
		change func(*cri.PodSandboxConfig)
		field  string
	}{
		{"no metadata", func(c *cri.PodSandboxConfig) { c.Metadata = nil }, "config.metadata"},
		{"no name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }, "config.metadata.name"},
		{"no namespace", func(c *cri.PodSandboxConfig) { c.Metadata.Namespace = "" }, "config.metadata.namespace"},
		{"no uid", func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" }, "config.metadata.uid"},
		{"line end in a name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = "a\nb" }, "config.metadata.name"},
		{"long host name", func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, "config.hostname"},
		{"relative log directory", func(c *cri.PodSandboxConfig) { c.LogDirectory = "logs" }, "config.log_directory"},
		{"name server that is none", func(c *cri.PodSandboxConfig) { c.DnsConfig = &cri.DNSConfig{Servers: []string{"dns.example"}} }, "config.dns_config.servers[0]"},
		{"search with a line end", func(c *cri.PodSandboxConfig) {
			c.DnsConfig = &cri.DNSConfig{Searches: []string{"a\nnameserver 1.1.1.1"}}
		}, "config.dns_config.searches[0]"},
		{"port", func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		}, "config.port_mappings[0].host_port"},
		{"cgroup parent", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" }, "config.linux.cgroup_parent"},
		{"sysctl of the host", setTo("vm.swappiness", sysctl(t, "vm/swappiness")), "config.linux.sysctls"},
		{"network sysctl on the host network", setTo("net.ipv4.ip_forward", sysctl(t, "net/ipv4/ip_forward")), "config.linux.sysctls"},
		{"sysctl out of bounds", setTo("net/../kernel/panic", sysctl(t, "kernel/panic")), "config.linux.sysctls"},
		{"pid TARGET", func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_TARGET
		}, "namespace_options.pid"},
		{"network CONTAINER", func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_CONTAINER
		}, "namespace_options.network"},
		{"two user mappings", func(c *cri.PodSandboxConfig) {
			m := []*cri.IDMapping{{Length: 1}, {ContainerId: 1, HostId: 1, Length: 1}}
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: m, Gids: m}
		}, "userns_options.uids"},
		{"mapping without root", func(c *cri.PodSandboxConfig) {
			m := []*cri.IDMapping{{ContainerId: 1, HostId: 1, Length: 1}}
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: m, Gids: m}
		}, "userns_options.uids[0].container_id"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t, row.change)})
			refused(t, err, codes.InvalidArgument, row.field)
		})
	}
	_, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{})
	refused(t, err, codes.InvalidArgument, "config")
	_, err = d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t), RuntimeHandler: "nosuch"})
	refused(t, err, codes.InvalidArgument, "runtime_handler", "nosuch")
}

func TestBadContainers(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	for _, row := range []struct {
		name   string
		change func(*cri.ContainerConfig)
		code   codes.Code
		text   string
	}{
		{"no metadata", func(c *cri.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument, "config.metadata"},
		{"no name", func(c *cri.ContainerConfig) { c.Metadata.Name = "" }, codes.InvalidArgument, "config.metadata.name"},
		{"no image", func(c *cri.ContainerConfig) { c.Image = nil }, codes.InvalidArgument, "config.image"},
		{"absent image", func(c *cri.ContainerConfig) { c.Image.Image = "no.such/image:tag" }, codes.NotFound, "no.such/image:tag"},
		{"image reference", func(c *cri.ContainerConfig) { c.Image.Image = "UPPER CASE" }, codes.InvalidArgument, "UPPER CASE"},
		{"NUL in an argument", func(c *cri.ContainerConfig) { c.Command = []string{"a\x00b"} }, codes.InvalidArgument, "config.command[0]"},
		{"variable without name", func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Value: []byte("x")}} }, codes.InvalidArgument, "config.envs[0].key"},
		{"relative directory", func(c *cri.ContainerConfig) { c.WorkingDir = "a" }, codes.InvalidArgument, "config.working_dir"},
		{"log outside", func(c *cri.ContainerConfig) { c.LogPath = "../x.log" }, codes.InvalidArgument, "config.log_path"},
		{"stop signal", func(c *cri.ContainerConfig) { c.StopSignal = 999 }, codes.InvalidArgument, "config.stop_signal"},
		{"negative shares", func(c *cri.ContainerConfig) { c.Linux.Resources.CpuShares = -1 }, codes.InvalidArgument, "resources.cpu_shares"},
		{"swap below memory", func(c *cri.ContainerConfig) {
			c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 100<<20, 50<<20
		}, codes.InvalidArgument, "memory_swap_limit_in_bytes"},
		{"huge pages of another machine", func(c *cri.ContainerConfig) {
			c.Linux.Resources.HugepageLimits = []*cri.HugepageLimit{{PageSize: "32MB", Limit: 64 << 20}}
		}, codes.InvalidArgument, "32MB"},
		{"OOM score", func(c *cri.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 1001 }, codes.InvalidArgument, "oom_score_adj"},
		{"cpuset", func(c *cri.ContainerConfig) { c.Linux.Resources.CpusetCpus = "zero" }, codes.InvalidArgument, "cpuset_cpus"},
		{"cpuset of another machine", func(c *cri.ContainerConfig) { c.Linux.Resources.CpusetCpus = "500" }, codes.InvalidArgument, "cpuset.cpus 500"},
		{"capability", func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"no way"}}
		}, codes.InvalidArgument, "add_capabilities[0]"},
		{"CDI device", func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "a.b/c"}} }, codes.InvalidArgument, "config.CDI_devices[0].name"},
		{"target that is not there", func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_TARGET, TargetId: strings.Repeat("3", 64)}
		}, codes.InvalidArgument, "namespace_options.target_id: container " + strings.Repeat("3", 64)},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			c, err := p.tryCreate(t, containerConfig(idle, row.change))
			if err == nil {
				c.remove(t)
			}
			refused(t, err, row.code, row.text)
		})
	}
	_, err := d.runtime.CreateContainer(bounded(t), &cri.CreateContainerRequest{PodSandboxId: strings.Repeat("4", 64), Config: containerConfig(idle), SandboxConfig: p.config})
	refused(t, err, codes.NotFound, strings.Repeat("4", 64))
	_, err = d.runtime.CreateContainer(bounded(t), &cri.CreateContainerRequest{PodSandboxId: p.id})
	refused(t, err, codes.InvalidArgument, "config: must not be empty")
	_, err = d.runtime.StartContainer(bounded(t), &cri.StartContainerRequest{ContainerId: strings.Repeat("5", 64)})
	refused(t, err, codes.NotFound, strings.Repeat("5", 64))
	for _, call := range []func() error{
		func() error { _, err := d.runtime.StartContainer(bounded(t), &cri.StartContainerRequest{}); return err },
		func() error { _, err := d.runtime.StopContainer(bounded(t), &cri.StopContainerRequest{}); return err },
		func() error {
			_, err := d.runtime.RemoveContainer(bounded(t), &cri.RemoveContainerRequest{})
			return err
		},
		func() error {
			_, err := d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{})
			return err
		},
	} {
		refused(t, call(), codes.InvalidArgument, "container_id")
	}
}

// A container that cannot be started is EXITED with 128 and says why, and can be removed.
func TestBadStarts(t *testing.T) {
	d := use(t)
	ref := pullNew(t, d, "badstarts", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{
		file("bin/script-without-interpreter", "#!/no/such/interpreter\n", 0o755), file("bin/garbage", "\x7fELFgarbage", 0o755), file("bin/plain", "x", 0o644),
	}})
	p := runPod(t, d)
	for _, row := range []struct{ name, command, text string }{
		{"missing program", "/no/such/program", "/no/such/program: no such file or directory"},
		{"missing in PATH", "nosuchprogram", "find nosuchprogram in PATH /"},
		{"not executable", "/bin/plain", "/bin/plain: permission denied"},
		{"directory", "/bin", "/bin: permission denied"},
		{"missing interpreter", "/bin/script-without-interpreter", "no such file or directory"},
		{"not a program", "/bin/garbage", "exec format error"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.create(t, "", func(c *cri.ContainerConfig) { c.Image.Image, c.Command = ref, []string{row.command} })
			defer c.remove(t)
			refused(t, c.tryStart(t), codes.Unknown, row.text)
			s := c.status(t)
			if s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 128 || s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), row.text) {
				t.Errorf("%s, exit code %d, reason %q, message %q", s.GetState(), s.GetExitCode(), s.GetReason(), s.GetMessage())
			}
		})
	}
}

// Layers that must not be unpacked, or not as they would like.
func TestBadLayers(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		for _, row := range []struct {
			name  string
			layer registry.Layer
			text  string
		}{
			{"hard link to nothing", registry.Layer{Files: []registry.File{hardlink("link", "no/such/file")}}, "no/such/file"},
			{"hard link out of the root", registry.Layer{Files: []registry.File{hardlink("link", "../../../../etc/passwd")}}, "etc/passwd"},
			{"path traversal", registry.Layer{Files: []registry.File{file("../../escape", "x", 0o644)}}, "path leads out of the layer"},
			{"file as a directory", registry.Layer{Files: []registry.File{file("f", "x", 0o644), file("f/g", "x", 0o644)}}, "f/g"},
			{"too deep", registry.Layer{Files: []registry.File{file(strings.Repeat("d/", 5000)+"f", "x", 0o644)}}, "stage layer"},
			{"too large", registry.Layer{Tar: hugeHeader(t)}, "more than the limit"},
			{"no tar", registry.Layer{Tar: []byte(strings.Repeat("this is no tar ", 100))}, "tar"},
			{"cut off", registry.Layer{Tar: registry.Tar(t, file("f", strings.Repeat("x", 5000), 0o644))[:2000]}, "unexpected EOF"},
		} {
			t.Run(row.name, func(t *testing.T) {
				check(t, d)
				suite.registry.PushImage(t, "badlayer", "latest", registry.Build(t, registry.Spec{Layers: []registry.Layer{row.layer}}))
				_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: suite.registry.Addr + "/badlayer"}})
				refused(t, err, codes.Unknown, "pull image", "layer", row.text)
			})
		}
		t.Run("links stay inside the root", func(t *testing.T) {
			check(t, d)
			ref := pullNew(t, d, "links", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{
				symlink("abs", "/tmp"), file("abs/through", "inside", 0o644), symlink("up", "../../../../../../tmp"), file("up/too", "inside", 0o644), symlink("dangling", "/no/where"),
				{Header: tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 254, Devminor: 0, Mode: 0o666}},
			}})
			c := runPod(t, d).start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
			if got := c.exec(t, "cat /tmp/through /tmp/too; readlink /dangling; cat /disk 2>&1 || true"); got != "insideinside/no/where\ncat: can't open '/disk': Operation not permitted\n" {
				t.Errorf("%q", got)
			}
		})
	})
}

// hugeHeader begins an archive with a file of two tebibytes.
func hugeHeader(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Size: 2 << 40, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Images that are not what their digests or manifests say.
func TestBadImages(t *testing.T) {
	d := use(t)
	push := func(name string, spoil func(*registry.Image)) {
		img := small(t, "bad image "+name, "gzip")
		spoil(img)
		suite.registry.PushImage(t, "bad", name, img)
	}
	manifest := func(old, new string) func(*registry.Image) {
		return func(img *registry.Image) {
			img.SetManifest([]byte(strings.ReplaceAll(string(img.Manifest), old, new)), img.Desc.MediaType)
		}
	}
	push("size", func(img *registry.Image) { manifest(`"size":`, `"size":1`)(img) })
	push("garbled", func(img *registry.Image) {
		img.SetManifest([]byte(strings.Replace(string(img.Manifest), img.Layers[0].Digest.String(), img.ID.String(), 1)), img.Desc.MediaType)
	})
	for _, row := range []struct {
		ref  string
		code codes.Code
		text string
	}{
		{"bad:size", codes.Unknown, "size"},
		{"bad:garbled", codes.Unknown, "pull image"},
		{"bad:nosuchtag", codes.NotFound, "nosuchtag"},
		{"nosuchrepo:latest", codes.NotFound, "nosuchrepo"},
		{"bad@sha256:" + strings.Repeat("0", 64), codes.NotFound, "sha256:000"},
	} {
		t.Run(row.ref, func(t *testing.T) {
			_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: suite.registry.Addr + "/" + row.ref}})
			refused(t, err, row.code, row.text)
		})
	}
	for _, ref := range []string{"", "upper/CASE", "a b", "x@sha256:short", "host:port/too/many:colons:here"} {
		_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		refused(t, err, codes.InvalidArgument)
	}
	_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{})
	refused(t, err, codes.InvalidArgument, "image")
}

// serveImage is a registry of one image that tells the truth, but for its layer, for which answer is asked.
func serveImage(img *registry.Image, answer func(w http.ResponseWriter, r *http.Request, layer []byte)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch name := digest.Digest(path.Base(r.URL.Path)); {
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", img.Desc.MediaType)
			_, _ = w.Write(img.Manifest) // the client may be gone
		case name == img.ID:
			_, _ = w.Write(img.Config) // the client may be gone
		default:
			answer(w, r, bytes.Clone(img.Blobs[name]))
		}
	}
}

// half answers with the first half of data.
func half(w http.ResponseWriter, data []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data[:len(data)/2]) // the client may be gone
	w.(http.Flusher).Flush()
}

// reset ends the connection with RST instead of FIN.
func reset(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.(*net.TCPConn).SetLinger(0) // closed all the same
		_ = conn.Close()
	}
}

// Registries that hang, reset and lie. The caller's deadline ends its wait.
func TestBadRegistries(t *testing.T) {
	d := use(t)
	img := small(t, "liar", "gzip")
	for _, row := range []struct {
		name   string
		answer http.HandlerFunc
		code   codes.Code
		text   string
	}{
		{"hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, codes.DeadlineExceeded, ""},
		{"resets", func(w http.ResponseWriter, _ *http.Request) { reset(w) }, codes.DeadlineExceeded, ""},
		{"answers nonsense", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_, _ = w.Write([]byte("{nonsense")) // the client may be gone
		}, codes.Unknown, "manifest"},
		{"denies", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, codes.Unknown, "403"},
		{"has a manifest of another digest", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			_, _ = w.Write(img.Manifest) // the client may be gone
		}, codes.Unknown, "digest"},
		{"hangs in the middle of a layer", serveImage(img, func(w http.ResponseWriter, r *http.Request, layer []byte) {
			half(w, layer)
			<-r.Context().Done()
		}), codes.DeadlineExceeded, ""},
		{"resets in the middle of a layer", serveImage(img, func(w http.ResponseWriter, _ *http.Request, layer []byte) {
			half(w, layer)
			reset(w)
		}), codes.DeadlineExceeded, ""},
		{"has a layer of another digest", serveImage(img, func(w http.ResponseWriter, _ *http.Request, layer []byte) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), len(layer))) // the client may be gone
		}), codes.Unknown, "layer"},
		{"has a layer that is longer than it says", serveImage(img, func(w http.ResponseWriter, _ *http.Request, layer []byte) {
			_, _ = w.Write(append(layer, "more"...)) // the client may be gone
		}), codes.Unknown, "layer"},
		{"has lost the layer", serveImage(img, func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusNotFound) }), codes.NotFound, "layer"},
	} {
		t.Run(row.name, func(t *testing.T) {
			server := httptest.NewServer(row.answer)
			t.Cleanup(server.Close)
			check(t, d)
			ctx := bounded(t)
			if row.code == codes.DeadlineExceeded {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 3*time.Second)
				defer cancel()
			}
			ref := strings.TrimPrefix(server.URL, "http://") + "/x:y"
			_, err := d.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			if row.code == codes.DeadlineExceeded {
				refused(t, err, row.code)
			} else {
				refused(t, err, row.code, row.text, ref)
			}
		})
	}
}

// A full disk fails a pull with its cause, and nothing of it stays; a smaller image fits afterwards.
func TestFullDisk(t *testing.T) {
	use(t)
	d, err := makeDaemon(fmt.Sprintf("full%d", len(daemons)), storeOverlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("critest", d.root(), "tmpfs", 0, "size=12m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(d.root(), 0); err != nil {
			t.Error(err)
		}
	})
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	check(t, d)
	big := push(t, "big", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("big", strings.Repeat("0123456789", 2<<20), 0o644)}, Compression: "gzip"})
	_, err = d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: big}})
	refused(t, err, codes.Unknown, "pull image", "no space left on device")
	pull(t, d, suite.busybox)
	runPod(t, d).prints(t, "fits\n", "echo fits")
}
