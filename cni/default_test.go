package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestDefaultNetworkReachesHostAndPods(t *testing.T) {
	n := testNetwork(t)
	server, client := newPod(t), newPod(t)
	_, result := attach(t, n, server.attachment())
	attach(t, n, client.attachment())
	if len(result.IPs) != 2 || !result.IPs[0].Is4() || !result.IPs[1].Is6() {
		t.Fatalf("addresses %v: want one of IPv4, then one of IPv6", result.IPs)
	}
	for i, ip := range result.IPs {
		if !n.conf.Default.Subnets[i].Contains(ip) {
			t.Errorf("address %v is not of %v", ip, n.conf.Default.Subnets[i])
		}
	}
	server.listen(8080)
	for _, ip := range result.IPs {
		for name, from := range map[string]*os.File{"host": nil, "pod": client.ns, "itself": server.ns} {
			if said, err := hear(from, hostPort(ip, 8080)); said != server.id || err != nil {
				t.Errorf("from %s to %v: heard %q, %v", name, ip, said, err)
			}
		}
	}
	for _, loopback := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		if said, err := hear(server.ns, loopback); said != server.id || err != nil {
			t.Errorf("pod to its own %s: heard %q, %v", loopback, said, err)
		}
	}
}

// The configuration that plugins get is an interface: DEL of an older criserver's pod must go on working.
func TestGeneratedConfiguration(t *testing.T) {
	needHost(t) // that has IPv6 and nftables
	d := DefaultNetwork{DataDir: "/data", MTU: 1400}
	if err := d.complete(); err != nil {
		t.Fatal(err)
	}
	const bridge = `{"bridge":"cri0","hairpinMode":true,"ipMasq":false,"ipam":{"dataDir":"/data","ranges":[[{"subnet":"10.77.0.0/16"}],` +
		`[{"subnet":"fd9c:71e4:a0b2::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"type":"host-local"},` +
		`"isGateway":true,"mtu":1400,"type":"bridge"}`
	const portmap = `{"backend":"nftables","capabilities":{"portMappings":true},"snat":true,"type":"portmap"}`
	const bandwidth = `{"capabilities":{"bandwidth":true},"type":"bandwidth"}`
	ports := []PortMapping{{HostPort: 1, ContainerPort: 1}}
	limits := map[string]string{EgressBandwidth: "1M"}
	for _, tc := range []struct {
		name    string
		pod     Attachment
		plugins []string
	}{
		{"plain pod", Attachment{}, []string{bridge}},
		{"host port", Attachment{PortMappings: ports}, []string{bridge, portmap}},
		{"port of the pod only", Attachment{PortMappings: []PortMapping{{ContainerPort: 1}}}, []string{bridge}},
		{"bandwidth", Attachment{Annotations: limits}, []string{bridge, bandwidth}},
		{"both", Attachment{Annotations: limits, PortMappings: ports}, []string{bridge, portmap, bandwidth}},
	} {
		want := `{"cniVersion":"1.0.0","name":"criserver","plugins":[` + strings.Join(tc.plugins, ",") + `]}`
		if got := string(d.confList(&tc.pod)); got != want {
			t.Errorf("%s: generated\n%s\nwant\n%s", tc.name, got, want)
		}
	}
}

func TestAddressesAreFreeAfterDel(t *testing.T) {
	n := testNetwork(t, func(c *Config) {
		c.Default.Subnets = []netip.Prefix{netip.MustParsePrefix("10.230.0.0/30")} // room for one pod
	})
	for range 3 {
		p := newPod(t)
		debt, result := attach(t, n, p.attachment())
		if want := netip.MustParseAddr("10.230.0.2"); result.IPs[0] != want {
			t.Fatalf("address %v, want %v", result.IPs[0], want)
		}
		detach(t, n, debt)
	}
	if held, err := n.conf.Default.reservations(); len(held) != 0 || err != nil {
		t.Errorf("reservations after DEL: %v, %v", held, err)
	}
}

func TestFullNetworkFailsAndOwesNothing(t *testing.T) {
	n := testNetwork(t, func(c *Config) {
		c.Default.Subnets = []netip.Prefix{netip.MustParsePrefix("10.231.0.0/30")}
	})
	attach(t, n, newPod(t).attachment())
	debt, err := n.Plan(newPod(t).attachment())
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Add(context.Background(), debt)
	var failed *AddError
	if !errors.As(err, &failed) || failed.Undo != nil || !strings.Contains(err.Error(), "plugin bridge: ADD failed") {
		t.Errorf("ADD to a full network: %v", err)
	}
	if held, _ := n.conf.Default.reservations(); len(held) != 1 {
		t.Errorf("reservations %v, want that of the first pod only", held)
	}
}

func TestDelWithoutNamespace(t *testing.T) {
	for _, tc := range []struct {
		name string
		lose func(*testPod)
	}{
		{"file and namespace gone", func(p *testPod) { _ = UnpinNetNS(p.path) }},
		{"an empty file is left", func(p *testPod) {
			_ = UnpinNetNS(p.path)
			_ = os.WriteFile(p.path, nil, 0o444)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, p := testNetwork(t), newPod(t)
			debt, _ := attach(t, n, p.attachment())
			tc.lose(p)
			detach(t, n, debt)
			detach(t, n, debt) // again: idempotent
			if held, err := n.conf.Default.reservations(); len(held) != 0 || err != nil {
				t.Errorf("reservations after DEL: %v, %v", held, err)
			}
		})
	}
}

func TestHostPorts(t *testing.T) {
	n := testNetwork(t)
	p := newPod(t)
	a := p.attachment()
	a.PortMappings = []PortMapping{
		{HostPort: 12000, ContainerPort: 8080, Protocol: "TCP"},
		{HostPort: 12001, ContainerPort: 8080, HostIP: "127.0.0.1"},
		{HostPort: 0, ContainerPort: 9999, Protocol: "sctp"},
	}
	debt, _ := attach(t, n, a)
	p.listen(8080)
	gateway := n.conf.Default.Subnets[0].Addr().Next()
	for _, addr := range []string{"127.0.0.1:12000", hostPort(gateway, 12000), "127.0.0.1:12001"} {
		if said, err := hear(nil, addr); said != p.id || err != nil {
			t.Errorf("host port %s: heard %q, %v", addr, said, err)
		}
	}
	if said, err := hear(p.ns, hostPort(gateway, 12000)); said != p.id || err != nil {
		t.Errorf("a pod to its own host port: heard %q, %v", said, err)
	}
	if _, err := hear(nil, hostPort(gateway, 12001)); err == nil {
		t.Error("host port 12001 answers on another address than 127.0.0.1")
	}
	detach(t, n, debt)
	if _, err := hear(nil, "127.0.0.1:12000"); err == nil {
		t.Error("host port 12000 answers after DEL")
	}
}

func TestGCFreesWhatNobodyOwns(t *testing.T) {
	n := testNetwork(t)
	kept, lost := newPod(t), newPod(t)
	attach(t, n, kept.attachment())
	a := lost.attachment()
	a.PortMappings = []PortMapping{{HostPort: 12002, ContainerPort: 80}}
	attach(t, n, a)
	if err := n.GC(context.Background(), []Attached{{ContainerID: kept.id}}); err != nil {
		t.Fatal(err)
	}
	held, err := n.conf.Default.reservations()
	if want := []Attached{{kept.id, DefaultIfName}}; err != nil || !slices.Equal(held, want) {
		t.Errorf("reservations after GC: %v, %v; want %v", held, err, want)
	}
	if rules := ruleset(t); strings.Contains(rules, "12002") {
		t.Errorf("host port of the lost pod is still there after GC:\n%s", rules)
	}
}

func ruleset(t *testing.T) string {
	t.Helper()
	var all string
	for _, tool := range [][]string{{"nft", "list", "ruleset"}, {"iptables-legacy-save"}} {
		out, err := exec.Command(tool[0], tool[1:]...).Output()
		if err == nil {
			all += string(out)
		}
	}
	return all
}

func TestMasqueradeComesBackAfterFlush(t *testing.T) {
	n := testNetwork(t)
	d := n.conf.Default
	if !nftUsable() {
		t.Skip("the kernel has no nftables")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft to read and flush the rules")
	}
	for range 2 {
		attach(t, n, newPod(t).attachment())
		attach(t, n, newPod(t).attachment())
		rules, err := exec.Command("nft", "list", "table", "inet", d.table()).CombinedOutput()
		if err != nil {
			t.Fatalf("no masquerading: %s", rules)
		}
		for _, s := range d.Subnets {
			family := "ip"
			if s.Addr().Is6() {
				family = "ip6"
			}
			want := family + " saddr " + s.String() + ` oifname != "` + d.Bridge + `" masquerade`
			if strings.Count(string(rules), want) != 1 {
				t.Errorf("rules do not have exactly one %q:\n%s", want, rules)
			}
		}
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			t.Fatalf("flush: %s", out)
		}
	}
}

func TestParallelAdds(t *testing.T) {
	n := testNetwork(t)
	const pods = 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	for range pods {
		p := newPod(t)
		wg.Go(func() {
			debt, err := n.Plan(p.attachment())
			if err != nil {
				t.Error(err)
				return
			}
			result, err := n.Add(context.Background(), debt)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			for _, ip := range result.IPs {
				if other, taken := seen[ip]; taken {
					t.Errorf("%v given to %s and %s", ip, other, p.id)
				}
				seen[ip] = p.id
			}
			mu.Unlock()
			debt.Result = result.Raw
			if err := n.Del(context.Background(), debt); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(seen) != 2*pods {
		t.Errorf("%d addresses, want %d", len(seen), 2*pods)
	}
	if held, err := n.conf.Default.reservations(); len(held) != 0 || err != nil {
		t.Errorf("reservations after all DELs: %v, %v", held, err)
	}
}

func TestDebtSurvivesJSON(t *testing.T) {
	n, p := testNetwork(t), newPod(t)
	debt, _ := attach(t, n, p.attachment())
	data, err := json.Marshal(debt)
	if err != nil {
		t.Fatal(err)
	}
	var read Debt
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	// Another Network, as after a restart with another configuration: what Del needs is in the debt.
	other := openNetwork(t, Config{ConfDir: t.TempDir(), BinDirs: []string{pluginDir}})
	detach(t, other, read)
	if held, err := n.conf.Default.reservations(); len(held) != 0 || err != nil {
		t.Errorf("reservations after DEL: %v, %v", held, err)
	}
}

func TestDefaultNetworkIsRemoved(t *testing.T) {
	n, p := testNetwork(t), newPod(t)
	if _, err := exec.LookPath("iptables-nft"); err == nil {
		runTool(t, "iptables-nft", "-P", "FORWARD", "DROP")
		t.Cleanup(func() { runTool(t, "iptables-nft", "-P", "FORWARD", "ACCEPT") })
	}
	debt, _ := attach(t, n, p.attachment())
	if err := n.RemoveDefault(); err == nil || !strings.Contains(err.Error(), "1 attached") {
		t.Errorf("removed while a pod is attached: %v", err)
	}
	detach(t, n, debt)
	if err := n.RemoveDefault(); err != nil {
		t.Fatal(err)
	}
	d := n.conf.Default
	if _, err := os.Stat("/proc/sys/net/ipv4/conf/" + d.Bridge); err == nil {
		t.Errorf("bridge %s is left", d.Bridge)
	}
	if entries, err := os.ReadDir(filepath.Join(d.DataDir, d.Name)); err == nil {
		t.Errorf("files of host-local are left: %v", entries)
	}
	if rules := ruleset(t); strings.Contains(rules, d.Bridge) {
		t.Errorf("rules for %s are left:\n%s", d.Bridge, rules)
	}
}
