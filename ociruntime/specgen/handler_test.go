package specgen

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"64Mi": 64 << 20, "1": 1, "1k": 1000, "2Ki": 2048, "3M": 3e6, "1G": 1e9, "1Gi": 1 << 30, "1T": 1e12, "1Ti": 1 << 40,
		"": 0, "0": 0, "-1": 0, "64MB": 0, "64mi": 0, "Mi": 0, "1.5Gi": 0, "9999999Ti": 0, "99999999999999999999": 0} {
		got, err := ParseSize(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q is %d, error %v", text, got, err)
		}
	}
}

func TestShmSize(t *testing.T) {
	h := &Handler{ShmSize: 5, AllowedAnnotations: []string{"shm-size.crio.io"}}
	const older, newer = "io.kubernetes.cri-o.ShmSize", "shm-size.crio.io"
	for _, c := range []struct {
		annotations map[string]string
		allowed     bool
		want        int64
	}{
		{nil, true, 5},
		{map[string]string{older: "1Mi"}, true, 1 << 20},
		{map[string]string{older: "1Mi", newer: "2Mi"}, true, 2 << 20},
		{map[string]string{newer: "nonsense"}, false, 5},
	} {
		pod := podWith(nil, nil)
		pod.Annotations = c.annotations
		handler := *h
		if !c.allowed {
			handler.AllowedAnnotations = nil
		}
		if got, err := ShmSize(pod, &handler); got != c.want || err != nil {
			t.Errorf("%v: %d, error %v", c.annotations, got, err)
		}
	}
	var bad *InvalidError
	pod := podWith(nil, nil)
	pod.Annotations = map[string]string{older: "much"}
	if _, err := ShmSize(pod, h); !errors.As(err, &bad) || bad.Field != `annotations["`+older+`"]` {
		t.Errorf("error %v", err)
	}
	pod = podWith(&runtimev1.NamespaceOption{Ipc: runtimev1.NamespaceMode_NODE}, nil)
	pod.Annotations = map[string]string{newer: "1Mi"}
	if _, err := ShmSize(pod, h); !errors.As(err, &bad) || !strings.Contains(err.Error(), "shares the host's /dev/shm") {
		t.Errorf("error %v", err)
	}
}

// The profiles of a handler: of a file, and a file that went away since the configuration was read is the node's fault.
func TestHandlerSeccomp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_LOG"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	asked := &runtimev1.SecurityProfile{}
	for _, c := range []struct {
		name        string
		unset, file string
		profile     *runtimev1.SecurityProfile
		want        string // default action; "": none
		fault       string
	}{
		{name: "unset", unset: unconfined},
		{name: "zero handler"},
		{name: "unset is the default", unset: runtimeDefault, want: "SCMP_ACT_ERRNO"},
		{name: "unset is the default, a file", unset: runtimeDefault, file: file, want: "SCMP_ACT_LOG"},
		{name: "unset is a file", unset: localhostPrefix + file, want: "SCMP_ACT_LOG"},
		{name: "asked", profile: asked, want: "SCMP_ACT_ERRNO"},
		{name: "asked, a file", file: file, profile: asked, want: "SCMP_ACT_LOG"},
		{name: "file that is gone", file: file + "x", profile: asked, fault: "default seccomp profile of the runtime handler: read seccomp profile: open " + file + "x"},
		{name: "file for unset that is gone", unset: localhostPrefix + file + "x", fault: "seccomp profile of the runtime handler: read seccomp profile: open " + file + "x"},
	} {
		spec, err := Container(changed(func(in *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
			in.Handler.SeccompUnset, in.Handler.SeccompDefault, s.Seccomp = c.unset, c.file, c.profile
		}))
		var bad *InvalidError
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) || errors.As(err, &bad) {
				t.Errorf("%s: error %v, want one with %q that is not an InvalidError", c.name, err, c.fault)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := ""
		if spec.Linux.Seccomp != nil {
			got = string(spec.Linux.Seccomp.DefaultAction)
		}
		if got != c.want {
			t.Errorf("%s: default action %q instead of %q", c.name, got, c.want)
		}
	}
}

func TestUnprivilegedSysctls(t *testing.T) {
	h := plainHandler()
	h.UnprivilegedPorts, h.UnprivilegedICMP = false, false
	if got, err := PodSysctls(podWith(nil, map[string]string{"net.ipv4.ip_forward": "1"}), h); err != nil || len(got) != 1 {
		t.Errorf("%v, error %v", got, err)
	}
}
