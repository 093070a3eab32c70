package main

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/sandbox/nri"
)

// maxSocketPath is what fits in a sockaddr_un.
const maxSocketPath = 107

// validate returns everything that is wrong with the values of c.
func validate(c *Config) []string {
	var f faults
	c.checkPlaces(&f)
	c.Log.check(&f)
	c.Container.check(&f)
	f.absolute("cdi.spec_dirs", c.CDI.SpecDirs...)
	c.CNI.check(&f)
	c.Network.check(&f)
	c.Images.check(&f)
	c.Security.check(&f)
	c.Stats.check(&f)
	c.Streaming.check(&f)
	c.Metrics.check(&f)
	c.NRI.check(&f)
	c.Registries.check(&f)
	checkRegistryHosts(c.RegistryHosts, &f)
	checkHandlers(c.Handlers, &f)
	return f
}

// faults are what is wrong with a configuration, each with its key.
type faults []string

func (f *faults) add(key, format string, args ...any) {
	*f = append(*f, key+": "+fmt.Sprintf(format, args...))
}

func (f *faults) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		f.add(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (f *faults) between(key string, value, least, most int) {
	if value < least || value > most {
		f.add(key, "%d is not between %d and %d", value, least, most)
	}
}

func (f *faults) positive(key string, value Duration) {
	if value <= 0 {
		f.add(key, "must be positive")
	}
}

func (f *faults) absolute(key string, paths ...string) {
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			f.add(key, "%q is not an absolute path", p)
		}
	}
}

// absoluteIfAny is for a path that may be empty.
func (f *faults) absoluteIfAny(key, path string) {
	if path != "" {
		f.absolute(key, path)
	}
}

func (f *faults) socketPath(key, path string) {
	if len(path) > maxSocketPath {
		f.add(key, "%q is longer than the %d bytes of a socket's path", path, maxSocketPath)
	}
}

// checkPlaces looks at the keys that are in no table.
func (c *Config) checkPlaces(f *faults) {
	socket, ok := strings.CutPrefix(c.Address, "unix://")
	if !ok || !filepath.IsAbs(socket) {
		f.add("address", "%q is not of the form unix:///path", c.Address)
	} else {
		f.socketPath("address", socket)
	}
	f.absolute("root", c.Root)
	f.absolute("state", c.State)
	if filepath.Clean(c.Root) == filepath.Clean(c.State) {
		f.add("state", "must not be the same directory as root")
	}
	f.absoluteIfAny("pause", c.Pause)
	f.oneOf("cgroup_driver", c.CgroupDriver, "auto", "cgroupfs", "systemd")
	f.oneOf("pause_cgroup", c.PauseCgroup, "pod", "runtime")
	f.absoluteIfAny("blockio", c.BlockIO)
	f.absolute("certs_dirs", c.CertsDirs...)
}

func (l *Log) check(f *faults) {
	f.oneOf("log.level", l.Level, "debug", "info", "warn", "error")
	f.oneOf("log.format", l.Format, "text", "json")
	if l.Slow < 0 {
		f.add("log.slow", "must not be negative")
	}
}

func (c *Container) check(f *faults) {
	f.absolute("container.absent_mount_sources_to_reject", c.RejectAbsent...)
	f.between("container.log_line_max", c.LogLineMax, 256, 1<<20)
	if c.WritableLimit < 0 {
		f.add("container.writable_limit", "%d is less than 0, which means no limit", c.WritableLimit)
	}
}

func (c *CNI) check(f *faults) {
	f.absolute("cni.conf_dir", c.ConfDir)
	f.absoluteIfAny("cni.conf_template", c.ConfTemplate)
	f.absolute("cni.bin_dirs", c.BinDirs...)
}

func (n *Network) check(f *faults) {
	f.oneOf("network.default", n.Default, "on", "off")
	if len(n.Bridge) > 15 || strings.ContainsAny(n.Bridge, "/ \t\n:") {
		f.add("network.bridge", "%q is not the name of a network device", n.Bridge)
	}
	checkSubnets(n.Subnets, f)
}

// checkSubnets wants subnets with room for pods, one per address family.
func checkSubnets(list []string, f *faults) {
	const key = "network.subnets"
	families := map[bool]bool{}
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			f.add(key, "%q is not a subnet such as 10.77.0.0/16", s)
			continue
		case p != p.Masked():
			f.add(key, "%q has address bits beyond its mask; its subnet is %s", s, p.Masked())
		case p.Bits() > p.Addr().BitLen()-3:
			f.add(key, "%q has no room for pods", s)
		case families[p.Addr().Is4()]:
			f.add(key, "%q is a second subnet of its address family", s)
		}
		families[p.Addr().Is4()] = true
	}
}

// check wants bounds within which every layer can be pulled.
func (i *Images) check(f *faults) {
	f.oneOf("images.store", i.Store, "auto", "erofs", "overlay")
	if err := imageservice.CheckPinned(i.Pinned); err != nil {
		f.add("images.pinned", "%v", err)
	}
	f.absoluteIfAny("images.preload", i.Preload)
	i.Verify.check(f)
	f.between("images.parallel_layers", i.ParallelLayers, 0, 1000)
	f.between("images.connections", i.Connections, 1, 1000)
	f.between("images.connections_per_layer", i.ConnectionsPerLayer, 1, 1000)
	f.between("images.pull_memory_mib", i.PullMemory, imageservice.MinMemory>>20+1, 1<<20)
}

func (s *Security) check(f *faults) {
	f.oneOf("security.apparmor", s.AppArmor, "auto", "on", "off")
	f.oneOf("security.selinux", s.SELinux, "auto", "on", "off")
	f.between("security.selinux_categories", s.Categories, 64, 1<<16)
	if name := s.AppArmorDefault; name == "" || strings.ContainsAny(name, "\n\x00") {
		f.add("security.apparmor_default", "%q is not the name of a profile", name)
	}
}

func (s *Stats) check(f *faults) {
	for _, d := range []struct {
		key   string
		value Duration
	}{{"stats.period", s.Period}, {"stats.layer_period", s.LayerPeriod}} {
		if d.value != 0 && d.value < Duration(time.Second) {
			f.add(d.key, "%s is neither 0 nor a second or more", time.Duration(d.value))
		}
	}
}

func (s *Streaming) check(f *faults) {
	if _, err := netip.ParseAddr(s.Address); err != nil {
		f.add("streaming.address", "%q is not an IP address", s.Address)
	}
	f.between("streaming.port", s.Port, 0, 65535)
	f.positive("streaming.idle_timeout", s.IdleTimeout)
	f.positive("streaming.creation_timeout", s.CreationTimeout)
	if (s.TLSCert == "") != (s.TLSKey == "") {
		f.add("streaming.tls_cert", "must be set together with streaming.tls_key")
	}
	f.absoluteIfAny("streaming.tls_cert", s.TLSCert)
	f.absoluteIfAny("streaming.tls_key", s.TLSKey)
}

// settle fills in what follows from other values.
func (c *Config) settle() {
	c.Root, c.State = filepath.Clean(c.Root), filepath.Clean(c.State)
	for _, list := range []*[]string{&c.CertsDirs, &c.Container.RejectAbsent, &c.CDI.SpecDirs, &c.CNI.BinDirs, &c.NRI.DefaultValidator.RequiredPlugins} {
		if *list == nil {
			*list = []string{}
		}
	}
	if c.RegistryHosts == nil {
		c.RegistryHosts = map[string]RegistryHost{}
	}
	for i, path := range c.Container.RejectAbsent {
		c.Container.RejectAbsent[i] = filepath.Clean(path)
	}
	c.settleInstance()
}

// settleInstance chooses names so that two instances with different roots share no network device and no socket.
func (c *Config) settleInstance() {
	socket := nri.DefaultSocket
	bridge, subnets := "cri0", []string{"10.77.0.0/16", "fd9c:71e4:a0b2::/64"}
	if c.Root != defaultRoot {
		socket = filepath.Join(c.State, "nri.sock")
		h := sha256.Sum256([]byte(c.Root))
		bridge = fmt.Sprintf("cri-%x", h[:4])
		subnets = []string{
			fmt.Sprintf("10.%d.%d.0/20", 78+int(h[0])%49, h[1]&^15),
			fmt.Sprintf("fd9c:%02x%02x:%02x%02x:%02x%02x::/64", h[2], h[3], h[4], h[5], h[6], h[7]),
		}
	}
	c.NRI.SocketPath = cmp.Or(c.NRI.SocketPath, socket)
	c.Network.Bridge = cmp.Or(c.Network.Bridge, bridge)
	if len(c.Network.Subnets) == 0 {
		c.Network.Subnets = subnets
	}
}
