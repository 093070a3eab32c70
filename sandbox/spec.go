package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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
	h := specgen.Host{CgroupV2: cgroups.Mode() == cgroup.V2, RecursiveReadOnly: kernel.MountSetattr.Has(), Rlimits: specgen.DefaultRlimits()}
	if h.LastCap, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return specgen.Host{}, fmt.Errorf("/proc/sys/kernel/cap_last_cap: %w", err)
	}
	return h, clamp(h.Rlimits)
}

// clamp lowers limits to what a criserver without CAP_SYS_RESOURCE can give, itself being limited.
func clamp(limits []specs.POSIXRlimit) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return nil
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	for i := range limits {
		if l := &limits[i]; l.Type == "RLIMIT_NOFILE" {
			l.Hard = min(l.Hard, own.Max)
			l.Soft = min(l.Soft, l.Hard)
		}
	}
	return nil
}

// makeSpec is the plan of a container: what is asked for, the image and the node in OCI's terms.
func (s *Service) makeSpec(ctx context.Context, b *building) error {
	for _, m := range b.config.Mounts {
		if m.HostPath == "" { // an image
			continue
		}
		if err := s.sources.Make(ctx, m.HostPath); err != nil {
			return fmt.Errorf("host_path %s of the mount on %s: %w", m.HostPath, m.ContainerPath, err)
		}
	}
	p := b.p
	in := specgen.Input{Pod: b.pod, Container: b.config, Image: b.image.Config, ImageName: b.config.Image.Image,
		PodID: string(p.id), Hostname: p.hostname(b.pod), CgroupsPath: filepath.Join("/", b.pod.GetLinux().GetCgroupParent(), string(b.id)),
		Files: specgen.PodFiles{Hostname: filepath.Join(p.dir(), HostnameFile), Hosts: filepath.Join(p.dir(), HostsFile),
			ResolvConf: filepath.Join(p.dir(), ResolvFile), Shm: filepath.Join(p.dir(), ociruntime.ShmName)},
		Volumes: b.volumes, Labels: b.labels, Host: s.host,
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
	if err := s.injectDevices(b); err != nil {
		return err
	}
	u := b.spec.Process.User
	b.status.Load().User = User{UID: u.UID, GID: u.GID, Groups: u.AdditionalGids} // nobody else has seen it yet
	return nil
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
	if len(names) == 0 {
		return nil
	}
	if s.config.CDI == nil {
		return fmt.Errorf("%w: container config: CDI_devices: %s asked for, but CDI is not configured", ErrInvalid, names[0])
	}
	return s.config.CDI.Inject(b.spec, names)
}
