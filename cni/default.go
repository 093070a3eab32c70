package cni

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultNetwork is the embedded network of a machine whose configuration directory is empty: a bridge with addresses
// from host-local, host ports by portmap. Two instances of criserver on one machine need different names, bridges,
// subnets and data directories; then they share nothing.
type DefaultNetwork struct {
	Name    string         // of the network; empty: "criserver"
	Bridge  string         // device, at most 15 bytes; empty: "cri0"
	Subnets []netip.Prefix // one of IPv4, one of IPv6, or both; empty: 10.77.0.0/16 and fd9c:71e4:a0b2::/64
	DataDir string         // of host-local; on a file system that is empty after a reboot, as the addresses then are free
	MTU     int            // of the pods' devices, bytes; 0: the kernel's default
}

func (d *DefaultNetwork) complete() error {
	if d.Name == "" {
		d.Name = "criserver"
	}
	if d.Bridge == "" {
		d.Bridge = "cri0"
	}
	if len(d.Subnets) == 0 {
		d.Subnets = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd9c:71e4:a0b2::/64")}
	}
	if len(d.Bridge) > 15 || strings.ContainsAny(d.Bridge, "/ :") {
		return fmt.Errorf("bridge %q: not a device name", d.Bridge)
	}
	if !filepath.IsAbs(d.DataDir) {
		return fmt.Errorf("data directory %q: must be an absolute path", d.DataDir)
	}
	families := map[bool]bool{}
	for _, s := range d.Subnets {
		// host-local needs a network, a gateway and a pod's address; it counts IPv6 ranges in 64 bits and more.
		if !s.IsValid() || s != s.Masked() || s.Addr().BitLen()-s.Bits() < 2 {
			return fmt.Errorf("subnet %s: must be a network with room for a gateway and a pod", s)
		}
		if families[s.Addr().Is4()] {
			return fmt.Errorf("subnet %s: the second one of its address family", s)
		}
		families[s.Addr().Is4()] = true
	}
	_, err := parseList(d.confList(&Attachment{}))
	return err
}

func (d *DefaultNetwork) snapshot() *snapshot {
	list, err := parseList(d.confList(&Attachment{PortMappings: []PortMapping{{HostPort: 1, ContainerPort: 1}}}))
	if err != nil {
		return &snapshot{problem: err.Error()}
	}
	return &snapshot{list: list}
}

func parseList(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return list, checkList(list)
}

// confList generates the configuration for one pod: a plugin that would only pass the result on is left out, since
// each costs a process or more at every start and stop. The version is 1.0.0 because the plugins know nothing of 1.1's
// verbs: gcDefault does their work.
func (d *DefaultNetwork) confList(a *Attachment) []byte {
	plugins := []any{d.bridgeConf()}
	if len(a.ports()) > 0 {
		plugins = append(plugins, portmapConf())
	}
	if limits, err := bandwidthOf(a.Annotations); err == nil && limits != nil {
		plugins = append(plugins, map[string]any{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}})
	}
	return d.listOf(plugins...)
}

func (d *DefaultNetwork) listOf(plugins ...any) []byte {
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": d.Name, "plugins": plugins})
	if err != nil {
		panic(err) // maps of strings, numbers and booleans
	}
	return data
}

// bridgeConf leaves masquerading to ensure where it can: done by the plugin, one pod at a time through iptables or nft,
// it makes ADD five to ten times slower.
func (d *DefaultNetwork) bridgeConf() map[string]any {
	var ranges, routes []any
	for _, s := range d.usableSubnets() {
		all := "0.0.0.0/0"
		if s.Addr().Is6() {
			all = "::/0"
		}
		ranges = append(ranges, []any{map[string]any{"subnet": s.String()}})
		routes = append(routes, map[string]any{"dst": all})
	}
	conf := map[string]any{
		"type":        "bridge",
		"bridge":      d.Bridge,
		"isGateway":   true,
		"hairpinMode": true, // a pod reaches itself through its own host port
		"ipMasq":      !nftUsable(),
		"ipam":        map[string]any{"type": "host-local", "dataDir": d.DataDir, "ranges": ranges, "routes": routes},
	}
	if d.MTU > 0 {
		conf["mtu"] = d.MTU
	}
	return conf
}

func portmapConf() map[string]any {
	conf := map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true}
	if _, err := exec.LookPath("nft"); err == nil && nftUsable() {
		conf["backend"] = "nftables"
	}
	return conf
}

// usableSubnets leaves IPv6 out where the kernel has it not or has it switched off: the bridge plugin would fail.
func (d *DefaultNetwork) usableSubnets() []netip.Prefix {
	if ipv6Enabled() {
		return d.Subnets
	}
	v4 := slices.DeleteFunc(slices.Clone(d.Subnets), func(s netip.Prefix) bool { return s.Addr().Is6() })
	if len(v4) == 0 {
		return d.Subnets // IPv6 only was asked for: the plugin's error tells best
	}
	return v4
}

func ipv6Enabled() bool {
	for _, scope := range []string{"all", "default"} {
		off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + scope + "/disable_ipv6")
		if err != nil || strings.TrimSpace(string(off)) != "0" {
			return false
		}
	}
	return true
}

// ensureDefault makes sure, before the plugins of list run, that what all pods of the default network share is there. Pods
// that come while one look is under way wait for that one together, each as long as its ctx lasts.
func (n *Network) ensureDefault(ctx context.Context, list *libcni.NetworkConfigList) error {
	d := n.conf.Default
	if d == nil || list.Name != d.Name {
		return nil
	}
	look := n.looks.DoChan("", func() (any, error) {
		n.shared.Lock()
		defer n.shared.Unlock()
		return nil, d.ensure()
	})
	select {
	case result := <-look:
		return result.Err
	case <-ctx.Done():
		return fmt.Errorf("default network %s: look at what its pods share: %w", d.Name, context.Cause(ctx))
	}
}

// ensure looks every time, since `nft flush ruleset` is how many a firewall is reloaded; that costs two netlink requests.
func (d *DefaultNetwork) ensure() error {
	if err := d.ensureBridge(); err != nil {
		return fmt.Errorf("default network %s: bridge %s: %w", d.Name, d.Bridge, err)
	}
	if err := d.keepRouters(); err != nil {
		return fmt.Errorf("default network %s: keep the host's own routers: %w", d.Name, err)
	}
	if err := ensureForwarding(d.Bridge); err != nil {
		return fmt.Errorf("default network %s: accept forwarding: %w", d.Name, err)
	}
	if !nftUsable() {
		return nil
	}
	if err := ensureMasquerade(d.table(), d.Bridge, d.Subnets); err != nil {
		return fmt.Errorf("default network %s: masquerade: %w", d.Name, err)
	}
	return nil
}

// ensureBridge makes the bridge before the plugin does, for two things that the plugin leaves out: no duplicate address
// detection, which keeps IPv6 between host and the first pods silent for seconds, and an address that stays when ports
// come and go.
func (d *DefaultNetwork) ensureBridge() error {
	if _, err := netlink.LinkByName(d.Bridge); !errors.As(err, &netlink.LinkNotFoundError{}) {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = d.Bridge, d.MTU
	attrs.HardwareAddr = make(net.HardwareAddr, 6)
	if _, err := rand.Read(attrs.HardwareAddr); err != nil {
		return err
	}
	attrs.HardwareAddr[0] = attrs.HardwareAddr[0]&^1 | 2 // one device, locally administered
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); errors.Is(err, unix.EEXIST) {
		return nil // another pod's Add was first
	} else if err != nil {
		return err
	}
	for _, name := range []string{"accept_dad", "accept_ra"} { // routes of this device are the plugin's alone
		path := "/proc/sys/net/ipv6/conf/" + d.Bridge + "/" + name
		if err := os.WriteFile(path, []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return netlink.LinkSetUp(bridge)
}

// keepRouters lets the host go on listening to IPv6 routers. The bridge plugin switches forwarding on, and a host that
// forwards ignores router advertisements unless accept_ra is 2: it would lose its default route within the hour.
func (d *DefaultNetwork) keepRouters() error {
	const conf = "/proc/sys/net/ipv6/conf/"
	forwarding, err := os.ReadFile(conf + "all/forwarding")
	if err != nil || strings.TrimSpace(string(forwarding)) != "0" {
		return nil // no IPv6, or done before, by us or somebody who knows what he wants
	}
	devices, err := os.ReadDir(conf)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if slices.Contains([]string{"all", "default", "lo", d.Bridge}, device.Name()) {
			continue
		}
		path := conf + device.Name() + "/accept_ra"
		value, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(value)) != "1" {
			continue // gone meanwhile, or its routes are not the kernel's business
		}
		if err := os.WriteFile(path, []byte("2"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *DefaultNetwork) table() string { return "criserver-" + d.Bridge }

// RemoveDefault removes what the embedded default network leaves when its last pod is gone: bridge, masquerading,
// host-local's directory. It refuses while a pod is attached. The next Add makes them again. portmap's empty chains
// stay, because other networks of the machine may use the same ones.
func (n *Network) RemoveDefault() error {
	d := n.conf.Default
	if d == nil {
		return nil
	}
	n.shared.Lock()
	defer n.shared.Unlock()
	held, err := d.reservations()
	if err != nil {
		return fmt.Errorf("remove default network %s: %w", d.Name, err)
	}
	if len(held) > 0 {
		return fmt.Errorf("remove default network %s: %d attached", d.Name, len(held))
	}
	link, err := netlink.LinkByName(d.Bridge)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if !errors.As(err, &netlink.LinkNotFoundError{}) && err != nil {
		return fmt.Errorf("remove bridge %s: %w", d.Bridge, err)
	}
	removeForwarding(d.Bridge)
	if err := deleteTable(d.table()); err != nil {
		return fmt.Errorf("remove default network %s: masquerade: %w", d.Name, err)
	}
	return os.RemoveAll(filepath.Join(d.DataDir, d.Name))
}

// reservations are the attachments that host-local keeps addresses for: one file an address, with the container's id
// and the device's name in two lines.
func (d *DefaultNetwork) reservations() ([]Attached, error) {
	dir := filepath.Join(d.DataDir, d.Name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var held []Attached
	for _, entry := range entries {
		if _, err := netip.ParseAddr(strings.ReplaceAll(entry.Name(), "_", ":")); err != nil {
			continue // lock, last_reserved_ip.0
		}
		data, err := readBounded(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		id, ifName, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
		a := Attached{ContainerID: strings.TrimSpace(id), IfName: strings.TrimSpace(ifName)}
		if a.IfName == "" {
			a.IfName = DefaultIfName
		}
		if !slices.Contains(held, a) {
			held = append(held, a)
		}
	}
	return held, nil
}

// gcDefault runs a DEL for every reservation whose attachment is not in live. Of such a one nothing is known but its
// id: the port mapping is made up, because portmap removes all rules of the id but only if it is given some mapping.
func (n *Network) gcDefault(ctx context.Context, live []Attached) error {
	held, err := n.conf.Default.reservations()
	if err != nil {
		return fmt.Errorf("collect network garbage: %w", err)
	}
	var errs []error
	for _, a := range held {
		if slices.Contains(live, a) {
			continue
		}
		stale := Attachment{ContainerID: a.ContainerID, IfName: a.IfName,
			PortMappings: []PortMapping{{HostPort: 1, ContainerPort: 1}}}
		if err := n.Del(ctx, Debt{Attachment: stale, ConfList: n.conf.Default.confList(&stale)}); err != nil {
			errs = append(errs, fmt.Errorf("collect the addresses of container %s: %w", a.ContainerID, err))
		}
	}
	return errors.Join(errs...)
}
