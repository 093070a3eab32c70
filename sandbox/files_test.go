package sandbox

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
			p := &pod{s: &Service{config: Config{StateDir: t.TempDir()}}, id: id}
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
		"pod.json": podRecord{ID: "p1", BootID: "b1", Phase: podReady, Fingerprint: "f", Handler: "h", CreatedAt: at, Config: []byte("c")},
		"container.json": containerRecord{ID: "c1", Pod: "p1", Phase: containerExited, Fingerprint: "f", CreatedAt: at, StartedAt: at,
			FinishedAt: at, ExitCode: 137, Reason: ReasonOOMKilled, Message: "m", ImageID: "sha256:1", ImageRef: "r@sha256:2", LogPath: "/l",
			StopSignal: "SIGTERM", User: User{UID: 1, GID: 2, Groups: []uint32{2, 3}}, Config: []byte("c")},
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

func TestCopyUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	image, out := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(image+"/var/data/sub", 0o755))
	must(t, os.WriteFile(image+"/var/data/file", []byte("content"), 0o600))
	must(t, os.WriteFile(image+"/var/data/sub/suid", nil, 0o755))
	must(t, os.Chown(image+"/var/data/file", 1000, 1001))
	must(t, os.Chmod(image+"/var/data/sub/suid", 0o755|os.ModeSetuid))
	must(t, os.Chmod(image+"/var/data", 0o777|os.ModeSticky))
	must(t, os.Symlink("/etc/shadow", image+"/var/data/link"))
	must(t, unix.Mkfifo(image+"/var/data/fifo", 0o600))
	must(t, os.Symlink("/var/data", image+"/absolute"))
	must(t, os.Symlink("../../../../../../../../etc", image+"/escape"))
	must(t, os.WriteFile(image+"/plain", nil, 0o600))
	root, err := os.Open(image)
	must(t, err)
	defer func() { _ = root.Close() }()
	for i, test := range []struct {
		src   string
		files int
	}{
		{"/var/data", 3}, {"/absolute", 3}, // the fifo is left out
		{"/nothing/there", 0}, {"/plain", 0}, {"/escape", 0},
	} {
		dst := filepath.Join(out, string(rune('a'+i)))
		must(t, copyUp(t.Context(), root, test.src, dst))
		entries, err := os.ReadDir(dst)
		must(t, err)
		want(t, "entries of "+test.src, len(entries), test.files)
	}
	var st unix.Stat_t
	must(t, unix.Lstat(out+"/b/file", &st))
	want(t, "owner", [2]uint32{st.Uid, st.Gid}, [2]uint32{1000, 1001})
	want(t, "mode", st.Mode&0o7777, uint32(0o600))
	must(t, unix.Lstat(out+"/b/sub/suid", &st))
	want(t, "setuid", st.Mode&0o7777, uint32(0o4755))
	must(t, unix.Lstat(out+"/b", &st))
	want(t, "mode of the volume", st.Mode&0o7777, uint32(0o1777))
	link, err := os.Readlink(out + "/b/link")
	must(t, err)
	want(t, "link", link, "/etc/shadow")
}
