package main

import (
	"fmt"
	"time"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/ociruntime/apparmor"
	"github.com/criserver/criserver/ociruntime/cdi"
)

// Config is the whole configuration: defaults, then the file, then flags. It is plain data, read once, and passed on in
// pieces. The comments that `criserver config` prints are the ones here.
type Config struct {
	Address      string   `toml:"address" comment:"Socket of the CRI services, mode 0660."`
	Root         string   `toml:"root" comment:"Directory of what outlives a reboot: images, layers, what networks are owed."`
	State        string   `toml:"state" comment:"Directory of what does not: pods and containers. Best on a tmpfs. One criserver per root and state."`
	Pause        string   `toml:"pause" comment:"The pause binary. Empty: beside criserver, then ../libexec/criserver, then /usr/libexec/criserver."`
	CgroupDriver string   `toml:"cgroup_driver" comment:"auto, cgroupfs or systemd. auto: systemd where systemd manages a unified hierarchy, else cgroupfs."`
	PauseCgroup  string   `toml:"pause_cgroup" comment:"Where a pod's pause process is accounted. pod: in the pod's cgroup; runtime: under criserver's own."`
	BlockIO      string   `toml:"blockio" comment:"File of classes of block I/O, which annotations name, in the form of goresctrl. Empty: none."`
	CertsDirs    []string `toml:"certs_dirs" comment:"Directories of hosts.toml files, one directory per registry host. The first that knows a host is used."`

	Log       Log       `toml:"log" comment:"Messages of criserver on standard error."`
	Container Container `toml:"container" comment:"Containers."`
	CDI       CDI       `toml:"cdi" comment:"Devices that vendors describe in files (Container Device Interface)."`
	CNI       CNI       `toml:"cni" comment:"Network plugins and their configuration."`
	Network   Network   `toml:"network" comment:"The network of pods where the CNI directory has no configuration."`
	Images    Images    `toml:"images" comment:"Images and layers."`
	Security  Security  `toml:"security" comment:"Security modules of the kernel."`
	Stats     Stats     `toml:"stats" comment:"Statistics of pods and containers."`
	Streaming Streaming `toml:"streaming" comment:"The HTTP server of exec, attach and port forwarding."`
	Metrics   Metrics   `toml:"metrics" comment:"Metrics of criserver itself."`
	NRI       NRI       `toml:"nri" comment:"Plugins of the node resource interface (github.com/containerd/nri)."`

	Registries    Registries              `toml:"registries" comment:"How registries are spoken to."`
	RegistryHosts map[string]RegistryHost `toml:"registry_hosts" comment:"What is different for one host, as \"registry-1.docker.io\" or \"mirror.test:5000\": requests_per_second, requests_at_once, proxy (a URL, or direct), fallback."`

	Handlers map[string]Handler `toml:"handlers" comment:"Runtime handlers, which a RuntimeClass names. default is that of pods that name none, and is always there."`
}

// Log configures criserver's own messages.
type Log struct {
	Level  string   `toml:"level" comment:"debug, info, warn or error."`
	Format string   `toml:"format" comment:"text or json."`
	Slow   Duration `toml:"slow" comment:"Requests that take longer are logged with their stages; 0 logs only failures."`
}

// Container configures containers.
type Container struct {
	RejectAbsent []string `toml:"absent_mount_sources_to_reject" comment:"Sources of mounts that must exist. Any other that is missing is made as a directory, which would harm where a file is expected: /etc/hostname."`
	LogLineMax   int      `toml:"log_line_max" comment:"Bytes of one line of container output; longer ones are split and marked partial."`

	WritableLimit int64 `toml:"writable_limit" comment:"Bytes that a container may write to its root; more fails with EDQUOT (ext4) or ENOSPC (XFS). 0: no limit. Needs project quotas: ext4 or XFS mounted with prjquota."`
}

// CDI says where devices are described.
type CDI struct {
	SpecDirs []string `toml:"spec_dirs" comment:"Directories of .yaml and .json files; of a device that several describe, the one in the later directory counts. Empty: no CDI."`
}

// CNI says where plugins and their configuration are.
type CNI struct {
	ConfDir      string   `toml:"conf_dir" comment:"Directory of .conflist, .conf and .json files; the first by name is used."`
	ConfTemplate string   `toml:"conf_template" comment:"Go template of the configuration that is written into conf_dir, where there is no other, when the kubelet tells the node's pod CIDR. Empty: none."`
	BinDirs      []string `toml:"bin_dirs" comment:"Directories of plugins. Those that come with criserver are looked for last."`
}

// Network is the embedded default network.
type Network struct {
	Default string   `toml:"default" comment:"on or off. Leave it off under a kubelet: a node without its CNI configuration should be NotReady."`
	Bridge  string   `toml:"bridge" comment:"Name of its bridge, at most 15 bytes. Empty: cri0, or a name made from root if that is not the default."`
	Subnets []string `toml:"subnets" comment:"One subnet per address family. Empty: 10.77.0.0/16 and fd9c:71e4:a0b2::/64, or subnets made from root likewise."`
}

// Images configures the image service.
type Images struct {
	Store   string   `toml:"store" comment:"auto, erofs or overlay. auto: erofs where the kernel mounts image files directly (6.12), else overlay."`
	Pinned  []string `toml:"pinned" comment:"Images that the kubelet is told never to remove, by tag or digest; a * at the end stands for any rest."`
	Preload string   `toml:"preload" comment:"Directory of archives and OCI layouts that are imported in the background at each start, by name. Empty: none."`
	Verify  Verify   `toml:"verify" comment:"Which images may be pulled and imported. Both ways are off as long as nothing is named."`

	ParallelLayers      int `toml:"parallel_layers" comment:"Layers that are fetched and unpacked at a time, of all pulls together. 0: two a processor, from 4 to 8."`
	Connections         int `toml:"connections" comment:"Connections over which layers come at a time, of all pulls together."`
	ConnectionsPerLayer int `toml:"connections_per_layer" comment:"Of these for one large layer; 1: never more than one."`
	PullMemory          int `toml:"pull_memory_mib" comment:"MiB of buffers of all pulls together. What is kept of each entry of a layer while it is unpacked comes on top."`
}

func defaultImages() Images {
	return Images{Store: "auto", Pinned: []string{}, Verify: defaultVerify(), Connections: 16, ConnectionsPerLayer: 4, PullMemory: 32}
}

// bounds are what all pulls together may take.
func (c *Images) bounds() imageservice.Bounds {
	return imageservice.Bounds{Layers: c.ParallelLayers, Connections: c.Connections, PerLayer: c.ConnectionsPerLayer, Memory: int64(c.PullMemory) << 20}
}

// Security configures what confines containers beside namespaces, capabilities and seccomp.
type Security struct {
	AppArmor        string `toml:"apparmor" comment:"auto, on or off. auto: where the kernel has it; on: criserver does not start without it and its default profile."`
	AppArmorDefault string `toml:"apparmor_default" comment:"Profile of containers that name none. criserver loads criserver-default, its own; another must be loaded. unconfined: none."`
	SELinux         string `toml:"selinux" comment:"auto, on or off. auto: where it is enabled and the policy knows containers; on: criserver does not start without it."`
	Categories      int    `toml:"selinux_categories" comment:"Categories of the policy. Each pod has two of them that no other pod has."`
}

// Stats configures what is measured when nobody asks.
type Stats struct {
	Period      Duration `toml:"period" comment:"Between two samples of CPU time, for rates. 0: only when somebody asks for statistics."`
	LayerPeriod Duration `toml:"layer_period" comment:"Between two measurements of what a container has written to its root, at least. 0: it is not measured."`
}

// Streaming is the HTTP server of exec, attach and port forwarding.
type Streaming struct {
	Address         string   `toml:"address" comment:"IP address that it listens on. The kubelet is the client: leave it on loopback."`
	Port            int      `toml:"port" comment:"Its port; 0: any."`
	IdleTimeout     Duration `toml:"idle_timeout" comment:"How long a connection may be idle before it is closed."`
	CreationTimeout Duration `toml:"creation_timeout" comment:"How long a client may take to open its streams."`
	TLSCert         string   `toml:"tls_cert" comment:"Certificate file in PEM form, with tls_key: HTTPS. Both are read again when they have changed. Empty: HTTP."`
	TLSKey          string   `toml:"tls_key" comment:"Key file of the certificate."`
}

// Duration is a time.Duration that is written as "1.5s" in the file.
type Duration time.Duration

// MarshalText writes d as time.Duration prints it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 500ms or 2s", text)
	}
	*d = Duration(v)
	return nil
}

// Defaults of paths.
const (
	defaultFile = "/etc/criserver/config.toml"
	defaultRoot = "/var/lib/criserver"
)

// defaultConfig is the configuration without file and flags.
func defaultConfig() Config {
	return Config{
		Address:      "unix:///run/criserver/criserver.sock",
		Root:         defaultRoot,
		State:        "/run/criserver",
		CgroupDriver: "auto",
		PauseCgroup:  "pod",
		CertsDirs:    []string{"/etc/criserver/certs.d", "/etc/containerd/certs.d"},
		Log:          Log{Level: "info", Format: "text", Slow: Duration(2 * time.Second)},
		Container:    Container{RejectAbsent: []string{}, LogLineMax: 16384},
		CDI:          CDI{SpecDirs: cdi.DefaultDirs()},
		CNI:          CNI{ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}},
		Network:      Network{Default: "on", Subnets: []string{}},
		Images:       defaultImages(),
		Streaming:    Streaming{Address: "127.0.0.1", IdleTimeout: Duration(4 * time.Hour), CreationTimeout: Duration(30 * time.Second)},
		Security:     Security{AppArmor: "auto", AppArmorDefault: apparmor.DefaultProfile, SELinux: "auto", Categories: 1024},
		Stats:        Stats{Period: Duration(10 * time.Second), LayerPeriod: Duration(10 * time.Second)},
		Registries:   defaultRegistries(), RegistryHosts: map[string]RegistryHost{},
		Handlers: map[string]Handler{handlerOfAll: defaultHandlerConfig()},
		NRI:      defaultNRI(),
	}
}
