package reset

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// describe prints, in a container, what there is of an image.
const describe = "find /data ! -type d | sort | xargs stat -c '%N %f %u:%g %h %s'; find /data -type d | sort | xargs stat -c '%n %f %u:%g'; " +
	"find /data -type f | sort | xargs sha256sum; echo end"

// files is what a container finds in an image.
func (n *node) files(t *testing.T, ref string) string {
	t.Helper()
	pod, container, log := n.run(t, ref, describe)
	eventually(t, func() string { return "container has ended" }, func() bool {
		s, err := n.runtime.ContainerStatus(bounded(t), &cri.ContainerStatusRequest{ContainerId: container})
		if err != nil {
			t.Fatal(err)
		}
		return s.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED
	})
	text := logged(t, log, "end")
	n.removePod(t, pod)
	return text
}

// idle starts a container that has written and lives.
func (n *node) idle(t *testing.T, ref string) {
	t.Helper()
	_, _, log := n.run(t, ref, "dd if=/dev/zero of=/written bs=64k count=16 2>/dev/null; echo end; sleep 1000")
	logged(t, log, "end")
}

// run starts a container in a pod of its own on the host's network.
func (n *node) run(t *testing.T, ref, script string) (pod, container, log string) {
	t.Helper()
	options := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	logs := t.TempDir()
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: filepath.Base(logs), Namespace: "reset", Uid: "uid"},
		LogDirectory: logs,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/reset", SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: options}},
	}
	p, err := n.runtime.RunPodSandbox(bounded(t), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	c, err := n.runtime.CreateContainer(bounded(t), &cri.CreateContainerRequest{PodSandboxId: p.GetPodSandboxId(), SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: ref}, Command: []string{"/bin/sh", "-c", script}, LogPath: "log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: options}},
	}})
	if err != nil {
		t.Fatalf("CreateContainer of %s: %v", ref, err)
	}
	if _, err := n.runtime.StartContainer(bounded(t), &cri.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
		t.Fatalf("StartContainer of %s: %v", ref, err)
	}
	return p.GetPodSandboxId(), c.GetContainerId(), filepath.Join(logs, "log")
}

// logged is what a container has written until it wrote the line last.
func logged(t *testing.T, log, last string) (text string) {
	t.Helper()
	eventually(t, func() string { return "it writes " + last + ": " + text }, func() bool {
		file, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for line := range strings.Lines(string(file)) {
			if parts := strings.SplitN(line, " ", 4); len(parts) == 4 { // time, stream, tag, text
				b.WriteString(parts[3])
			}
		}
		text = b.String()
		return strings.HasSuffix("\n"+text, "\n"+last+"\n")
	})
	return text
}

// removePods removes the pods of the boot before.
func (n *node) removePods(t *testing.T) {
	t.Helper()
	list, err := n.runtime.ListPodSandbox(bounded(t), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.GetItems() {
		if p.GetState() == cri.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod %s is called ready after a reset", p.GetId())
		}
		n.removePod(t, p.GetId())
	}
}

func (n *node) removePod(t *testing.T, id string) {
	t.Helper()
	if _, err := n.runtime.StopPodSandbox(bounded(t), &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatalf("StopPodSandbox: %v", err)
	}
	if _, err := n.runtime.RemovePodSandbox(bounded(t), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatalf("RemovePodSandbox: %v", err)
	}
}
