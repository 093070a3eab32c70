package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/kernel"
)

func TestRunChecks(t *testing.T) {
	row := func(f finding) check { return check{"thing", func(Config) finding { return f }} }
	fine, poor, bad := finding{found: "here"}, finding{degraded, "old", "slow", "renew"}, finding{missing, "gone", "nothing works", "buy"}
	for _, test := range []struct {
		name string
		rows []check
		want string
		err  error
	}{
		{name: "all good", rows: []check{row(fine)}, want: "ok  thing  here\n"},
		{name: "degraded is no failure", rows: []check{row(poor), row(fine)}, want: "degraded  thing  old; slow; to mend: renew\nok        thing  here\n"},
		{name: "missing is one", rows: []check{row(bad), row(poor)}, want: "missing   thing  gone; nothing works; to mend: buy\ndegraded  thing  old; slow; to mend: renew\n", err: errChecks},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := runChecks(&out, test.rows, Config{}); err != test.err {
				t.Errorf("got error %v, want %v", err, test.err)
			}
			if out.String() != test.want {
				t.Errorf("got\n%swant\n%s", out.String(), test.want)
			}
		})
	}
}

// TestChecksLook makes the machine's checks of a configuration of which each part is wanting in turn.
func TestChecksLook(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pause, text := write("bin/pause", 0o755), write("bin/text", 0o644)
	network := func(name, conf string) CNI {
		if err := os.WriteFile(write(name+"/10-net.conflist", 0o644), []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
		return CNI{ConfDir: filepath.Join(dir, name), BinDirs: []string{filepath.Join(dir, "plugins")}}
	}
	for name, content := range map[string]string{
		"certs/a/hosts.toml": "server = 'https://a'\n", "typo/a/hosts.toml": "skip_verfy = true\n", "secret/open.json": "{}", "secret/auth.json": "{}", "secret/helper.json": `{"credsStore":"absent"}`,
	} {
		mode := os.FileMode(0o600)
		if name == "secret/open.json" {
			mode = 0o644
		}
		if err := os.WriteFile(write(name, mode), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		write("plugins/"+name, 0o755)
	}
	plugins := []string{filepath.Join(dir, "plugins")}
	subnets := []string{"10.77.0.0/16"}
	for _, test := range []struct {
		name   string
		look   func(Config) finding
		config Config
		want   verdict
		says   string
	}{
		{"pause there", checkPause, Config{Pause: pause}, good, pause},
		{"pause not executable", checkPause, Config{Pause: text}, missing, text},
		{"root to be made", checkRoot, Config{Root: filepath.Join(dir, "a/b")}, good, "free"},
		{"root cannot be written", checkRoot, Config{Root: text + "/x"}, missing, text},
		{"state on tmpfs", checkState, Config{State: "/dev/shm/x"}, good, "/dev/shm/x"},
		{"state cannot be written", checkState, Config{State: text + "/x"}, missing, text},
		{"socket free", checkSocket, Config{Address: "unix://" + dir + "/s"}, good, "free"},
		{"socket is a file", checkSocket, Config{Address: "unix://" + text}, missing, "not a socket"},
		{"network configured", checkNetwork, Config{CNI: network("good", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}`)}, good, "net of " + dir},
		{"network misconfigured", checkNetwork, Config{CNI: network("bad", `{"name":"net"`), Network: Network{Default: "on", Subnets: subnets}, State: dir}, degraded, "bad/10-net.conflist: "},
		{"network without its plugin", checkNetwork, Config{CNI: network("none", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"absent"}]}`)}, degraded, "plugin absent: not found in " + dir},
		{"network by default", checkNetwork, Config{CNI: CNI{ConfDir: dir, BinDirs: plugins}, Network: Network{Default: "on", Bridge: "cri7", Subnets: subnets}, State: dir}, good, "cri7"},
		{"default network without plugins", checkNetwork, Config{CNI: CNI{ConfDir: dir, BinDirs: []string{dir}}, Network: Network{Default: "on", Subnets: subnets}, State: dir}, degraded, "plugin bridge: not found"},
		{"no network", checkNetwork, Config{CNI: CNI{ConfDir: dir, BinDirs: plugins}, Network: Network{Default: "off"}}, degraded, dir},
		{"hosts", checkCerts, Config{CertsDirs: []string{filepath.Join(dir, "no"), filepath.Join(dir, "certs")}}, good, "1 hosts.toml files in"},
		{"hosts misspelt", checkCerts, Config{CertsDirs: []string{filepath.Join(dir, "typo")}}, degraded, "line 1: skip_verfy"},
		{"no hosts", checkCerts, Config{CertsDirs: []string{filepath.Join(dir, "no")}}, good, "none configured"},
		{"credentials", checkCredentials, Config{Registries: Registries{CredentialsFile: filepath.Join(dir, "secret/auth.json")}}, good, "auth.json"},
		{"credentials for all to read", checkCredentials, Config{Registries: Registries{CredentialsFile: filepath.Join(dir, "secret/open.json")}}, degraded, "mode 0644"},
		{"credentials without a helper", checkCredentials, Config{Registries: Registries{CredentialsFile: filepath.Join(dir, "secret/helper.json")}}, degraded, "docker-credential-absent: not an executable"},
		{"credentials absent", checkCredentials, Config{Registries: Registries{CredentialsFile: filepath.Join(dir, "secret/no.json")}}, good, "is absent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := test.look(test.config)
			if f.verdict != test.want || !strings.Contains(f.found, test.says) {
				t.Errorf("got %s: %s, want %s about %q", f.verdict, f.found, test.want, test.says)
			}
			if f.verdict != good && (f.cost == "" || f.mend == "") {
				t.Errorf("%s without cost or how to mend it: %+v", f.verdict, f)
			}
		})
	}
}

// host is a machine with some controllers.
type host struct {
	mode cgroup.Mode
	has  string
}

func (h host) Mode() cgroup.Mode    { return h.mode }
func (h host) Has(name string) bool { return strings.Contains(h.has, name) }

func TestJudgeCgroups(t *testing.T) {
	for _, test := range []struct {
		host
		want string
	}{
		{host{cgroup.V2, "cpu memory pids cpuset"}, "ok: v2"},
		{host{cgroup.V1, "cpu memory pids cpuset devices freezer"}, "ok: v1"},
		{host{cgroup.Hybrid, "cpu memory pids cpuset devices"}, "degraded: hybrid, without freezer"},
		{host{cgroup.V2, "cpuset"}, "degraded: v2, without memory, pids"},
	} {
		f := judgeCgroups(test.host)
		if got := f.verdict.String() + ": " + f.found; got != test.want {
			t.Errorf("%+v: got %q, want %q", test.host, got, test.want)
		}
	}
}

func TestCheckFeature(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("probes need root")
	}
	for _, f := range kernel.All() {
		if f.Required {
			if got := checkFeature(f); got.verdict != good {
				t.Errorf("%s: got %+v on a machine that runs tests of containers", f.Name, got)
			}
			continue
		}
		restore := kernel.Refuse(f.Name)
		got := checkFeature(f)
		restore()
		if got.verdict != degraded || got.cost != f.Lost || !strings.Contains(got.mend, f.Since) {
			t.Errorf("%s refused: got %+v", f.Name, got)
		}
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.1.0-13-amd64": {6, 1}, "5.14.0-427.el9": {5, 14}, "6.18.44": {6, 18}} {
		if got, ok := kernelVersion(release); got != want || !ok {
			t.Errorf("%s: got %v, %v", release, got, ok)
		}
	}
	if _, ok := kernelVersion("unknown"); ok {
		t.Error("took a release without numbers")
	}
}
