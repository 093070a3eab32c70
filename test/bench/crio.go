package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const peerCRIO = "CRI-O"

// crioConfig is the default but for directories, the cgroupfs driver, an image for sandboxes, and the metrics of pods, of which it has none otherwise.
const crioConfig = `[crio]
root = %q
runroot = %q
storage_driver = "overlay"
log_dir = %q
version_file = %q
clean_shutdown_file = %q
[crio.api]
listen = %q
[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
apparmor_profile = "unconfined"
cdi_spec_dirs = [%q]
hooks_dir = [%q]
container_exits_dir = %q
container_attach_socket_dir = %q
namespaces_dir = %q
pinns_path = %q
default_runtime = "crun"
[crio.runtime.runtimes.crun]
runtime_path = %q
runtime_type = "oci"
runtime_root = %q
monitor_path = %q
monitor_cgroup = "pod"
[crio.image]
pause_image = %q
pause_command = "/bin/sleep 1000000"
signature_policy = %q
signature_policy_dir = %q
[crio.network]
network_dir = %q
plugin_dirs = [%q]
[crio.stats]
included_pod_metrics = ["all"]
[crio.nri]
enable_nri = true
nri_listen = %q
nri_plugin_dir = %q
nri_plugin_config_dir = %q
`

// startCRIO starts the peer, with crun where crun takes this host, and lets it pull the image, which is also that of its sandboxes.
func (b *bench) startCRIO(ctx context.Context, m *image) (*daemon, error) {
	ref, err := m.serve(b)
	if err != nil {
		return nil, err
	}
	d, err := b.newDaemon(peerCRIO, ref)
	if err != nil {
		return nil, err
	}
	crun, err := b.crunOf(d)
	if err != nil {
		return nil, err
	}
	registry, _, _ := strings.Cut(ref, "/")
	config, policy, registries := d.path("crio.conf"), d.path("policy.json"), d.path("registries.conf")
	text := fmt.Sprintf(crioConfig, d.path("root"), d.path("state/storage"), d.path("pods"), d.path("state/version"), d.path("clean"), d.path("sock"),
		d.path("cdi"), d.path("hooks"), d.path("state/exits"), d.path("state/attach"), d.path("state/ns"), b.pinns, crun, d.path("state/crun"), b.conmon,
		ref, policy, d.path("policies"), d.path("cni"), b.plugins, d.path("nri.sock"), d.path("nri"), d.path("nri"))
	err = errors.Join(os.WriteFile(config, []byte(text), 0o600), os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600),
		os.WriteFile(registries, plainHTTP(append(b.insecure, registry)), 0o600))
	for _, dir := range []string{"hooks", "nri", "cdi", "policies", "state/ns", "state/attach", "state/exits"} {
		err = errors.Join(err, os.Mkdir(d.path(dir), 0o755))
	}
	if err != nil {
		return nil, err
	}
	if err := b.startDaemon(ctx, d, exec.Command(b.crio, "--config", config, "--config-dir", "", "--registries-conf", registries)); err != nil {
		return nil, err
	}
	_, err = d.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return d, err
}

// plainHTTP is a registries.conf that allows plain HTTP.
func plainHTTP(registries []string) (text []byte) {
	for _, r := range registries {
		text = fmt.Appendf(text, "[[registry]]\nlocation = %q\ninsecure = true\n", r)
	}
	return text
}

// crunOf returns the path of the crun that was found to run here, and sets d's place to where it does.
func (b *bench) crunOf(d *daemon) (string, error) {
	for _, p := range b.peers {
		if p.name != "crun" {
			continue
		}
		p, err := b.placed(p)
		if err != nil {
			return "", err
		}
		d.place = p.place
		if len(p.argv) == 1 {
			return p.argv[0], nil
		}
		path := d.path("crun") // a script, which costs CRI-O the start of a shell each time
		return path, os.WriteFile(path, []byte("#!/bin/sh\nexec "+strings.Join(p.argv, " ")+" \"$@\"\n"), 0o755)
	}
	return "", errors.New("no crun that runs here")
}
