package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/criserver/criserver/imageservice/remote"
)

// loadWith loads the configuration that a file of this text and these arguments make.
func loadWith(t *testing.T, text string, args ...string) (Config, string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := &flags{}
	f.register(set)
	if err := set.Parse(append([]string{"--config", file}, args...)); err != nil {
		t.Fatal(err)
	}
	c, err := f.load()
	return c, file, err
}

func TestConfigPrecedence(t *testing.T) {
	c, _, err := loadWith(t, "root = '/file/root'\nstate = '/file/state'\n[log]\nslow = '1m'\n[cni]\nbin_dirs = ['/a', '/b']\n",
		"--state", "/flag/state", "--cni-bin-dir", "/x", "--cni-bin-dir", "/y", "--certs-dir", "/certs", "--log-level", "debug",
		"--address", "unix:///flag/sock", "--cni-conf-dir", "/conf", "--log-format", "json")
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Root, want.State, want.Address = "/file/root", "/flag/state", "unix:///flag/sock"
	want.CertsDirs = []string{"/certs"}
	want.Log = Log{Level: "debug", Format: "json", Slow: Duration(time.Minute)}
	want.CNI = CNI{ConfDir: "/conf", BinDirs: []string{"/x", "/y"}}
	want.settle()
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("effective configuration (-want +got):\n%s", diff)
	}
}

func TestConfigFaults(t *testing.T) {
	for _, test := range []struct {
		name, text string
		args       []string
		want       []string // parts of the error, FILE stands for the file
	}{
		{name: "unknown keys, all with line and suggestion", text: "rooot = '/x'\n[cni]\nconf_dirs = '/y'\nbin_dirs = []\n[log]\nfancy_colours = true\n",
			want: []string{`FILE:1: unknown key "rooot" (did you mean "root"?)`, `FILE:3: unknown key "cni.conf_dirs" (did you mean "cni.conf_dir"?)`,
				`FILE:6: unknown key "log.fancy_colours"` + "\n"}},
		{name: "unknown table", text: "[logs]\nlevel = 'debug'\n", want: []string{`FILE:1: unknown key "logs"`}},
		{name: "right key in the wrong table", text: "bin_dirs = []\n", want: []string{`FILE:1: unknown key "bin_dirs" (did you mean "cni.bin_dirs"?)`}},
		{name: "wrong type", text: "\nroot = 7\n", want: []string{"FILE:2: root: ", "integer"}},
		{name: "not TOML", text: "root = \n", want: []string{"FILE:1: "}},
		{name: "bad duration", text: "[log]\nslow = 'soon'\n", want: []string{"FILE:2: log.slow: ", `"soon" is not a duration`}},
		{name: "all wrong values at once", text: "root = 'relative'\ncgroup_driver = 'fs'\npause_cgroup = 'x'\npause = 'p'\ncerts_dirs = ['c']\n" +
			"[images]\nstore = 'zfs'\npinned = ['UPPER']\nparallel_layers = -2\nconnections = 1001\nconnections_per_layer = -1\npull_memory_mib = 3\n[metrics]\naddress = 'localhost:9'\n[security]\napparmor = 'yes'\napparmor_default = ''\nselinux = 'x'\nselinux_categories = 1\n[network]\ndefault = 'maybe'\nbridge = 'a name that is too long'\nsubnets = ['10.0.0.0/16', '10.1.0.0/16', 'x', '10.0.0.1/24', '10.0.0.0/31']\n" +
			"[stats]\nperiod = '10ms'\nlayer_period = '-1s'\n[container]\nlog_line_max = 7\n[log]\nformat = 'xml'\nslow = '-1s'\n[cni]\nconf_dir = 'd'\nbin_dirs = ['e']\n", args: []string{"--log-level", "loud"},
			want: []string{`root: "relative" is not an absolute path`, `cgroup_driver: "fs" is not one of auto, cgroupfs, systemd`, "pause_cgroup: ", "pause: ", "certs_dirs: ", "images.store: ", `images.pinned: pinned image "UPPER"`,
				"images.parallel_layers: -2 is not between 0 and", "images.connections: 1001 is not", "images.connections_per_layer: -1 is not", "images.pull_memory_mib: 3 is not between 15 and",
				`metrics.address: "localhost:9" is not of the form IP:port: "localhost" is not an IP address`,
				"security.apparmor: ", "security.selinux: ", "security.selinux_categories: 1 is not between", `security.apparmor_default: "" is not the name`,
				"network.default: ", "network.bridge: ", `"10.1.0.0/16" is a second subnet`, `"x" is not a subnet`, `"10.0.0.1/24" has address bits beyond its mask; its subnet is 10.0.0.0/24`,
				`"10.0.0.0/31" has no room`, "container.log_line_max: 7 is not between", "stats.period: 10ms is neither 0 nor a second", "stats.layer_period: -1s is neither", "log.format: ", "log.slow: must not be negative", "cni.conf_dir: ", "cni.bin_dirs: ",
				`log.level: "loud" is not one of`}},
		{name: "wrong values of image verification", text: "[images.verify]\npolicy = '/no/such/policy.json'\nbin_dir = '/no/such/dir'\nmax_verifiers = -2\nper_verifier_timeout = '0s'\n",
			want: []string{"images.verify.policy: read policy: open /no/such/policy.json: no such file", "images.verify.bin_dir: open /no/such/dir", "images.verify.max_verifiers: -2 is neither", "images.verify.per_verifier_timeout: must be positive"}},
		{name: "wrong values of NRI", text: "[nri]\nenable = 'yes'\nsocket_path = 's'\nplugin_path = 'p'\nplugin_config_path = 'c'\nplugin_request_timeout = '0s'\nplugin_registration_timeout = '-1s'\n",
			want: []string{`nri.enable: "yes" is not one of`, `nri.socket_path: "s" is not an absolute`, "nri.plugin_path: ", "nri.plugin_config_path: ",
				"nri.plugin_request_timeout: must be positive", "nri.plugin_registration_timeout: "}},
		{name: "wrong values of registries", text: "[registries]\ncredentials_file = 'c'\ncredential_helper_timeout = '40s'\nmin_throughput = 0\nmax_wait = '2h'\nattempts = 0\n" +
			"requests_per_second = nan\nrequests_at_once = -1\nfallback = 'maybe'\n[registry_hosts.'https://a']\n[registry_hosts.a]\nproxy = 'http://u:hunter2@p:1'\nfallback = 'x'\nrequests_at_once = -2\nproxi = 'x'\n" +
			"[registry_hosts.b]\nproxy = 'ftp://p'\n[registry_hosts.c]\nproxy = 'p:1'\n",
			want: []string{`registries.credentials_file: "c" is not an absolute`, "registries.credential_helper_timeout: must be shorter than", "registries.min_throughput: must be positive",
				"registries.max_wait: 2h0m0s is not between", "registries.attempts: 0 is not between", "registries.requests_per_second: NaN is not", "registries.requests_at_once: must not be negative",
				`registries.fallback: "maybe" is not one of always, unavailable, never`, `registry_hosts: "https://a" is not a host`, "registry_hosts.a.proxy: proxy of p:1 has a user in it",
				`registry_hosts.a.fallback: "x"`, "registry_hosts.a.requests_at_once: ", `(did you mean "registry_hosts.a.proxy"?)`, `registry_hosts.b.proxy: proxy has scheme "ftp"`, "registry_hosts.c.proxy: proxy"}},
		{name: "NRI socket too long", text: "[nri]\nsocket_path = '/" + strings.Repeat("x", 108) + "'\n", want: []string{"nri.socket_path: ", "longer than the 107 bytes"}},
		{name: "address is no socket", args: []string{"--address", "tcp://1.2.3.4"}, want: []string{"address: ", "unix:///path"}},
		{name: "address too long", args: []string{"--address", "unix:///" + strings.Repeat("x", 108)}, want: []string{"address: ", "longer than the 107 bytes"}},
		{name: "one directory for both", args: []string{"--root", "/x", "--state", "/x/"}, want: []string{"state: must not be the same"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, file, err := loadWith(t, test.text, test.args...)
			if err == nil {
				t.Fatal("no error")
			}
			text := strings.ReplaceAll(err.Error()+"\n", file, "FILE")
			for _, want := range test.want {
				if !strings.Contains(text, want) {
					t.Errorf("error does not say %q:\n%s", want, text)
				}
			}
		})
	}
}

func TestConfigFileMayBeAbsentOnlyByDefault(t *testing.T) {
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := &flags{}
	f.register(set)
	f.file = filepath.Join(t.TempDir(), "absent") // as if that were the default
	if _, err := f.load(); err != nil {
		t.Errorf("absent default file: %v", err)
	}
	if err := set.Parse([]string{"--config", f.file}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.load(); err == nil || !strings.Contains(err.Error(), f.file) {
		t.Errorf("absent file that was asked for: got error %v", err)
	}
}

func TestConfigCommandPrintsWhatItParses(t *testing.T) {
	first, _, err := loadWith(t, "[registry_hosts.a]\nproxy = 'direct'\n", "--root", "/some/where", "--log-level", "debug")
	if err != nil {
		t.Fatal(err)
	}
	text, err := first.print()
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := loadWith(t, string(text))
	if err != nil {
		t.Fatalf("%v\nin what was printed:\n%s", err, text)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("(-printed +parsed):\n%s", diff)
	}
	for _, key := range keys() {
		last := key[strings.LastIndex(key, ".")+1:]
		lines := strings.Split(string(text), "\n")
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, last+" = ") })
		if i < 1 || !strings.HasPrefix(lines[i-1], "# ") {
			t.Errorf("key %s is not printed with a comment", key)
		}
	}
}

func TestInstancesShareNoNetwork(t *testing.T) {
	bridges, subnets := map[string]bool{}, map[string]bool{}
	for _, root := range []string{defaultRoot, "/a", "/b"} {
		c, _, err := loadWith(t, "", "--root", root)
		if err != nil {
			t.Fatal(err)
		}
		if faults := validate(&c); len(faults) > 0 {
			t.Errorf("root %s: %q", root, faults)
		}
		bridges[c.Network.Bridge] = true
		for _, s := range c.Network.Subnets {
			subnets[s] = true
		}
	}
	if len(bridges) != 3 || len(subnets) != 6 {
		t.Errorf("got bridges %v and subnets %v", bridges, subnets)
	}
}

// TestDocumentation holds docs/configuration.md to the keys and flags that there are.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys() {
		if !bytes.Contains(text, []byte("`"+key+"`")) {
			t.Errorf("docs/configuration.md does not name %s", key)
		}
	}
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	(&flags{}).register(set)
	set.VisitAll(func(f *pflag.Flag) {
		if !bytes.Contains(text, []byte("`--"+f.Name)) {
			t.Errorf("docs/configuration.md does not name --%s", f.Name)
		}
	})
}

func TestNRISocket(t *testing.T) {
	for _, test := range []struct {
		name, text, want string
		args             []string
	}{
		{name: "default", want: "/var/run/nri/nri.sock"},
		{name: "another root", args: []string{"--root", "/x", "--state", "/y"}, want: "/y/nri.sock"},
		{name: "another root, the default one wanted", text: "[nri]\nsocket_path = '/var/run/nri/nri.sock'\n", args: []string{"--root", "/x"}, want: "/var/run/nri/nri.sock"},
	} {
		c, _, err := loadWith(t, test.text, test.args...)
		if err != nil || c.NRI.SocketPath != test.want {
			t.Errorf("%s: socket %q, error %v; want %q", test.name, c.NRI.SocketPath, err, test.want)
		}
	}
}

// TestRegistriesConfiguration reads what hosts have of their own, and prints it so that it reads the same again.
func TestRegistriesConfiguration(t *testing.T) {
	text := "[registries]\nrequests_per_second = 10\nrequests_at_once = 4\nfallback = 'never'\n[registry_hosts.'mirror.test:5000']\nrequests_per_second = 0.5\nproxy = 'direct'\n"
	c, _, err := loadWith(t, text)
	if err != nil {
		t.Fatal(err)
	}
	want := remote.Host{Proxy: remote.Direct, Limit: &remote.Limit{PerSecond: 0.5, AtOnce: 4}}
	r := c.registries()
	if diff := cmp.Diff(map[string]remote.Host{"mirror.test:5000": want}, r.Hosts); diff != "" || r.Limit != (remote.Limit{PerSecond: 10, AtOnce: 4}) || r.Fallback != remote.FallbackNever {
		t.Errorf("%+v\n%s", r, diff)
	}
	printed, err := c.print()
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := loadWith(t, string(printed))
	if err != nil || !cmp.Equal(again.registries(), r) {
		t.Errorf("printed %s\nreads as %+v, %v", printed, again.registries(), err)
	}
}
