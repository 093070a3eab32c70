package critest

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// serveText has a container answer every connection to port 8080, of both families, with its host name.
const serveText = "mkdir /tmp/www && hostname >/tmp/www/name && exec httpd -f -p 8080 -h /tmp/www"

// fetch asks an HTTP server for /name until it answers, and returns the last line of the answer.
func fetch(t *testing.T, address string) (body string) {
	t.Helper()
	eventually(t, rpcBound, address+" answers", func() bool {
		conn, err := net.DialTimeout("tcp", address, 2*time.Second)
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return false
		}
		if _, err := io.WriteString(conn, "GET /name HTTP/1.0\r\n\r\n"); err != nil {
			return false
		}
		answer, err := io.ReadAll(conn)
		_, body, _ = strings.Cut(string(answer), "\r\n\r\n")
		return err == nil && body != ""
	})
	return strings.TrimSpace(body)
}

func (p *pod) addresses(t *testing.T) (v4, v6 string) {
	t.Helper()
	n := p.status(t).GetNetwork()
	return net.JoinHostPort(n.GetIp(), "8080"), net.JoinHostPort(n.GetAdditionalIps()[0].GetIp(), "8080")
}

func TestPodReachable(t *testing.T) {
	d := use(t)
	server := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) { c.Hostname = "server" })
	server.start(t, serveText)
	v4, v6 := server.addresses(t)
	client := runPod(t, d, podNetwork)
	c := client.start(t, idle)
	for _, address := range []string{v4, v6} {
		if got := fetch(t, address); got != "server" {
			t.Errorf("the host gets %q from %s", got, address)
		}
		if got := c.exec(t, "wget -qO- http://"+address+"/name"); got != "server\n" {
			t.Errorf("another pod gets %q from %s", got, address)
		}
	}
	if got := c.exec(t, "ip route | grep -c ^default; ip -6 route | grep -c ^default; ip -o addr show eth0 | grep -c 'inet '"); got != "1\n1\n1\n" {
		t.Errorf("routes and addresses of a pod: %q", got)
	}
}

func TestHostPort(t *testing.T) {
	d := use(t)
	p := runPod(t, d, podNetwork, func(c *cri.PodSandboxConfig) {
		c.Hostname = "mapped"
		c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: 12080}, {ContainerPort: 9999}}
	})
	p.start(t, serveText)
	if got := fetch(t, "127.0.0.1:12080"); got != "mapped" {
		t.Errorf("on localhost: %q", got)
	}
	gateway := netip.MustParsePrefix("10.99.0.0/24").Addr().Next()
	if got := fetch(t, netip.AddrPortFrom(gateway, 12080).String()); got != "mapped" {
		t.Errorf("on an address of the host: %q", got)
	}
	p.stop(t)
	if conn, err := net.DialTimeout("tcp", "127.0.0.1:12080", time.Second); err == nil {
		_ = conn.Close()
		t.Error("the port is open after the pod was stopped")
	}
}

// Addresses come back with the pods that had them.
func TestAddressesReturn(t *testing.T) {
	d := use(t)
	reserved := func() int {
		files, err := filepath.Glob(filepath.Join(d.state(), "addresses", "*", "10.99.0.*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	var pods []*pod
	for range 10 {
		pods = append(pods, runPod(t, d, podNetwork))
	}
	if n := reserved(); n != len(pods) {
		t.Errorf("%d addresses are reserved for %d pods", n, len(pods))
	}
	for _, p := range pods {
		p.remove(t)
	}
	if n := reserved(); n != 0 {
		t.Errorf("%d addresses are reserved for nobody", n)
	}
}

// plugin makes d use a network of one plugin, which is a script, for the length of the test.
func plugin(t *testing.T, d *daemon, script string) {
	t.Helper()
	conf := filepath.Join(d.cniDir(), "00-test.conflist")
	if script != "" {
		installPlugin(t, d, script)
	}
	t.Cleanup(func() {
		// first the network is no longer used, then the plugin goes: a DEL that fails would be owed
		if err := os.Remove(conf); err != nil {
			t.Error(err)
		}
		eventually(t, rpcBound, "the default network is back", func() bool {
			r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: podConfig(t, podNetwork)})
			if err != nil {
				return false
			}
			p := &pod{d: d, id: r.GetPodSandboxId()}
			defer p.remove(t)
			return strings.HasPrefix(p.status(t).GetNetwork().GetIp(), "10.99.")
		})
		if err := os.Remove(pluginPath(d)); err != nil {
			t.Error(err)
		}
	})
	write(t, conf, `{"cniVersion": "1.0.0", "name": "critest", "plugins": [{"type": "critest-plugin"}]}`)
}

func pluginPath(d *daemon) string { return filepath.Join(d.plugins(), "critest-plugin") }

func installPlugin(t *testing.T, d *daemon, script string) {
	t.Helper()
	if err := os.WriteFile(pluginPath(d), []byte("#!/bin/sh\ncat >/dev/null\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestNetworkPlugins(t *testing.T) {
	d := use(t)
	const answer = `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"},{"address":"fd01::3/64"}]}'`
	for _, row := range []struct {
		name, script string
		texts        []string // nil: works
	}{
		{"operator's", `[ "$CNI_COMMAND" = ADD ] || exit 0; ` + answer, nil},
		{"fails", `[ "$CNI_COMMAND" = ADD ] || exit 0; echo '{"cniVersion":"1.0.0","code":100,"msg":"no addresses","details":"all gone"}'; exit 1`, []string{"stage network", "critest-plugin", "no addresses"}},
		{"dies", `[ "$CNI_COMMAND" = ADD ] || exit 0; kill -KILL $$`, []string{"stage network", "critest-plugin"}},
		{"says nonsense", `[ "$CNI_COMMAND" = ADD ] || exit 0; echo nonsense`, []string{"stage network", "critest"}},
		{"is missing", "", []string{"network", "critest-plugin"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			check(t, d)
			plugin(t, d, row.script)
			var r *cri.RunPodSandboxResponse
			var err error
			config := podConfig(t, podNetwork)
			if row.texts == nil {
				eventually(t, rpcBound, "the new configuration counts", func() bool {
					p := runPod(t, d, podNetwork)
					defer p.remove(t)
					n := p.status(t).GetNetwork()
					return n.GetIp() == "10.1.2.3" && n.GetAdditionalIps()[0].GetIp() == "fd01::3"
				})
				return
			}
			eventually(t, rpcBound, "the new configuration counts", func() bool {
				r, err = d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
				if err == nil {
					(&pod{d: d, id: r.GetPodSandboxId()}).remove(t)
				}
				return err != nil
			})
			refused(t, err, codes.Unknown, row.texts...)
			if row.script == "" {
				installPlugin(t, d, "exit 0") // what is owed is paid as soon as it can be
			}
			list, err := d.runtime.ListPodSandbox(bounded(t), &cri.ListPodSandboxRequest{})
			if err != nil || len(list.GetItems()) != 0 {
				t.Errorf("after the failure: %v, %v", list.GetItems(), err)
			}
		})
	}
}

func TestNetworkStatus(t *testing.T) {
	d := use(t)
	s, err := d.runtime.Status(bounded(t), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{cri.RuntimeReady, cri.NetworkReady} {
		if c := condition(s, kind); !c.GetStatus() {
			t.Errorf("%s: %v", kind, c)
		}
	}
	if len(s.GetRuntimeHandlers()) == 0 || s.GetInfo() == nil {
		t.Errorf("status %v", s)
	}
}

// slowPlugin has d use a plugin that ends only while the file hold is not there. It is there when this returns.
func slowPlugin(t *testing.T, d *daemon, hold string) {
	t.Helper()
	plugin(t, d, `[ "$CNI_COMMAND" = ADD ] || exit 0; while [ -e `+hold+` ]; do sleep 0.02; done; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.4/24"}]}'`)
	t.Cleanup(func() { _ = os.Remove(hold) }) // gone, unless the test failed
	eventually(t, rpcBound, "the new configuration counts", func() bool {
		p := runPod(t, d, podNetwork)
		defer p.remove(t)
		return p.status(t).GetNetwork().GetIp() == "10.1.2.4"
	})
	write(t, hold, "")
}

// impatientPod asks for a pod and gives up as soon as its plugin runs. Nobody hears of the pod.
func impatientPod(t *testing.T, d *daemon, config *cri.PodSandboxConfig) {
	t.Helper()
	impatient, cancel := context.WithCancel(bounded(t))
	answer := make(chan error, 1)
	go func() {
		_, err := d.runtime.RunPodSandbox(impatient, &cri.RunPodSandboxRequest{Config: config})
		answer <- err
	}()
	eventually(t, rpcBound, "the plugin runs", func() bool { return running(t, "/bin/sh "+pluginPath(d)) == 1 })
	cancel()
	refused(t, <-answer, codes.Canceled)
	list, err := d.runtime.ListPodSandbox(bounded(t), &cri.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 0 {
		t.Errorf("half a pod is listed: %v, %v", list.GetItems(), err)
	}
}

// A plugin that hangs holds up its pod only. Another request for the same pod ends it and undoes what was begun.
func TestNetworkPluginHangs(t *testing.T) {
	d := use(t)
	hold := filepath.Join(t.TempDir(), "hold")
	slowPlugin(t, d, hold)
	config := podConfig(t, podNetwork)
	impatientPod(t, d, config)
	runPod(t, d).prints(t, "other\n", "echo other")
	p := runPod(t, d, func(c *cri.PodSandboxConfig) { c.Metadata = config.Metadata })
	if n := running(t, "/bin/sh "+pluginPath(d)); n != 0 {
		t.Errorf("%d plugins still run", n)
	}
	p.prints(t, "instead\n", "echo instead")
}

// A plugin that takes longer than the caller waits: the same request again joins what is under way and gets its result.
func TestNetworkPluginSlow(t *testing.T) {
	d := use(t)
	hold := filepath.Join(t.TempDir(), "hold")
	slowPlugin(t, d, hold)
	config := podConfig(t, podNetwork)
	impatientPod(t, d, config)
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	r, err := d.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{d: d, id: r.GetPodSandboxId(), config: config}
	defer p.remove(t)
	if ip := p.status(t).GetNetwork().GetIp(); ip != "10.1.2.4" {
		t.Errorf("ip %q", ip)
	}
}
