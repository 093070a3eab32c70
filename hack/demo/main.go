// Command demo is what `make run` shows: it starts criserver, runs a first pod over its socket, as a kubelet would, says
// what each step took, and waits. SIGINT and SIGTERM remove the pod and stop criserver.
//
//	demo -address unix:///run/criserver/criserver.sock -image 127.0.0.1:5000/busybox -dir DIR -- criserver serve ...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bound is how long the pod may take to run, and to be removed.
const bound = 2 * time.Minute

// labels find the pods of a demonstration that was killed.
var labels = map[string]string{"app": "criserver-demo"}

func main() {
	d := demo{}
	flag.StringVar(&d.address, "address", "unix:///run/criserver/criserver.sock", "criserver's socket")
	flag.StringVar(&d.image, "image", "", "image with a shell")
	flag.StringVar(&d.dir, "dir", "", "directory for the pod's logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := d.do(ctx, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

// demo is one demonstration.
type demo struct {
	address, image, dir string
	runtime             runtimev1.RuntimeServiceClient
	images              runtimev1.ImageServiceClient
}

// do shows everything and gives everything back. That ctx ends is no error.
func (d *demo) do(ctx context.Context, serve []string) error {
	conn, err := grpc.NewClient(d.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	d.runtime, d.images = runtimev1.NewRuntimeServiceClient(conn), runtimev1.NewImageServiceClient(conn)
	server, err := startServer(filepath.Join(d.dir, "notify"), serve)
	if err != nil {
		return err
	}
	if err := server.ready(ctx); err != nil {
		return errors.Join(unlessInterrupted(ctx, err), server.stop())
	}
	err = d.run(ctx)
	if err == nil {
		fmt.Printf(`
criserver serves on %[1]s. In another terminal, for example:
    crictl --runtime-endpoint %[1]s ps
Ctrl-C removes the pod and stops criserver.
`, d.address)
		select {
		case <-ctx.Done():
		case <-server.ended:
		}
	}
	if server.alive() {
		fmt.Println("removing the demonstration pod")
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), bound)
		defer cancel()
		err = errors.Join(unlessInterrupted(ctx, err), d.removeAll(fresh))
	}
	return errors.Join(err, server.stop())
}

// unlessInterrupted is nil once ctx has ended: what fails then fails for that.
func unlessInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// step does one thing and prints what it took and what came of it.
func step(name string, do func() (string, error)) error {
	began := time.Now()
	result, err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	took := float64(time.Since(began).Microseconds()) / 1000
	_, err = fmt.Printf("  %-18s %8.1f ms   %s\n", name, took, result)
	return err
}

// run runs the pod, after removing those of a demonstration that was killed. It prints as it goes.
func (d *demo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	if err := d.removeAll(ctx); err != nil {
		return err
	}
	fmt.Println("criserver runs a first pod:")
	uid := fmt.Sprintf("demo-%d", time.Now().UnixNano())
	pod := &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: uid},
		Hostname:     "demo",
		LogDirectory: d.dir,
		Labels:       labels,
		Linux:        &runtimev1.LinuxPodSandboxConfig{CgroupParent: "/criserver-demo"},
	}
	container := &runtimev1.ContainerConfig{
		Metadata: &runtimev1.ContainerMetadata{Name: "hello"},
		Image:    &runtimev1.ImageSpec{Image: d.image},
		Command:  []string{"sh", "-c", `echo "hello from $(hostname), Linux $(uname -r)"; exec sleep 2147483647`},
		LogPath:  "hello.log",
		Labels:   labels,
		Linux: &runtimev1.LinuxContainerConfig{SecurityContext: &runtimev1.LinuxContainerSecurityContext{
			Seccomp: &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}, NoNewPrivs: true,
		}},
	}
	var podID, id string
	steps := []struct {
		name string
		do   func() (string, error)
	}{
		{"PullImage", func() (string, error) {
			r, err := d.images.PullImage(ctx, &runtimev1.PullImageRequest{Image: container.GetImage()})
			return d.image + " is " + short(r.GetImageRef()), err
		}},
		{"RunPodSandbox", func() (string, error) {
			r, err := d.runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: pod})
			podID = r.GetPodSandboxId()
			return "pod " + short(podID), err
		}},
		{"CreateContainer", func() (string, error) {
			r, err := d.runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{PodSandboxId: podID, Config: container, SandboxConfig: pod})
			id = r.GetContainerId()
			return "container " + short(id), err
		}},
		{"StartContainer", func() (string, error) {
			_, err := d.runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: id})
			return "", err
		}},
		{"first log line", func() (string, error) { return firstLine(ctx, filepath.Join(d.dir, "hello.log")) }},
		{"PodSandboxStatus", func() (string, error) {
			r, err := d.runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: podID})
			ips := []string{r.GetStatus().GetNetwork().GetIp()}
			for _, ip := range r.GetStatus().GetNetwork().GetAdditionalIps() {
				ips = append(ips, ip.GetIp())
			}
			return "pod IP " + strings.Join(ips, ", "), err
		}},
		{"ExecSync", func() (string, error) {
			r, err := d.runtime.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: id, Cmd: []string{"id"}, Timeout: 10})
			return fmt.Sprintf("id: %s (exit code %d)", strings.TrimSpace(string(r.GetStdout())), r.GetExitCode()), err
		}},
	}
	for _, s := range steps {
		if err := step(s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// short is enough of an id to tell things apart.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// firstLine waits until a log has a whole line.
func firstLine(ctx context.Context, path string) (string, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if line, _, ok := strings.Cut(string(text), "\n"); ok {
			return line, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s has no line: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// removeAll removes the pods of this and of earlier demonstrations, and the image, whose registry ends with them.
func (d *demo) removeAll(ctx context.Context) error {
	list, err := d.runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{Filter: &runtimev1.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, pod := range list.GetItems() {
		_, err := d.runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: pod.GetId()})
		if err == nil {
			_, err = d.runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: pod.GetId()})
		}
		errs = append(errs, err)
	}
	_, err = d.images.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: d.image}})
	return errors.Join(append(errs, err)...)
}
