package specgen

import (
	"errors"
	"strings"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/selinux"
)

func TestSELinuxLabels(t *testing.T) {
	host, err := selinux.NewHost("", "", func(label string) error {
		if strings.Contains(label, "nosuch") {
			return errors.New("invalid argument")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const level = "s0:c10,c20"
	const file = "system_u:object_r:container_file_t:" + level
	type options = runtimev1.SELinuxOption
	type pod = *runtimev1.LinuxSandboxSecurityContext
	type container = *runtimev1.LinuxContainerSecurityContext
	node := func(pid, ipc runtimev1.NamespaceMode) *runtimev1.NamespaceOption {
		return &runtimev1.NamespaceOption{Pid: pid, Ipc: ipc}
	}
	const own, onNode = runtimev1.NamespaceMode_CONTAINER, runtimev1.NamespaceMode_NODE
	for _, row := range []struct {
		name    string
		ask     func(pod, container)
		process string
		mount   string
		fault   string
	}{
		{name: "nothing said", ask: func(pod, container) {}, process: "system_u:system_r:container_t:" + level, mount: file},
		{name: "the pod's", ask: func(p pod, _ container) { p.SelinuxOptions = &options{User: "u", Role: "r", Type: "web_t"} },
			process: "u:r:web_t:" + level, mount: "u:object_r:container_file_t:" + level},
		{name: "container over pod, part by part", ask: func(p pod, c container) {
			p.SelinuxOptions, c.SelinuxOptions = &options{User: "u", Type: "web_t"}, &options{Type: "db_t", Level: "s0:c1"}
		}, process: "u:system_r:db_t:s0:c1", mount: "u:object_r:container_file_t:s0:c1"},
		{name: "privileged", ask: func(_ pod, c container) { c.Privileged, c.SelinuxOptions = true, &options{Type: "web_t"} },
			process: "system_u:system_r:spc_t:s0", mount: file},
		{name: "host's processes", ask: func(_ pod, c container) { c.NamespaceOptions = node(onNode, own) }, process: "system_u:system_r:spc_t:s0", mount: file},
		{name: "host's ipc, of the pod", ask: func(p pod, _ container) { p.NamespaceOptions = node(own, onNode) }, process: "system_u:system_r:spc_t:s0", mount: file},
		{name: "host's processes and a type", ask: func(p pod, c container) {
			c.NamespaceOptions, p.SelinuxOptions = node(onNode, own), &options{Type: "web_t"}
		}, process: "system_u:system_r:web_t:" + level, mount: file},
		{name: "not a level", ask: func(_ pod, c container) { c.SelinuxOptions = &options{Level: "s0,c4,c5"} }, fault: `selinux_options.level: "s0,c4,c5" is not a level`},
		{name: "not a part", ask: func(p pod, _ container) { p.SelinuxOptions = &options{Type: "a:b"} }, fault: `selinux_options.type: "a:b" is not a part`},
		{name: "unknown to the policy", ask: func(_ pod, c container) { c.SelinuxOptions = &options{Type: "nosuch_t"} }, fault: "selinux_options: label system_u:system_r:nosuch_t:" + level},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, c := &runtimev1.LinuxSandboxSecurityContext{}, &runtimev1.LinuxContainerSecurityContext{}
			row.ask(p, c)
			podConfig := &runtimev1.PodSandboxConfig{Linux: &runtimev1.LinuxPodSandboxConfig{SecurityContext: p}}
			config := &runtimev1.ContainerConfig{Linux: &runtimev1.LinuxContainerConfig{SecurityContext: c}}
			got, err := SELinuxLabels(host, podConfig, config, level)
			if want := (Labels{row.process, row.mount}); got != want {
				t.Errorf("got %v instead of %v", got, want)
			}
			var field *InvalidError
			if (row.fault == "") != (err == nil) || err != nil && (!errors.As(err, &field) || !strings.Contains(err.Error(), row.fault)) {
				t.Errorf("error %v instead of %q", err, row.fault)
			}
			if got, err := SELinuxLabels(nil, podConfig, config, ""); got != (Labels{}) || strings.Contains(row.name, "not a") != (err != nil) {
				t.Errorf("without SELinux: %v, %v", got, err)
			}
		})
	}
	podConfig := &runtimev1.PodSandboxConfig{}
	if got, err := SELinuxLabels(host, podConfig, nil, level); err != nil || got.Mount != file {
		t.Errorf("of the pod: %v, %v", got, err)
	}
}
