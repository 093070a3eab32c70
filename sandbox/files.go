package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Files in a pod's directory that its containers see under /etc.
const (
	HostnameFile = "hostname"
	HostsFile    = "hosts"
	ResolvFile   = "resolv.conf"
)

const maxHostname = 64 // bytes, the kernel's limit

// hostname is the asked one, the host's for a pod on the host's network, or else the beginning of the id.
func (p *pod) hostname(config *runtimev1.PodSandboxConfig) string {
	if config.Hostname != "" {
		return config.Hostname
	}
	if hostNetwork(config) {
		if name, err := os.Hostname(); err == nil {
			return name
		}
	}
	return string(p.id[:12])
}

// writeFiles makes what the pod's containers share of /etc, and the directory of their logs.
func (p *pod) writeFiles(config *runtimev1.PodSandboxConfig) error {
	hosts, err := hostFile("/etc/hosts")
	if err != nil {
		return err
	}
	resolv := resolvConf(config.GetDnsConfig())
	if len(resolv) == 0 {
		if resolv, err = hostFile("/etc/resolv.conf"); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{HostnameFile: []byte(p.hostname(config) + "\n"), HostsFile: hosts, ResolvFile: resolv} {
		path := filepath.Join(p.dir(), name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever the umask is
			return err
		}
		if m := p.spec.userNS; m != nil { // whose root writes to it as root elsewhere does
			if err := os.Chown(path, int(hostID(m.UIDs, 0)), int(hostID(m.GIDs, 0))); err != nil {
				return err
			}
		}
	}
	if config.LogDirectory == "" {
		return nil
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return fmt.Errorf("make log_directory: %w", err)
	}
	return nil
}

// hostFile reads a small file of the host; one that does not exist is empty.
func hostFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("copy the host's %s: %w", path, err)
	}
	return data, nil
}

// resolvConf is empty if d asks for nothing: then the host's is used.
func resolvConf(d *runtimev1.DNSConfig) []byte {
	var b strings.Builder
	if len(d.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, server := range d.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(d.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return []byte(b.String())
}
