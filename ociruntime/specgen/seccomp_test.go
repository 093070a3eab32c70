//lint:file-ignore SA1019 old clients set the deprecated fields

package specgen

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestDefaultSeccompFollowsCapabilities(t *testing.T) {
	allowed := func(add ...string) bool {
		spec, err := Container(changed(func(_ *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
			s.SeccompProfilePath = "runtime/default"
			s.Capabilities = &runtimev1.Capability{AddCapabilities: add}
		}))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range spec.Linux.Seccomp.Syscalls {
			for _, name := range s.Names {
				if name == "reboot" {
					return true
				}
			}
		}
		return false
	}
	if allowed() || !allowed("SYS_BOOT") {
		t.Errorf("reboot allowed without SYS_BOOT: %t, with: %t; want false, true", allowed(), allowed("SYS_BOOT"))
	}
}

func TestSeccompChoice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_LOG"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	local := &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: file}
	off := &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
	for _, c := range []struct {
		name, deprecated string
		profile          *runtimev1.SecurityProfile
		want             specs.LinuxSeccompAction // "": no filter
	}{
		{"nothing said", "", nil, ""},
		{"unconfined", "", off, ""},
		{"localhost", "", local, specs.ActLog},
		{"old default", "docker/default", nil, specs.ActErrno},
		{"old unconfined", "unconfined", nil, ""},
		{"old localhost", "localhost/" + file, nil, specs.ActLog},
		{"new field wins", "localhost/" + file, off, ""},
	} {
		spec, err := Container(changed(func(_ *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
			s.Seccomp, s.SeccompProfilePath = c.profile, c.deprecated
		}))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := specs.LinuxSeccompAction("")
		if spec.Linux.Seccomp != nil {
			got = spec.Linux.Seccomp.DefaultAction
		}
		if got != c.want {
			t.Errorf("%s: default action %q, want %q", c.name, got, c.want)
		}
	}
}

func TestMissingSeccompProfileSaysWhy(t *testing.T) {
	_, err := Container(changed(func(_ *Input, _ *runtimev1.ContainerConfig, s *runtimev1.LinuxContainerSecurityContext) {
		s.SeccompProfilePath = "localhost//nowhere/p.json"
	}))
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v does not wrap its cause", err)
	}
}
