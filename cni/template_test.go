package cni

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testTemplate = `{"cniVersion":"1.0.0","name":"node","plugins":[{"type":"p0","cidr":"{{.PodCIDR}}",
"ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}[{"subnet":"{{$r}}"}]{{end}}],
"routes":[{{range $i, $r := .Routes}}{{if $i}},{{end}}{"dst":"{{$r}}"}{{end}}]}]}`

func TestTemplate(t *testing.T) {
	for _, test := range []struct {
		name     string
		template string            // empty: none is configured
		there    map[string]string // files in the directory
		cidrs    []netip.Prefix
		want     string // of the generated file; empty: there is none
		fault    string
	}{
		{name: "no template", cidrs: prefixes("10.1.0.0/24")},
		{name: "one family", template: testTemplate, cidrs: prefixes("10.1.0.0/24"),
			want: `"cidr":"10.1.0.0/24","ranges":[[{"subnet":"10.1.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]`},
		{name: "two families", template: testTemplate, cidrs: prefixes("fd00:1::/64", "10.1.0.0/24"),
			want: `"cidr":"fd00:1::/64","ranges":[[{"subnet":"fd00:1::/64"}],[{"subnet":"10.1.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`},
		{name: "an earlier one of ours", template: testTemplate, cidrs: prefixes("10.2.0.0/24"), there: map[string]string{GeneratedFile: conflist("old")},
			want: `"cidr":"10.2.0.0/24","ranges":[[{"subnet":"10.2.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]`},
		{name: "an earlier one of ours is damaged", template: testTemplate, cidrs: prefixes("10.2.0.0/24"), there: map[string]string{GeneratedFile: "{"},
			want: `"cidr":"10.2.0.0/24","ranges":[[{"subnet":"10.2.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]`},
		{name: "another configuration", template: testTemplate, cidrs: prefixes("10.1.0.0/24"), there: map[string]string{"20-other.conflist": conflist("other")}},
		{name: "another that cannot be used", template: testTemplate, cidrs: prefixes("10.1.0.0/24"), there: map[string]string{"20-other.conflist": "{"}},
		{name: "broken template", template: "{{.PodCIDR", cidrs: prefixes("10.1.0.0/24"), fault: "unclosed action"},
		{name: "unknown field", template: "{{.Nothing}}", cidrs: prefixes("10.1.0.0/24"), fault: "Nothing"},
		{name: "no configuration", template: `{"name":"{{.PodCIDR}}"}`, cidrs: prefixes("10.1.0.0/24"), fault: "what it makes is no configuration"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "net.d") // is made
			for name, text := range test.there {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				writeFile(t, filepath.Join(dir, name), text, 0o644)
			}
			conf := Config{ConfDir: dir, BinDirs: []string{t.TempDir()}}
			if test.template != "" {
				conf.Template = filepath.Join(t.TempDir(), "template")
				writeFile(t, conf.Template, test.template, 0o644)
			}
			n, err := open(conf)
			if err != nil {
				t.Fatal(err)
			}
			err = n.UsePodCIDRs(test.cidrs)
			if (err == nil) != (test.fault == "") || err != nil && !strings.Contains(err.Error(), test.fault) {
				t.Errorf("got error %v, want %q", err, test.fault)
			}
			if err != nil && !strings.Contains(err.Error(), conf.Template) {
				t.Errorf("the error does not name the template: %v", err)
			}
			got, err := os.ReadFile(filepath.Join(dir, GeneratedFile))
			if test.want == "" && err == nil || test.want != "" && !strings.Contains(strings.ReplaceAll(string(got), "\n", ""), test.want) {
				t.Errorf("generated %q, %v; want %q", got, err, test.want)
			}
			if test.want != "" && n.current.Load().list.Name != "node" {
				t.Errorf("network %s is in force", n.current.Load().list.Name)
			}
			entries, err := os.ReadDir(dir)
			if most := max(len(test.there), min(len(test.want), 1)); len(entries) > most {
				t.Errorf("%d files, want %d: %v, %v", len(entries), most, entries, err)
			}
		})
	}
	conf := Config{ConfDir: t.TempDir(), BinDirs: []string{t.TempDir()}, Template: "/no/such/template"}
	n, err := open(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.UsePodCIDRs(prefixes("10.1.0.0/24")); err == nil || !strings.Contains(err.Error(), conf.Template) {
		t.Errorf("a template that does not exist: %v", err)
	}
}

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	n, err := open(Config{ConfDir: dir, BinDirs: []string{"/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	if in, load := n.Inspect(); len(in.Networks) != 0 || !strings.Contains(load, dir) || in.PluginConfDir != dir {
		t.Errorf("without a configuration: %+v, %q", in, load)
	}
	writeFile(t, filepath.Join(dir, "1.conflist"), conflist("one"), 0o644)
	n.reload()
	in, load := n.Inspect()
	if load != "OK" || len(in.Networks) != 1 || in.Networks[0].Config.Name != "one" || in.Networks[0].Config.Plugins[0].Network.Type != "p0" ||
		in.Networks[0].Config.Source != conflist("one") || in.Networks[0].IFName != "eth0" {
		t.Errorf("with a configuration: %+v, %q", in, load)
	}
}

func TestInspectResult(t *testing.T) {
	in, err := InspectResult([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"br0","mac":"02:00:00:00:00:01"},{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/x"}],
"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":1},{"address":"fd00::2/64"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.0.0.1"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	eth0 := in.Interfaces["eth0"]
	if eth0.Mac != "02:00:00:00:00:02" || eth0.Sandbox != "/run/netns/x" || len(eth0.IPConfigs) != 2 || eth0.IPConfigs[0].IP.String() != "10.1.0.2" ||
		eth0.IPConfigs[0].Gateway.String() != "10.1.0.1" || eth0.IPConfigs[1].IP.String() != "fd00::2" {
		t.Errorf("eth0: %+v", eth0)
	}
	if len(in.Interfaces) != 2 || in.Interfaces["br0"].Sandbox != "" || len(in.Routes) != 1 || in.DNS[0].Nameservers[0] != "10.0.0.1" {
		t.Errorf("the rest: %+v", in)
	}
	for _, bad := range []string{"", "{", `{"cniVersion":"9.0.0"}`, `{"cniVersion":"1.0.0","interfaces":[null]}`} {
		if _, err := InspectResult([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
