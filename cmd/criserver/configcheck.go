package main

import (
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
	var faults []string
	add := func(key, format string, args ...any) { faults = append(faults, key+": "+fmt.Sprintf(format, args...)) }
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			add(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
		}
	}
	absolute := func(key string, paths ...string) {
		for _, p := range paths {
			if !filepath.IsAbs(p) {
				add(key, "%q is not an absolute path", p)
			}
		}
	}
	socket, ok := strings.CutPrefix(c.Address, "unix://")
	if !ok || !filepath.IsAbs(socket) {
		add("address", "%q is not of the form unix:///path", c.Address)
	} else if len(socket) > maxSocketPath {
		add("address", "%q is longer than the %d bytes of a socket's path", c.Address, maxSocketPath)
	}
	absolute("root", c.Root)
	absolute("state", c.State)
	if filepath.Clean(c.Root) == filepath.Clean(c.State) {
		add("state", "must not be the same directory as root")
	}
	if c.Pause != "" {
		absolute("pause", c.Pause)
	}
	if c.BlockIO != "" {
		absolute("blockio", c.BlockIO)
	}
	absolute("certs_dirs", c.CertsDirs...)
	absolute("container.absent_mount_sources_to_reject", c.Container.RejectAbsent...)
	absolute("cdi.spec_dirs", c.CDI.SpecDirs...)
	absolute("cni.conf_dir", c.CNI.ConfDir)
	if c.CNI.ConfTemplate != "" {
		absolute("cni.conf_template", c.CNI.ConfTemplate)
	}
	absolute("cni.bin_dirs", c.CNI.BinDirs...)
	oneOf("cgroup_driver", c.CgroupDriver, "auto", "cgroupfs", "systemd")
	oneOf("pause_cgroup", c.PauseCgroup, "pod", "runtime")
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	if err := imageservice.CheckPinned(c.Images.Pinned); err != nil {
		add("images.pinned", "%v", err)
	}
	c.Images.Verify.check(absolute, add)
	if c.Images.Preload != "" {
		absolute("images.preload", c.Images.Preload)
	}
	checkPulls(c.Images, add)
	checkMetrics(c.Metrics, add)
	oneOf("images.store", c.Images.Store, "auto", "erofs", "overlay")
	oneOf("network.default", c.Network.Default, "on", "off")
	oneOf("security.apparmor", c.Security.AppArmor, "auto", "on", "off")
	oneOf("security.selinux", c.Security.SELinux, "auto", "on", "off")
	if n := c.Security.Categories; n < 64 || n > 1<<16 {
		add("security.selinux_categories", "%d is not between 64 and %d", n, 1<<16)
	}
	if name := c.Security.AppArmorDefault; name == "" || strings.ContainsAny(name, "\n\x00") {
		add("security.apparmor_default", "%q is not the name of a profile", name)
	}
	faults = append(faults, checkNRI(c.NRI)...)
	if c.Log.Slow < 0 {
		add("log.slow", "must not be negative")
	}
	for _, d := range []struct {
		key   string
		value Duration
	}{{"stats.period", c.Stats.Period}, {"stats.layer_period", c.Stats.LayerPeriod}} {
		if d.value != 0 && d.value < Duration(time.Second) {
			add(d.key, "%s is neither 0 nor a second or more", time.Duration(d.value))
		}
	}
	if n := c.Container.WritableLimit; n < 0 {
		add("container.writable_limit", "%d is less than 0, which means no limit", n)
	}
	if n := c.Container.LogLineMax; n < 256 || n > 1<<20 {
		add("container.log_line_max", "%d is not between 256 and %d", n, 1<<20)
	}
	checkStreaming(&c.Streaming, add)
	faults = append(faults, checkRegistries(c)...)
	if len(c.Network.Bridge) > 15 || strings.ContainsAny(c.Network.Bridge, "/ \t\n:") {
		add("network.bridge", "%q is not the name of a network device", c.Network.Bridge)
	}
	for _, fault := range checkSubnets(c.Network.Subnets) {
		add("network.subnets", "%s", fault)
	}
	return append(faults, checkHandlers(c.Handlers)...)
}

func checkStreaming(s *Streaming, add func(key, format string, args ...any)) {
	if _, err := netip.ParseAddr(s.Address); err != nil {
		add("streaming.address", "%q is not an IP address", s.Address)
	}
	if s.Port < 0 || s.Port > 65535 {
		add("streaming.port", "%d is not between 0 and 65535", s.Port)
	}
	if s.IdleTimeout <= 0 {
		add("streaming.idle_timeout", "must be positive")
	}
	if s.CreationTimeout <= 0 {
		add("streaming.creation_timeout", "must be positive")
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		add("streaming.tls_cert", "must be set together with streaming.tls_key")
	}
	for _, file := range []struct{ key, path string }{{"streaming.tls_cert", s.TLSCert}, {"streaming.tls_key", s.TLSKey}} {
		if file.path != "" && !filepath.IsAbs(file.path) {
			add(file.key, "%q is not an absolute path", file.path)
		}
	}
}

// checkSubnets wants subnets with room for pods, one per address family.
func checkSubnets(list []string) []string {
	var faults []string
	families := map[bool]bool{}
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			faults = append(faults, fmt.Sprintf("%q is not a subnet such as 10.77.0.0/16", s))
			continue
		case p != p.Masked():
			faults = append(faults, fmt.Sprintf("%q has address bits beyond its mask; its subnet is %s", s, p.Masked()))
		case p.Bits() > p.Addr().BitLen()-3:
			faults = append(faults, fmt.Sprintf("%q has no room for pods", s))
		case families[p.Addr().Is4()]:
			faults = append(faults, fmt.Sprintf("%q is a second subnet of its address family", s))
		}
		families[p.Addr().Is4()] = true
	}
	return faults
}

// settle fills in what follows from other values, so that two instances with different roots share no network device and no socket.
func (c *Config) settle() {
	c.Root, c.State = filepath.Clean(c.Root), filepath.Clean(c.State)
	if c.CertsDirs == nil {
		c.CertsDirs = []string{}
	}
	if c.RegistryHosts == nil {
		c.RegistryHosts = map[string]RegistryHost{}
	}
	if c.Container.RejectAbsent == nil {
		c.Container.RejectAbsent = []string{}
	}
	for i, path := range c.Container.RejectAbsent {
		c.Container.RejectAbsent[i] = filepath.Clean(path)
	}
	if c.CDI.SpecDirs == nil {
		c.CDI.SpecDirs = []string{}
	}
	if c.CNI.BinDirs == nil {
		c.CNI.BinDirs = []string{}
	}
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
	if c.NRI.SocketPath == "" {
		c.NRI.SocketPath = socket
	}
	if c.NRI.DefaultValidator.RequiredPlugins == nil {
		c.NRI.DefaultValidator.RequiredPlugins = []string{}
	}
	if c.Network.Bridge == "" {
		c.Network.Bridge = bridge
	}
	if len(c.Network.Subnets) == 0 {
		c.Network.Subnets = subnets
	}
}
