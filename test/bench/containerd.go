package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const peerContainerd = "containerd"

// containerdConfig is the default but for directories, an image for sandboxes, and what a sandbox in a machine may not
// allow: OOM scores below its own. containerd 1 reads it as it is, containerd 2 migrates it.
const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.nri.v1.nri"]
  socket_path = %q
  plugin_path = %q
  plugin_config_path = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  cdi_spec_dirs = [%q]
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = %q
`

// startContainerd starts the peer and imports the image, which is also that of its sandboxes.
func (b *bench) startContainerd(ctx context.Context, m *image) (*daemon, error) {
	const name = "bench.invalid/busybox:v1"
	d, err := b.newDaemon(peerContainerd, name)
	if err != nil {
		return nil, err
	}
	config, archive := d.path("config.toml"), d.path("image.tar")
	text := fmt.Sprintf(containerdConfig, d.path("root"), d.path("state"), d.path("sock"), d.path("opt"), d.path("nri.sock"), d.path("nri"), d.path("nri"),
		name, d.path("cdi"), b.plugins, d.path("cni"), b.runc)
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o600), m.layout(archive, name)); err != nil {
		return nil, err
	}
	cmd := exec.Command(b.containerd, "--config", config)
	beside := filepath.Dir(cmd.Path)                                     // of it are its shim and ctr
	cmd.Env = append(os.Environ(), "PATH="+beside+":"+os.Getenv("PATH")) // before those of another version
	if err := b.startDaemon(ctx, d, cmd); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(beside, "ctr"), "--address", d.path("sock"), "-n", "k8s.io", "images", "import", archive).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("import an image into containerd: %w: %s", err, bytes.TrimSpace(out))
	}
	_, err = d.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	return d, err
}
