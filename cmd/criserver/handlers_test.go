package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/specgen"
)

func TestHandlers(t *testing.T) {
	c, _, err := loadWith(t, "[handlers.default]\nenv = ['A=b']\nulimits = []\n[handlers.fast]\npids_limit = 7\nshm_size = '1Gi'\nulimits = ['core=0', 'memlock=1:unlimited']\nunprivileged_ports = false\ncapabilities = ['all']\n")
	if err != nil {
		t.Fatal(err)
	}
	plain, fast := specgen.DefaultHandler(), specgen.DefaultHandler()
	for _, h := range []*specgen.Handler{&plain, &fast} {
		h.ShmSize, h.Env = 64<<20, []string{}
		h.PodAnnotations, h.ContainerAnnotations, h.AllowedAnnotations = []string{}, []string{}, []string{}
	}
	plain.Env, plain.Rlimits = []string{"A=b"}, nil
	fast.PidsLimit, fast.ShmSize, fast.UnprivilegedPorts, fast.Capabilities = 7, 1<<30, false, []string{"all"}
	fast.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: 1<<64 - 1}}
	if diff := cmp.Diff(map[string]*specgen.Handler{"": &plain, "default": &plain, "fast": &fast}, c.handlers()); diff != "" {
		t.Errorf("handlers (-want +got):\n%s", diff)
	}
	var shown []string
	for _, h := range c.shownHandlers() {
		shown = append(shown, h.Name)
	}
	if diff := cmp.Diff([]string{"", "default", "fast"}, shown); diff != "" {
		t.Errorf("shown handlers (-want +got):\n%s", diff)
	}
	if c, _, err = loadWith(t, "[handlers.fast]\n"); err != nil || len(c.handlers()) != 3 {
		t.Errorf("without a table of its own, default is not there: %v", err)
	}
}

func TestHandlerFaults(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ text, want string }{
		{"[handlers.fast]\npids_limt = 1\n", `unknown key "handlers.fast.pids_limt" (did you mean "handlers.fast.pids_limit"?)`},
		{"[handlers.'']\n", `handlers: "" is not the name of a handler`},
		{"[handlers.Fast]\n", `handlers: "Fast" is not the name of a handler`},
		{"[handlers]\nfast = 1\n", "handlers.fast"},
		{"[handlers.x]\ncapabilities = ['NOSUCH']\n", `handlers.x.capabilities[0]: "NOSUCH" is not a capability`},
		{"[handlers.x]\nulimits = ['files=1']\n", `handlers.x.ulimits: "files=1" is not a limit`},
		{"[handlers.x]\nulimits = ['core=1', 'core=2']\n", `handlers.x.ulimits: "core=2" is the second of its kind`},
		{"[handlers.x]\nenv = ['A']\n", `handlers.x.env: "A" is not of the form KEY=value`},
		{"[handlers.x]\nprivileged_devices = 'some'\n", `handlers.x.privileged_devices: "some" is not one of host, allowed, none`},
		{"[handlers.x]\npids_limit = -1\n", "handlers.x.pids_limit: -1 is negative"},
		{"[handlers.x]\nseccomp_unset = 'none'\n", `handlers.x.seccomp_unset: "none" is not one of unconfined, runtime/default, localhost/`},
		{"[handlers.x]\nseccomp_unset = 'localhost//no/such'\n", "handlers.x.seccomp_unset: read seccomp profile: open /no/such: no such file"},
		{"[handlers.x]\nseccomp_default = '/no/such'\n", "handlers.x.seccomp_default: read seccomp profile: open /no/such: no such file"},
		{"[handlers.x]\nseccomp_default = 'p.json'\n", `handlers.x.seccomp_default: "p.json" is not an absolute path`},
		{"[handlers.x]\nseccomp_default = '" + broken + "'\n", "handlers.x.seccomp_default: seccomp profile " + broken},
		{"[handlers.x]\nshm_size = '0'\n", `handlers.x.shm_size: "0" is not a size`},
		{"[handlers.x]\npod_annotations = ['[']\n", `handlers.x.pod_annotations: "["`},
		{"[handlers.x]\ncontainer_annotations = ['[']\n", `handlers.x.container_annotations: "["`},
		{"[handlers.x]\nallowed_annotations = ['x.crio.io']\n", `handlers.x.allowed_annotations: "x.crio.io" is not one that criserver knows`},
		{"[handlers.x]\nannotation_devices = ['fuse']\n", `handlers.x.annotation_devices: "fuse" is not an absolute path`},
	} {
		if _, _, err := loadWith(t, test.text); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: error does not say %q: %v", test.text, test.want, err)
		}
	}
}
