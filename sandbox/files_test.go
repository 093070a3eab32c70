package sandbox

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/store/record"
)

func TestPodFiles(t *testing.T) {
	host, err := os.Hostname()
	must(t, err)
	hosts, err := os.ReadFile("/etc/hosts")
	must(t, err)
	hostResolv, err := hostFile("/etc/resolv.conf")
	must(t, err)
	node := &runtimev1.LinuxPodSandboxConfig{SecurityContext: &runtimev1.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE}}}
	id := ID(newID())
	for _, test := range []struct {
		name     string
		config   *runtimev1.PodSandboxConfig
		hostname string
		resolv   string
	}{
		{"asked for", &runtimev1.PodSandboxConfig{Hostname: "web", DnsConfig: &runtimev1.DNSConfig{Servers: []string{"10.0.0.1", "fd00::1"},
			Searches: []string{"a.b", "c"}, Options: []string{"ndots:5", "edns0"}}}, "web",
			"search a.b c\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5 edns0\n"},
		{"nothing", &runtimev1.PodSandboxConfig{}, string(id[:12]), string(hostResolv)},
		{"empty DNS", &runtimev1.PodSandboxConfig{DnsConfig: &runtimev1.DNSConfig{}}, string(id[:12]), string(hostResolv)},
		{"host network", &runtimev1.PodSandboxConfig{Linux: node}, host, string(hostResolv)},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &pod{s: &Service{config: Config{StateDir: t.TempDir()}}, id: id, spec: &podSpec{}}
			must(t, os.MkdirAll(p.dir(), 0o700))
			must(t, p.writeFiles(test.config))
			for name, content := range map[string]string{HostnameFile: test.hostname + "\n", ResolvFile: test.resolv, HostsFile: string(hosts)} {
				got, err := os.ReadFile(filepath.Join(p.dir(), name))
				must(t, err)
				want(t, name, string(got), content)
			}
		})
	}
}

// TestRecordFormat holds what records look like: they outlive upgrades.
func TestRecordFormat(t *testing.T) {
	at := time.Date(2026, 8, 1, 2, 3, 4, 5, time.UTC)
	for file, value := range map[string]any{
		"pod.json": podRecord{ID: "p1", BootID: "b1", Phase: podReady, Fingerprint: "f", Handler: "h", CreatedAt: at,
			Overhead: []byte("o"), Resources: []byte("r"), Updated: true, Config: []byte("c")},
		"container.json": containerRecord{ID: "c1", Pod: "p1", Phase: containerExited, Fingerprint: "f", CreatedAt: at, StartedAt: at,
			FinishedAt: at, ExitCode: 137, Reason: ReasonOOMKilled, Message: "m", ImageID: "sha256:1", ImageRef: "r@sha256:2", ImageVolumes: []string{"", "sha256:3"}, LogPath: "/l",
			StopSignal: "SIGTERM", User: User{UID: 1, GID: 2, Groups: []uint32{2, 3}},
			Limits:  Limits{Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(7))}}, OOMScoreAdj: 5},
			Pending: &Limits{OOMScoreAdj: 7}, Config: []byte("c")},
	} {
		got, err := json.MarshalIndent(value, "", "\t")
		must(t, err)
		path := filepath.Join("testdata", file)
		if os.Getenv("UPDATE_GOLDEN") != "" {
			must(t, os.WriteFile(path, append(got, '\n'), 0o644))
		}
		golden, err := os.ReadFile(path)
		must(t, err)
		want(t, file, string(got)+"\n", string(golden))
	}
}

// FuzzRecords: whatever a record says, reading it gives an object that can be shown, or an error.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"id":"x","phase":"ready","config":""}`), true)
	f.Add([]byte(`{"id":"x","phase":"running","config":"CgA="}`), false)
	f.Fuzz(func(t *testing.T, data []byte, ofPod bool) {
		p := &pod{s: &Service{config: Config{StateDir: t.TempDir()}}, id: ID(strings.Repeat("a", idLength))}
		must(t, os.MkdirAll(p.dir(), 0o700))
		var value map[string]any
		if json.Unmarshal(data, &value) != nil {
			return
		}
		id := ContainerID(strings.Repeat("b", idLength))
		if ofPod {
			value["id"] = p.id
			must(t, record.Write(filepath.Join(p.dir(), podRecordName), value))
			if read, err := p.s.readPod(p.id); err == nil {
				read.runtimeConfig(read.status.Load().Config())
			} else if !errors.Is(err, record.ErrCorrupt) && !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
			return
		}
		value["id"], value["pod"] = id, p.id
		c := &container{p: p, id: id}
		must(t, record.Write(c.recordPath(), value))
		if read, err := p.readContainer(id); err == nil {
			read.status.Load().Config()
		} else if !errors.Is(err, record.ErrCorrupt) && !errors.Is(err, ErrInvalid) {
			t.Errorf("got %v", err)
		}
	})
}
