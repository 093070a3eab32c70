package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/cdi"
	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/kernel"
	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/ociruntime/user"
)

// host asks this node what specs may count on, but for security modules, which are configured.
func host() (specgen.Host, error) {
	cgroups, err := cgroup.Detect()
	if err != nil {
		return specgen.Host{}, err
	}
	defer func() { _ = cgroups.Close() }() // only asked
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return specgen.Host{}, err
	}
	h := specgen.Host{CgroupV2: cgroups.Mode() == cgroup.V2, RecursiveReadOnly: kernel.MountSetattr.Has()}
	if h.LastCap, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return specgen.Host{}, fmt.Errorf("/proc/sys/kernel/cap_last_cap: %w", err)
	}
	if h.Ceiling, err = ociruntime.Ceiling(false); err != nil {
		return specgen.Host{}, err
	}
	h.CeilingUserNS, err = ociruntime.Ceiling(true)
	return h, err
}

// makeSpec is the plan of a container: what is asked for, the image and the node in OCI's terms, without devices of CDI.
func (s *Service) makeSpec(_ context.Context, b *building) error {
	p := b.p
	in := specgen.Input{Pod: b.pod, Container: b.config, Image: b.image.Config, ImageName: b.config.Image.Image,
		PodID: string(p.id), Hostname: p.hostname(b.pod), CgroupsPath: filepath.Join("/", b.pod.GetLinux().GetCgroupParent(), string(b.id)),
		Files: specgen.PodFiles{Hostname: filepath.Join(p.dir(), HostnameFile), Hosts: filepath.Join(p.dir(), HostsFile),
			ResolvConf: filepath.Join(p.dir(), ResolvFile), Shm: filepath.Join(p.dir(), ociruntime.ShmName)},
		Namespaces: b.namespaces(), Volumes: b.volumes, ImageVolumes: b.imageSources(), Labels: b.labels, Host: s.host, Handler: p.gives,
		User: func(r user.Request) (user.User, error) { return user.Resolve(b.root, r) }}
	if namespaceOptions(b.pod).GetIpc() == runtimev1.NamespaceMode_NODE {
		in.Files.Shm = "/dev/shm"
	}
	var err error
	b.spec, err = specgen.Container(in)
	var field *specgen.InvalidError
	if errors.As(err, &field) {
		return fmt.Errorf("%w: container config: %w", ErrInvalid, err)
	}
	if err != nil {
		return err
	}
	b.spec.Linux.Resources.BlockIO, err = s.blockIO(b.config, p.spec.Annotations)
	return err
}

// seeToSources sees to the sources of the mounts that are asked for.
func (b *building) seeToSources(ctx context.Context) error {
	b.files = make([]bool, len(b.config.Mounts))
	for i, m := range b.config.Mounts {
		if m.HostPath == "" { // an image
			continue
		}
		var err error
		if b.files[i], err = b.p.s.see(ctx, m.HostPath); err != nil {
			return fmt.Errorf("host_path %s of the mount on %s: %w", m.HostPath, m.ContainerPath, err)
		}
	}
	return nil
}

// seeToSource makes a mount's source where there is none yet, but for those that must not become directories.
func (s *Service) seeToSource(ctx context.Context, path string) (file bool, err error) {
	if !slices.Contains(s.settings.Load().RejectAbsent, filepath.Clean(path)) {
		return s.sources.Make(ctx, path)
	}
	file, err = s.sources.Find(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: it does not exist, and must not be made a directory: %w", ErrInvalid, err)
	}
	return file, err
}

// namespaces are where the container's come from, for who reads its spec; the runtime knows them.
func (b *building) namespaces() map[specs.LinuxNamespaceType]string {
	of := func(pid int, name string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, name) }
	pause := b.rtPod.Pid()
	paths := map[specs.LinuxNamespaceType]string{specs.IPCNamespace: of(pause, "ipc"), specs.UTSNamespace: of(pause, "uts"),
		specs.UserNamespace: of(pause, "user"), specs.NetworkNamespace: b.p.netNSPath()}
	if b.target != nil {
		paths[specs.PIDNamespace] = of(b.target.Pid(), "pid")
	}
	return paths
}

// injectDevices adds the CDI devices that the request names, in its field or in annotations, each once.
func (s *Service) injectDevices(b *building) error {
	names := make([]string, 0, len(b.config.CDIDevices))
	for _, d := range b.config.CDIDevices {
		names = append(names, d.Name)
	}
	annotated, err := cdi.Annotated(b.config.Annotations)
	if err != nil {
		return fmt.Errorf("%w: container config: %w", ErrInvalid, err)
	}
	names = cdi.Distinct(names, annotated)
	if len(names) > 0 && s.config.CDI == nil {
		return fmt.Errorf("%w: container config: CDI_devices: %s asked for, but CDI is not configured", ErrInvalid, names[0])
	}
	return s.config.CDI.Inject(b.spec, names)
}
