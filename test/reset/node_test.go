package reset

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/control"
	"github.com/criserver/criserver/imageservice"
)

const (
	programs = "/payload/bin" // of the guest
	socket   = "unix:///run/criserver.sock"
	bound    = 3 * time.Minute // says that something hangs; the processor is emulated
)

// running is the criserver that this process has started.
var running *node

// node is the criserver of this boot.
type node struct {
	cmd     *exec.Cmd // nil where another process has started it
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until done says yes.
func eventually(t *testing.T, what func() string, done func() bool) {
	t.Helper()
	for over := time.Now().Add(bound); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(over) {
			t.Fatalf("not within %v: %s", bound, what())
		}
	}
}

const configuration = `address = %q
root = %q
state = %q
pause = %q
cgroup_driver = "cgroupfs"
certs_dirs = []
[network]
default = "off"
[nri]
enable = "off"
[security]
apparmor = "off"
[images]
store = %q
`

// start starts a criserver on the disk, which lives until the machine is reset.
func start(t *testing.T, store string) *node {
	t.Helper()
	config, log := filepath.Join(mountPoint, "config.toml"), "/run/criserver.log"
	text := fmt.Sprintf(configuration, socket, filepath.Join(mountPoint, "root"), statePath(), filepath.Join(programs, "pause"), store)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(programs, "criserver"), "--config", config, "serve")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, out, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(log); t.Failed() {
			t.Logf("criserver's messages: %s %v", text, err)
		}
	})
	n := connect(t)
	n.cmd, running = cmd, n
	return n
}

func statePath() string { return filepath.Join(mountPoint, "state") }

// connect waits until criserver is ready.
func connect(t *testing.T) *node {
	t.Helper()
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	n := &node{runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn)}
	eventually(t, func() string { return "criserver is ready" }, func() bool {
		s, err := n.runtime.Status(bounded(t), &cri.StatusRequest{})
		return err == nil && slices.ContainsFunc(s.GetStatus().GetConditions(), func(c *cri.RuntimeCondition) bool {
			return c.GetType() == cri.RuntimeReady && c.GetStatus()
		})
	})
	return n
}

func (n *node) stop(t *testing.T) {
	t.Helper()
	if err := n.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Wait(); err != nil {
		t.Fatalf("criserver: %v", err)
	}
	running = nil
}

func (n *node) pull(t *testing.T, ref string) {
	t.Helper()
	if _, err := n.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatalf("PullImage %s: %v", ref, err)
	}
}

func (n *node) remove(t *testing.T, ref string) {
	t.Helper()
	if _, err := n.images.RemoveImage(bounded(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatalf("RemoveImage %s: %v", ref, err)
	}
}

func (n *node) has(t *testing.T, ref string) bool {
	t.Helper()
	s, err := n.images.ImageStatus(bounded(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return s.GetImage() != nil
}

// usage is what `criserver images usage` tells.
func (n *node) usage(t *testing.T) (u imageservice.DiskUsage) {
	t.Helper()
	if err := control.Call(bounded(t), control.Socket(statePath()), "usage", struct{}{}, nil, nil, &u); err != nil {
		t.Fatal(err)
	}
	return u
}

// waitDurable waits until all layers are said to outlive a power loss.
func (n *node) waitDurable(t *testing.T) {
	t.Helper()
	eventually(t, func() string { return fmt.Sprintf("all is durable: %+v", n.usage(t)) }, func() bool {
		for _, l := range n.usage(t).Layers {
			if !l.Durable {
				return false
			}
		}
		return true
	})
}

// verify wants what `criserver images verify` tells to be good.
func (n *node) verify(t *testing.T) {
	t.Helper()
	var all []control.Verified
	if err := control.Call(bounded(t), control.Socket(statePath()), "verify", control.Refs{}, nil, nil, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) < 2 {
		t.Errorf("%d images were verified", len(all))
	}
	for _, img := range all {
		for _, l := range img.Layers {
			if l.Damaged || l.Error != "" {
				t.Errorf("%v: layer %+v", img.RepoTags, l)
			}
		}
	}
}

// slack is what a file system may use more or less for the same files: directories and trees that have grown.
const slack = 256 << 10

// accounted wants the disk to hold the images, as many bytes as it did before, and nothing else.
func (n *node) accounted(t *testing.T, want int64) {
	t.Helper()
	var now int64
	var left []string
	eventually(t, func() string { return fmt.Sprintf("%d bytes are used (%d), nobody knows %q", want, now, left) }, func() bool {
		layers := map[string]bool{}
		for _, l := range n.usage(t).Layers {
			if len(l.Images) > 0 {
				layers[strings.Replace(string(l.DiffID), ":", "-", 1)] = true
			}
		}
		now, left = used(t), strays(t, layers)
		return len(left) == 0 && max(now-want, want-now) <= slack
	})
}
