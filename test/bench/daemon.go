package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// daemon is a CRI server that was started for this part, with its own directories.
type daemon struct {
	name    string
	dir     string
	parent  string // cgroup parent of its pods
	cgroups *cgroup.Hierarchies
	image   string // what its containers are made of
	place   *place // where it is started; nil: where everybody is
	cmd     *exec.Cmd
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

// peerOther is another build of criserver.
const peerOther = "other"

// ownNetwork is criserver without a configuration of the network: its pods get the network that it brings.
const ownNetwork = "criserver-embedded"

// daemonBound is how long a daemon may take to start or to stop.
const daemonBound = 30 * time.Second

// daemons starts criserver and those of its peers that are here. One that does not start is told and left out.
func (b *bench) daemons(ctx context.Context) ([]*daemon, error) {
	m, err := busyboxImage()
	if err != nil {
		return nil, err
	}
	first, err := b.startCriserver(ctx, ours, b.criserver, "cni", m)
	if err != nil {
		return nil, err
	}
	all := []*daemon{first}
	for _, p := range b.peerDaemons() {
		if _, err := exec.LookPath(p.path); err != nil {
			continue
		}
		d, err := p.start(ctx, m)
		if err != nil {
			fmt.Printf("\n%s does not run here: %v\n", p.name, err)
			continue
		}
		all = append(all, d)
	}
	return all, nil
}

// peerDaemon is a CRI server that criserver is measured beside.
type peerDaemon struct {
	name  string
	path  string // of its program
	start func(context.Context, *image) (*daemon, error)
}

func (b *bench) peerDaemons() []peerDaemon {
	var peers []peerDaemon
	if b.beside != "" {
		peers = append(peers, peerDaemon{peerOther, b.beside, func(ctx context.Context, m *image) (*daemon, error) {
			return b.startCriserver(ctx, peerOther, b.beside, "cni", m)
		}})
	}
	return append(peers, peerDaemon{peerContainerd, b.containerd, b.startContainerd}, peerDaemon{peerCRIO, b.crio, b.startCRIO})
}

// startOwnNetwork starts another criserver of ours, for the network that it brings.
func (b *bench) startOwnNetwork(ctx context.Context) (*daemon, error) {
	m, err := busyboxImage()
	if err != nil {
		return nil, err
	}
	return b.startCriserver(ctx, ownNetwork, b.criserver, "no-cni", m)
}

// startCriserver starts ours, or another build of it, and lets it pull the image. networks is the folder with its networks.
func (b *bench) startCriserver(ctx context.Context, name, path, networks string, m *image) (*daemon, error) {
	ref, err := m.serve(b)
	if err != nil {
		return nil, err
	}
	d, err := b.newDaemon(name, ref)
	if err != nil {
		return nil, err
	}
	args := []string{"serve", "--address", "unix://" + d.path("sock"), "--root", d.path("root"), "--state", d.path("state"),
		"--cni-conf-dir", d.path(networks), "--cni-bin-dir", b.plugins}
	if err := b.startDaemon(ctx, d, exec.Command(path, args...)); err != nil {
		return nil, err
	}
	_, err = d.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return d, err
}

func (b *bench) newDaemon(name, image string) (*daemon, error) {
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return nil, err
	}
	d := &daemon{name: name, dir: dir, parent: b.parent + "/" + name, cgroups: b.cgroups, image: image}
	for _, name := range []string{"cni", "state"} {
		if err := os.Mkdir(d.path(name), 0o755); err != nil {
			return nil, err
		}
	}
	// A kubelet makes the cgroup that all pods are in before the first of them, and it stays until the part ends.
	parent, err := b.cgroups.Create(b.parent, name, nil, nil)
	if err != nil {
		return nil, err
	}
	b.later(func() error {
		ctx, cancel := cleanContext()
		defer cancel()
		return parent.Delete(ctx)
	})
	// Runtime state is in memory on every node, below /run.
	if err := unix.Mount("tmpfs", d.path("state"), "tmpfs", 0, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	b.later(d.unmount)
	return d, b.configureNetwork(d)
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

// startDaemon starts d and waits until it is ready. The part's end removes its pods and stops it.
func (b *bench) startDaemon(ctx context.Context, d *daemon, cmd *exec.Cmd) error {
	said, err := os.Create(d.path("log"))
	if err != nil {
		return err
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	if b.verbose {
		cmd.Stderr = os.Stderr
	}
	d.cmd = cmd
	if err := d.place.start(cmd); err != nil {
		return err
	}
	b.later(d.stop)
	d.conn, err = grpc.NewClient("unix://"+d.path("sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	d.runtime, d.images = cri.NewRuntimeServiceClient(d.conn), cri.NewImageServiceClient(d.conn)
	if err := d.ready(ctx); err != nil {
		text, _ := os.ReadFile(d.path("log"))
		return fmt.Errorf("start %s: %w\n%s", d.name, err, text)
	}
	return nil
}

func (d *daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, daemonBound)
	defer cancel()
	for {
		s, err := d.runtime.Status(ctx, &cri.StatusRequest{})
		for _, c := range s.GetStatus().GetConditions() {
			if c.GetType() == cri.RuntimeReady && c.GetStatus() {
				return nil
			}
		}
		if waitErr := wait(ctx, 20*time.Millisecond); waitErr != nil {
			return errors.Join(waitErr, err)
		}
	}
}

// stop removes all pods, stops the daemon, and kills what it started and left.
func (d *daemon) stop() error {
	ctx, cancel := cleanContext()
	defer cancel()
	var errs []error
	if d.conn != nil {
		errs = append(errs, d.removeAll(ctx), d.conn.Close())
	}
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	exited := make(chan struct{})
	go func() { _ = d.cmd.Wait(); close(exited) }()
	select {
	case <-exited:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("%s does not stop", d.name), d.cmd.Process.Kill())
		<-exited
	}
	left, err := d.processes(nil)
	for _, p := range left {
		errs = append(errs, fmt.Errorf("%s left process %d (%s)", d.name, p.pid, p.name))
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
	return errors.Join(append(errs, err)...)
}

// removeAll kills every container of the daemon and removes every pod.
func (d *daemon) removeAll(ctx context.Context) error {
	containers, err := d.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return err
	}
	err = parallel(ctx, 8, len(containers.GetContainers()), func(ctx context.Context, i int) error {
		return (&pod{d: d, container: containers.GetContainers()[i].GetId()}).stopContainer(ctx)
	})
	if err != nil {
		return err
	}
	list, err := d.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var ids []string
	for _, p := range list.GetItems() {
		ids = append(ids, p.GetId())
	}
	return parallel(ctx, 8, len(ids), func(ctx context.Context, i int) error {
		return (&pod{d: d, id: ids[i]}).remove(ctx)
	})
}

// unmount detaches what the daemon left mounted below its directory, the deepest first.
func (d *daemon) unmount() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(data), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], d.dir+"/") {
			_ = unix.Unmount(f[4], unix.MNT_DETACH) // what stays keeps the directory, and that is reported
		}
	}
	return nil
}

// operation is what criserver's flight recorder tells of one RPC.
type operation struct {
	Name   string        `json:"name"`
	Took   time.Duration `json:"took_ns"`
	Error  string        `json:"error"`
	Stages []struct {
		Name string        `json:"name"`
		Took time.Duration `json:"took_ns"`
	} `json:"stages"`
}

// operations reads the flight recorder.
func (d *daemon) operations(ctx context.Context) ([]operation, error) {
	s, err := d.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	var all []operation
	err = json.Unmarshal([]byte(s.GetInfo()["operations"]), &all)
	return all, err
}
