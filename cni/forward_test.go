package cni

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// outside is a machine next to the test host: it knows no route to the pods.
var outsideNet = []struct{ host, outside string }{
	{"192.0.2.1/24", "192.0.2.2/24"},
	{"2001:db8::1/64", "2001:db8::2/64"},
}

func newOutside(t *testing.T) *testPod {
	t.Helper()
	p := newPod(t)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "out-host"})
	veth.PeerName = "out-peer"
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	peer, err := netlink.LinkByName("out-peer")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, int(p.ns.Fd())))
	for _, n := range outsideNet {
		giveAddress(t, "out-host", n.host)
		must(t, inNetNS(p.ns, func() error { giveAddress(t, "out-peer", n.outside); return nil }))
	}
	return p
}

func giveAddress(t *testing.T, device, address string) {
	t.Helper()
	link, err := netlink.LinkByName(device)
	must(t, err)
	addr, err := netlink.ParseAddr(address)
	must(t, err)
	addr.Flags = 0x02 // IFA_F_NODAD
	must(t, netlink.LinkSetUp(link))
	must(t, netlink.AddrAdd(link, addr))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// runTool skips the test if the tool is not there.
func runTool(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s", name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Skipf("%s %v does not work here: %s", name, args, out)
	}
}

func TestTheWorldOutside(t *testing.T) {
	for _, tc := range []struct {
		name string
		drop []string // tools that set the policy of forwarding to DROP
	}{
		{"open host", nil},
		{"forwarding dropped", []string{"iptables-nft", "ip6tables-nft"}},
		{"forwarding dropped by the older tables", []string{"iptables-legacy", "ip6tables-legacy"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := testNetwork(t)
			outside := newOutside(t)
			for _, tool := range tc.drop {
				runTool(t, tool, "-P", "FORWARD", "DROP")
				t.Cleanup(func() { runTool(t, tool, "-P", "FORWARD", "ACCEPT") })
			}
			p := newPod(t)
			a := p.attachment()
			a.PortMappings = []PortMapping{{HostPort: 12010, ContainerPort: 80}}
			attach(t, n, a)
			attach(t, n, newPod(t).attachment()) // nothing is done twice
			outside.listen(80)
			p.listen(80)
			for _, net := range outsideNet {
				host, out := netip.MustParsePrefix(net.host).Addr(), netip.MustParsePrefix(net.outside).Addr()
				if said, err := hear(p.ns, hostPort(out, 80)); said != outside.id || err != nil {
					t.Errorf("pod to outside %v: heard %q, %v", out, said, err)
				}
				if said, err := hear(outside.ns, hostPort(host, 12010)); said != p.id || err != nil {
					t.Errorf("outside to host port at %v: heard %q, %v", host, said, err)
				}
			}
			for _, tool := range tc.drop {
				if rules, err := iptables(t.Context(), tool, "-S", "FORWARD"); strings.Count(rules, n.conf.Default.Bridge) != 2 {
					t.Errorf("rules of %s, want one for each direction: %s, %v", tool, rules, err)
				}
			}
		})
	}
}

func TestNoIPv6(t *testing.T) {
	const off = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
	n, p := testNetwork(t), newPod(t)
	writeFile(t, off, "1", 0)
	t.Cleanup(func() {
		writeFile(t, off, "0", 0)
		writeFile(t, "/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0", 0)
	})
	_, result := attach(t, n, p.attachment())
	if len(result.IPs) != 1 || !result.IPs[0].Is4() {
		t.Errorf("addresses %v, want one of IPv4", result.IPs)
	}
}

func TestBandwidth(t *testing.T) {
	n, p := testNetwork(t), newPod(t)
	a := p.attachment()
	a.Annotations = map[string]string{IngressBandwidth: "10M"}
	debt, err := n.Plan(a)
	must(t, err)
	if !strings.Contains(string(debt.ConfList), `"bandwidth"`) {
		t.Fatalf("no bandwidth plugin for a pod with a limit: %s", debt.ConfList)
	}
	_, result := attach(t, n, a)
	if !strings.Contains(string(result.Raw), "veth") {
		t.Fatalf("result %s", result.Raw)
	}
	links, err := netlink.LinkList()
	must(t, err)
	var limited int
	for _, link := range links {
		qdiscs, err := netlink.QdiscList(link)
		must(t, err)
		for _, q := range qdiscs {
			if tbf, ok := q.(*netlink.Tbf); ok && tbf.Rate == 10_000_000/8 {
				limited++
			}
		}
	}
	if limited != 1 {
		t.Errorf("%d devices are limited to 10 Mbit/s, want 1", limited)
	}
}

func TestDefaultNetworkConfig(t *testing.T) {
	for _, tc := range []struct {
		name string
		d    DefaultNetwork
		want string
	}{
		{"only what must be given", DefaultNetwork{DataDir: "/x"}, ""},
		{"one family", DefaultNetwork{DataDir: "/x", Subnets: prefixes("fd00:1::/64")}, ""},
		{"no directory", DefaultNetwork{}, `data directory ""`},
		{"long bridge", DefaultNetwork{DataDir: "/x", Bridge: "sixteen-letters!"}, `bridge "sixteen-letters!"`},
		{"tiny subnet", DefaultNetwork{DataDir: "/x", Subnets: prefixes("10.0.0.0/31")}, "subnet 10.0.0.0/31"},
		{"address in it", DefaultNetwork{DataDir: "/x", Subnets: prefixes("10.0.0.1/24")}, "subnet 10.0.0.1/24"},
		{"one family twice", DefaultNetwork{DataDir: "/x", Subnets: prefixes("10.0.0.0/24", "10.1.0.0/24")}, "second one"},
		{"bad name", DefaultNetwork{DataDir: "/x", Name: "a/b"}, `network name "a/b"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := New(Config{ConfDir: t.TempDir(), BinDirs: []string{"/x"}, Default: &tc.d})
			if err == nil {
				_ = n.Close()
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := os.Stat("/x"); err == nil {
		t.Error("New made a directory")
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestHostKeepsItsRouters(t *testing.T) {
	n, p := testNetwork(t), newPod(t)
	newOutside(t)
	const conf = "/proc/sys/net/ipv6/conf/"
	for _, tc := range []struct{ was, want string }{{"1", "2\n"}, {"0", "0\n"}} {
		must(t, os.WriteFile(conf+"all/forwarding", []byte("0"), 0))
		must(t, os.WriteFile(conf+"out-host/accept_ra", []byte(tc.was), 0))
		debt, _ := attach(t, n, p.attachment())
		detach(t, n, debt)
		forwards, _ := os.ReadFile(conf + "all/forwarding")
		got, err := os.ReadFile(conf + "out-host/accept_ra")
		if string(forwards) != "1\n" || string(got) != tc.want || err != nil {
			t.Errorf("accept_ra %s became %q (forwarding %q), %v; want %q", tc.was, got, forwards, err, tc.want)
		}
	}
}

// A tool that writes much and leaves a process behind neither fills an error nor holds up.
func TestIPTablesFails(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "iptables-odd"), []byte("#!/bin/sh\nsleep 1000 &\nhead -c 1000000 /dev/zero | tr '\\0' x\nexit 3\n"), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	_, err := iptables(t.Context(), "iptables-odd", "-S")
	if err == nil || !strings.Contains(err.Error(), "iptables-odd -S: exit status 3") || len(err.Error()) > 2*maxStderr {
		t.Errorf("%.100v", err)
	}
	if _, err := iptables(t.Context(), "iptables-absent", "-S"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a tool that is not there: %v", err)
	}
}
