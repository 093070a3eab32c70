package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// life is one pod from its making to its removal.
type life struct {
	s       *soak
	r       *rand.Rand
	serial  int64
	name    string
	config  *cri.PodSandboxConfig
	podID   string
	address string
}

// kinds of lives, by what happens to the container.
var kinds = map[string]func(*life, context.Context) error{
	"ends":     (*life).ends,
	"stopped":  (*life).stopped,
	"stubborn": (*life).stubborn,
	"killed":   (*life).killed,
	"several":  (*life).several,
	"slain":    (*life).slainPause,
	"unborn":   (*life).unborn,
	"replaced": (*life).replaced,
}

func (l *life) live(ctx context.Context) error {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	l.name = names[l.r.IntN(len(names))]
	if *only != "" {
		l.name = *only
	}
	l.makeConfig()
	// As the kubelet does. Else criserver makes the parent, and the pod that made it removes it; if there is another pod in it
	// by then, because the first try was killed or replaced, it stays (docs/soak.md).
	if *killMin > 0 || l.name == "replaced" || l.r.IntN(2) == 0 {
		if err := eachHierarchy(func(point string) error { return os.Mkdir(point+l.config.Linux.CgroupParent, 0o755) }); err != nil {
			return err
		}
		defer l.removeCgroup()
	}
	err := l.runPod(ctx)
	if err == nil {
		err = kinds[l.name](l, ctx)
	}
	return errors.Join(err, l.remove(ctx))
}

// removeCgroup removes what was made as the kubelet does: again and again, until all pods that were in it are gone.
func (l *life) removeCgroup() {
	_ = eachHierarchy(func(point string) error {
		for over := time.Now().Add(patience); time.Now().Before(over); {
			if err := os.Remove(point + l.config.Linux.CgroupParent); err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		return nil // what stays is found at the end of the epoch
	})
}

func (l *life) makeConfig() {
	network := cri.NamespaceMode_NODE
	if l.r.IntN(2) == 0 {
		network = cri.NamespaceMode_POD
	}
	pid := cri.NamespaceMode_CONTAINER
	if l.r.IntN(4) == 0 {
		pid = cri.NamespaceMode_POD
	}
	var users *cri.UserNamespace
	if network == cri.NamespaceMode_POD && l.r.IntN(3) == 0 {
		ids := []*cri.IDMapping{{HostId: uint32(1+l.serial%100) << 16, Length: 1 << 16}}
		users = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	n := strconv.FormatInt(l.serial, 10)
	l.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: l.name + "-" + n, Namespace: "soak", Uid: n, Attempt: 1},
		LogDirectory: filepath.Join(place.dir, "logs", n),
		Labels:       map[string]string{"life": n},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: place.cgroups + "/pod" + n,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: network, Pid: pid, UsernsOptions: users},
			},
		},
	}
}

// runPod makes the pod; whoever is told of it must be told the same, and there must be one.
func (l *life) runPod(ctx context.Context) error {
	answers, err := ask(ctx, l.r, "RunPodSandbox", func(ctx context.Context) (string, error) {
		r, err := l.s.d.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: l.config})
		return r.GetPodSandboxId(), err
	})
	if err != nil {
		return err
	}
	l.podID = answers[0]
	if again, err := ask(ctx, l.r, "RunPodSandbox again", func(ctx context.Context) (string, error) {
		r, err := l.s.d.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: l.config})
		return r.GetPodSandboxId(), err
	}); err != nil {
		return err
	} else if ids := slices.Compact(slices.Sorted(slices.Values(append(answers, again...)))); len(ids) != 1 {
		return fmt.Errorf("RunPodSandbox gave several pods: %v", ids)
	}
	if err := l.onlyOne(ctx); err != nil {
		return err
	}
	return l.claimAddress(ctx)
}

// onlyOne says whether the list shows this pod, and no other under its identity that is ready.
func (l *life) onlyOne(ctx context.Context) error {
	lists, err := ask(ctx, l.r, "ListPodSandbox", func(ctx context.Context) ([]*cri.PodSandbox, error) {
		r, err := l.s.d.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: l.config.Labels}})
		return r.GetItems(), err
	})
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(slices.Clone(lists[0]), func(p *cri.PodSandbox) bool { return p.State != cri.PodSandboxState_SANDBOX_READY })
	if len(list) != 1 || list[0].Id != l.podID {
		return fmt.Errorf("after RunPodSandbox gave %s the list has %v", l.podID, lists[0])
	}
	return nil
}

// claimAddress says whether the pod has an address that no other has.
func (l *life) claimAddress(ctx context.Context) error {
	if l.config.Linux.SecurityContext.NamespaceOptions.Network == cri.NamespaceMode_NODE {
		return nil
	}
	all, err := ask(ctx, l.r, "PodSandboxStatus", func(ctx context.Context) (*cri.PodSandboxStatus, error) {
		r, err := l.s.d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: l.podID})
		return r.GetStatus(), err
	})
	if err != nil {
		return err
	}
	ip := all[0].GetNetwork().GetIp()
	if ip == "" || len(all[0].GetNetwork().GetAdditionalIps()) != 1 {
		return fmt.Errorf("pod %s has the addresses %v", l.podID, all[0].GetNetwork())
	}
	if other, taken := l.s.addresses.LoadOrStore(ip, l.podID); taken {
		return fmt.Errorf("pods %s and %v both have the address %s", l.podID, other, ip)
	}
	l.address = ip
	return nil
}

// remove removes the pod, however it stands.
func (l *life) remove(ctx context.Context) error {
	if l.podID == "" {
		return nil
	}
	if l.address != "" {
		l.s.addresses.Delete(l.address) // it can be another's as soon as the pod stops
	}
	if l.r.IntN(3) > 0 {
		if _, err := ask(ctx, l.r, "StopPodSandbox", func(ctx context.Context) (*cri.StopPodSandboxResponse, error) {
			return l.s.d.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: l.podID})
		}); err != nil {
			return err
		}
	}
	_, err := ask(ctx, l.r, "RemovePodSandbox", func(ctx context.Context) (*cri.RemovePodSandboxResponse, error) {
		return l.s.d.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: l.podID})
	})
	if err != nil {
		return err
	}
	_, err = ask(ctx, l.r, "PodSandboxStatus", func(ctx context.Context) (*cri.PodSandboxStatusResponse, error) {
		return l.s.d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: l.podID})
	})
	if status.Code(err) != codes.NotFound {
		return fmt.Errorf("the status of a removed pod: %w", err)
	}
	return os.RemoveAll(l.config.LogDirectory)
}

// create makes a container of a shell's script. Its log is <name>.log.
func (l *life) create(ctx context.Context, name, script string) (string, error) {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: l.s.image(l.r)},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: l.config.Linux.SecurityContext.NamespaceOptions},
		},
	}
	answers, err := ask(ctx, l.r, "CreateContainer", func(ctx context.Context) (string, error) {
		r, err := l.s.d.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: l.podID, Config: config, SandboxConfig: l.config})
		return r.GetContainerId(), err
	})
	if err != nil {
		return "", err
	}
	if ids := slices.Compact(slices.Sorted(slices.Values(answers))); len(ids) != 1 {
		return "", fmt.Errorf("CreateContainer gave several containers: %v", ids)
	}
	return answers[0], nil
}

// start makes and starts a container.
func (l *life) start(ctx context.Context, name, script string) (string, error) {
	id, err := l.create(ctx, name, script)
	if err != nil {
		return "", err
	}
	return id, l.startContainer(ctx, id)
}

// startContainer bears to hear that another copy of the request was the one that started the container.
func (l *life) startContainer(ctx context.Context, id string) error {
	sent := 0
	_, err := ask(ctx, l.r, "StartContainer", func(ctx context.Context) (*cri.StartContainerResponse, error) {
		l.s.mu.Lock()
		sent++
		l.s.mu.Unlock()
		return l.s.d.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	})
	if sent == 1 || status.Code(err) != codes.FailedPrecondition {
		return err
	}
	s, statusErr := l.containerStatus(ctx, id)
	if s.GetState() == cri.ContainerState_CONTAINER_RUNNING || s.GetState() == cri.ContainerState_CONTAINER_EXITED {
		return nil
	}
	return errors.Join(err, statusErr)
}

func (l *life) containerStatus(ctx context.Context, id string) (*cri.ContainerStatus, error) {
	all, err := ask(ctx, l.r, "ContainerStatus", func(ctx context.Context) (*cri.ContainerStatus, error) {
		r, err := l.s.d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		return r.GetStatus(), err
	})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ended waits for the end of a container, which must have the exit code.
func (l *life) ended(ctx context.Context, id string, codes ...int32) error {
	over := time.Now().Add(patience)
	for {
		s, err := l.containerStatus(ctx, id)
		if err != nil {
			return err
		}
		if s.State == cri.ContainerState_CONTAINER_EXITED {
			if !slices.Contains(codes, s.ExitCode) || s.FinishedAt < max(s.CreatedAt, s.StartedAt) {
				return fmt.Errorf("container %s of %s ended with %v instead of code %v", id, l.name, s, codes)
			}
			return nil
		}
		if time.Now().After(over) {
			return fmt.Errorf("container %s of %s has not ended in %v: %v", id, l.name, patience, s)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (l *life) stop(ctx context.Context, id string, grace int64) error {
	_, err := ask(ctx, l.r, "StopContainer", func(ctx context.Context) (*cri.StopContainerResponse, error) {
		return l.s.d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: grace})
	})
	return err
}

func (l *life) removeContainer(ctx context.Context, id string) error {
	_, err := ask(ctx, l.r, "RemoveContainer", func(ctx context.Context) (*cri.RemoveContainerResponse, error) {
		return l.s.d.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
	})
	return err
}

// exec runs a command, whose output and code are known.
func (l *life) exec(ctx context.Context, id string) error {
	code := int32(l.r.IntN(4))
	word := strconv.Itoa(l.r.IntN(1e6))
	all, err := ask(ctx, l.r, "ExecSync", func(ctx context.Context) (*cri.ExecSyncResponse, error) {
		return l.s.d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Timeout: 20,
			Cmd: []string{"sh", "-c", fmt.Sprintf("echo %s; echo err >&2; exit %d", word, code)}})
	})
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.ExitCode != code || string(r.Stdout) != word+"\n" || string(r.Stderr) != "err\n" {
			return fmt.Errorf("exec of echo %s and exit %d gave %v", word, code, r)
		}
	}
	return nil
}

// readLog returns the lines of a container, without time and stream.
func (l *life) readLog(name string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(l.config.LogDirectory, name+".log"))
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 || f[2] != "F" || !strings.HasSuffix(line, "\n") {
			return nil, fmt.Errorf("log line %q", line)
		}
		lines = append(lines, strings.TrimSuffix(f[3], "\n"))
	}
	return lines, nil
}

// firstPid finds the first process in a leaf of the pod's cgroup.
func (l *life) firstPid(leaf string) (int, error) {
	var pid int
	err := eachHierarchy(func(point string) error {
		text, err := os.ReadFile(filepath.Join(point, l.config.Linux.CgroupParent, leaf, "cgroup.procs"))
		if f := strings.Fields(string(text)); err == nil && len(f) > 0 && pid == 0 {
			pid, err = strconv.Atoi(f[0])
		}
		return err
	})
	if err == nil && pid == 0 {
		err = fmt.Errorf("cgroup of %s is empty", leaf)
	}
	return pid, err
}

func killPid(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
