package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/seccomp"
)

// applets are what containers of the bench call by name.
var applets = []string{"sh", "true", "sleep", "yes", "head", "cat"}

// makeRoot makes a root file system of a static busybox.
func makeRoot(dir string) error {
	for _, d := range []string{"bin", "etc", "proc", "dev", "sys", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w; Debian's package busybox-static has it", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		return err
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644)
}

// bundle is what all runtimes start alike: what a kubelet's container has, with its mounts, filter and capabilities.
type bundle struct {
	dir, root string
}

// volumes are bound into each container: the files and directories that a kubelet gives.
var volumes = []struct {
	name, destination string
	dir, ro           bool
}{
	{"hosts", "/etc/hosts", false, false},
	{"resolv.conf", "/etc/resolv.conf", false, false},
	{"hostname", "/etc/hostname", false, true},
	{"termination-log", "/dev/termination-log", false, false},
	{"token", "/var/run/secrets/kubernetes.io/serviceaccount", true, true},
}

func newBundle(dir string) (*bundle, error) {
	u := &bundle{dir: dir, root: filepath.Join(dir, "rootfs")}
	if err := makeRoot(u.root); err != nil {
		return nil, err
	}
	for _, v := range volumes {
		path := filepath.Join(dir, v.name)
		var err error
		if v.dir {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte("x\n"), 0o644)
		}
		if err != nil {
			return nil, err
		}
	}
	return u, nil
}

// spec is the container's, without what only peers need.
func (u *bundle) spec(args ...string) *specs.Spec {
	s := ociruntime.DefaultSpec(args...)
	s.Linux.Seccomp = seccomp.DefaultProfile(s.Process.Capabilities.Bounding)
	for _, v := range volumes {
		options := []string{"rbind", "rprivate", "rw"}
		if v.ro {
			options[2] = "ro"
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: v.destination, Type: "bind", Source: filepath.Join(u.dir, v.name), Options: options})
	}
	return s
}

// alone runs true as a child of this process, without container: what everybody's figures contain. On a virtual machine
// most of it is glibc, whose start asks the processor for its features, which traps.
func (u *bundle) alone(name string) contender {
	return contender{"no container", func(ctx context.Context) ([]lap, error) {
		l := startLaps()
		err := exec.CommandContext(ctx, filepath.Join(u.root, "bin/true")).Run()
		l.total(name)
		return l.all, err
	}}
}

// write makes config.json for peers. Their containers join the ipc and uts namespaces of a pause, as in a pod.
func (u *bundle) write(dir, cgroup string, pause int, args ...string) error {
	s := u.spec(args...)
	s.Root.Path = u.root
	s.Linux.CgroupsPath = cgroup
	for _, kind := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: fmt.Sprintf("/proc/%d/ns/%s", pause, kind)})
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}
