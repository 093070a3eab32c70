package critest

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// read reads the JSON of a verbose answer into value.
func (d *daemon) readInfo(t *testing.T, info map[string]string, key string, value any) {
	t.Helper()
	if err := json.Unmarshal([]byte(info[key]), value); err != nil {
		t.Fatalf("info %q is %q: %v", key, info[key], err)
	}
}

func TestRuntimeStatus(t *testing.T) {
	d := use(t)
	r, err := d.runtime.Status(bounded(t), &cri.StatusRequest{})
	if err != nil || len(r.GetInfo()) != 0 {
		t.Fatalf("info of a status that is not verbose: %v, %v", r.GetInfo(), err)
	}
	for _, kind := range []string{cri.RuntimeReady, cri.NetworkReady} {
		if c := condition(r, kind); !c.GetStatus() || c.GetReason() != "" {
			t.Errorf("%s: %v", kind, c)
		}
	}
	handlers := r.GetRuntimeHandlers()
	if len(handlers) == 0 || handlers[0].GetName() != "" || handlers[0].GetFeatures() == nil {
		t.Errorf("handlers: %v", handlers)
	}
	if f := r.GetFeatures(); !f.GetSupplementalGroupsPolicy() || f.GetUserNamespacesHostNetwork() != handlers[0].GetFeatures().GetUserNamespaces() || !f.GetMountOptions() {
		t.Errorf("features: %v", f)
	}
	if r, err = d.runtime.Status(bounded(t), &cri.StatusRequest{Verbose: true}); err != nil {
		t.Fatal(err)
	}
	var config struct{ RootDir, StateDir string }
	d.readInfo(t, r.GetInfo(), "config", &config)
	if config.RootDir != d.root() || config.StateDir != d.state() {
		t.Errorf("config: %+v", config)
	}
	var golang string
	if d.readInfo(t, r.GetInfo(), "golang", &golang); !strings.HasPrefix(golang, "go1.") {
		t.Errorf("golang: %q", golang)
	}
	var network struct {
		PluginDirs    []string
		PluginConfDir string
		Networks      []struct {
			IFName string
			Config struct {
				Name    string
				Plugins []struct{ Network struct{ Type string } }
				Source  string
			}
		}
	}
	d.readInfo(t, r.GetInfo(), "cniconfig", &network)
	if network.PluginConfDir != d.cniDir() || len(network.PluginDirs) < 2 || len(network.Networks) != 1 || network.Networks[0].IFName != "eth0" ||
		network.Networks[0].Config.Name != "criserver" || network.Networks[0].Config.Plugins[0].Network.Type != "bridge" || network.Networks[0].Config.Source == "" {
		t.Errorf("cniconfig: %+v", network)
	}
	if s := r.GetInfo()["lastCNILoadStatus"]; s != "OK" {
		t.Errorf("lastCNILoadStatus: %q", s)
	}
}

// A network that cannot be used is told as the kubelet and operators know it, and so is its return.
func TestRuntimeStatusWithoutANetwork(t *testing.T) {
	d := use(t)
	file := write(t, filepath.Join(d.cniDir(), "10-broken.conflist"), "{")
	t.Cleanup(func() { _ = os.Remove(file) }) // was removed already, unless the test failed
	var r *cri.StatusResponse
	status := func() *cri.RuntimeCondition {
		var err error
		if r, err = d.runtime.Status(bounded(t), &cri.StatusRequest{Verbose: true}); err != nil {
			t.Fatal(err)
		}
		return condition(r, cri.NetworkReady)
	}
	eventually(t, rpcBound, "the network is not ready", func() bool { return !status().GetStatus() })
	if c := status(); c.GetReason() != "NetworkPluginNotReady" || !strings.Contains(c.GetMessage(), file) || !condition(r, cri.RuntimeReady).GetStatus() {
		t.Errorf("conditions: %v", r.GetStatus())
	}
	if s := r.GetInfo()["lastCNILoadStatus"]; !strings.Contains(s, file) {
		t.Errorf("lastCNILoadStatus: %q", s)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	eventually(t, rpcBound, "the network is ready", func() bool { return status().GetStatus() })
}

// podInfo is what tools read of the verbose status of a pod.
type podInfo struct {
	Pid                int
	ProcessStatus      string
	NetNamespaceClosed bool
	RuntimeHandler     string
	Config             struct {
		Metadata struct{ Name string }
	}
	RuntimeSpec *struct {
		Hostname string
		Linux    struct {
			CgroupsPath string
			Namespaces  []struct{ Type, Path string }
		}
	}
	CNIResult *struct {
		Interfaces map[string]struct {
			Mac, Sandbox string
			IPConfigs    []struct{ IP, Gateway netip.Addr }
		}
	}
}

func (p *pod) info(t *testing.T) (info podInfo) {
	t.Helper()
	r, err := p.d.runtime.PodSandboxStatus(bounded(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	p.d.readInfo(t, r.GetInfo(), "info", &info)
	return info
}

func TestVerbosePodStatus(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) { c.Hostname = "myhost" })
	c := p.start(t, idle)
	c.waitOutput(t, "ready")
	info := p.info(t)
	if info.Pid != p.pause(t) || info.ProcessStatus != "running" || info.NetNamespaceClosed || info.Config.Metadata.Name != p.config.Metadata.Name || info.RuntimeSpec.Hostname != "myhost" {
		t.Errorf("info: %+v", info)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces { // each path leads to what the container is in
		name := map[string]string{"network": "net", "ipc": "ipc", "uts": "uts"}[ns.Type]
		is, err := os.Stat(ns.Path)
		if err != nil {
			t.Fatal(err)
		}
		container, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", c.firstProcess(t), name))
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(is, container) {
			t.Errorf("%s namespace %s is not that of the container", ns.Type, ns.Path)
		}
	}
	if n := len(info.RuntimeSpec.Linux.Namespaces); n != 3 {
		t.Errorf("%d namespaces", n)
	}
	eth0 := info.CNIResult.Interfaces["eth0"]
	ip := netip.MustParseAddr(p.status(t).GetNetwork().GetIp())
	if len(eth0.IPConfigs) != 2 || eth0.IPConfigs[0].IP != ip || !eth0.IPConfigs[0].Gateway.IsValid() || eth0.Sandbox != "/run/netns/cri-"+p.id {
		t.Errorf("eth0: %+v", eth0)
	}
	p.stop(t)
	if info := p.info(t); info.Pid != 0 || info.ProcessStatus != "deleted" || !info.NetNamespaceClosed || info.CNIResult != nil || info.RuntimeSpec != nil {
		t.Errorf("info of a stopped pod: %+v", info)
	}
	host := runPod(t, d).info(t)
	if host.NetNamespaceClosed || host.CNIResult != nil {
		t.Errorf("info of a pod on the host's network: %+v", host)
	}
}

func TestVerboseContainerStatus(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.create(t, idle, func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "SHOWN", Value: []byte("yes")}}
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	})
	type spec struct {
		Process struct{ Args, Env []string }
		Mounts  []struct{ Destination string }
		Linux   struct {
			Seccomp struct{ Syscalls []any }
		}
	}
	var first spec
	for _, when := range []string{"created", "running", "after a restart", "exited"} {
		switch when {
		case "running":
			if err := c.tryStart(t); err != nil {
				t.Fatal(err)
			}
		case "after a restart":
			d.crash(t)
			d.resume(t)
		case "exited":
			c.stop(t, 0)
		}
		r, err := d.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: c.id[:12], Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			SandboxID, SnapshotKey, RuntimeType string
			Pid                                 int
			Removing                            bool
			Config                              struct {
				Metadata struct{ Name string }
			}
			RuntimeSpec spec
		}
		d.readInfo(t, r.GetInfo(), "info", &info)
		if info.SandboxID != p.id || info.SnapshotKey != c.id || info.Removing || info.Config.Metadata.Name != c.config.Metadata.Name ||
			(info.Pid != 0) != (when == "running" || when == "after a restart") {
			t.Errorf("%s: %+v", when, info)
		}
		s := info.RuntimeSpec
		if len(s.Process.Args) != 3 || !strings.Contains(strings.Join(s.Process.Env, " "), "SHOWN=yes") || len(s.Mounts) == 0 || len(s.Linux.Seccomp.Syscalls) == 0 {
			t.Errorf("%s: spec %+v", when, s)
		}
		if when == "created" {
			first = s
		} else if got, want := fmt.Sprint(s), fmt.Sprint(first); got != want {
			t.Errorf("%s: spec\n%s\ninstead of\n%s", when, got, want)
		}
	}
}

func TestVerboseImageStatus(t *testing.T) {
	d := use(t)
	r, err := d.images.ImageStatus(bounded(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: suite.busybox}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		ChainID   string
		ImageSpec struct {
			OS     string
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
	}
	d.readInfo(t, r.GetInfo(), "info", &info)
	if info.ImageSpec.OS != "linux" || len(info.ImageSpec.RootFS.DiffIDs) != 1 || info.ChainID != info.ImageSpec.RootFS.DiffIDs[0] {
		t.Errorf("info: %+v", info)
	}
}

// The kubelet tells the node's pod CIDR, the operator's template makes a network of it, and pods are on it.
func TestPodCIDR(t *testing.T) {
	if unfit != "" {
		t.Skip(unfit)
	}
	d, err := makeDaemon("cidr", storeAuto)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	template := filepath.Join(d.dir, "net.template")
	write(t, d.config(), strings.Replace(string(text), "[cni]\n", fmt.Sprintf("[cni]\nconf_template = %q\n", template), 1))
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	pull(t, d, suite.busybox)
	if err := d.warm(&suiteTB{dir: d.dir}); err != nil {
		t.Fatal(err)
	}
	check(t, d)
	t.Cleanup(func() {
		if err := os.Remove(filepath.Join(d.cniDir(), "10-criserver-net.conflist")); err != nil {
			t.Error(err)
		}
		link, err := netlink.LinkByName("critcidr")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Error(err)
		}
	})
	tell := func(cidr string) error {
		_, err := d.runtime.UpdateRuntimeConfig(bounded(t), &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	refused(t, tell("10.98.0.0/24"), codes.Unknown, template) // it is not there
	write(t, template, `{"cniVersion":"1.0.0","name":"cidr","plugins":[{"type":"bridge","bridge":"critcidr","ipam":{"type":"host-local","dataDir":"`+t.TempDir()+`",
"ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}[{"subnet":"{{$r}}"}]{{end}}],"routes":[{{range $i, $r := .Routes}}{{if $i}},{{end}}{"dst":"{{$r}}"}{{end}}]}}]}`)
	refused(t, tell("10.98.0.0/240"), codes.InvalidArgument, "runtime_config.network_config.pod_cidr")
	for _, step := range []struct{ tell, v4, v6 string }{
		{"", "10.99.", "fd99:"}, // the embedded network
		{"10.98.0.0/24,fd98::/64", "10.98.0.", "fd98::"},
		{"10.98.1.0/24,fd98:1::/64", "10.98.1.", "fd98:1::"}, // the node was given another one
	} {
		if err := tell(step.tell); err != nil {
			t.Fatalf("%q: %v", step.tell, err)
		}
		p := runPod(t, d, podNetwork)
		n := p.status(t).GetNetwork()
		if v6 := n.GetAdditionalIps(); !strings.HasPrefix(n.GetIp(), step.v4) || len(v6) != 1 || !strings.HasPrefix(v6[0].GetIp(), step.v6) {
			t.Errorf("after %q a pod has %v", step.tell, n)
		}
		p.remove(t)
	}
}
