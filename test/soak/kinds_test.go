package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idle is a script that says hello and runs until SIGTERM, which it turns into the exit code 7.
const idle = "trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 1000 & wait $!; done"

// ends: a container writes lines, quick or slow, and ends with a code.
func (l *life) ends(ctx context.Context) error {
	lines, code := 1+l.r.IntN(3000), int32(l.r.IntN(200))
	pause := ""
	if l.r.IntN(2) == 0 {
		lines = 1 + lines%40
		pause = "sleep 0.05;"
	}
	id, err := l.start(ctx, "c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; %s i=$((i+1)); done; exit %d", lines, pause, code))
	if err != nil {
		return err
	}
	if err := l.ended(ctx, id, code); err != nil {
		return err
	}
	var got []string
	for over := time.Now().Add(patience); ; { // the writer of logs is not waited for by exits
		if got, err = l.readLog("c"); err != nil {
			return err
		}
		if len(got) >= lines || time.Now().After(over) {
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	if len(got) != lines {
		return fmt.Errorf("the log of %s has %d lines instead of %d", id, len(got), lines)
	}
	for i, line := range got {
		if line != fmt.Sprintf("line %d", i) {
			return fmt.Errorf("line %d of the log of %s is %q", i, id, line)
		}
	}
	return nil
}

// stopped: a container is used and stopped in good time.
func (l *life) stopped(ctx context.Context) error {
	id, err := l.start(ctx, "c", idle)
	if err != nil {
		return err
	}
	if err := l.saysHello(); err != nil {
		return err
	}
	for range l.r.IntN(4) {
		if err := l.exec(ctx, id); err != nil {
			return err
		}
	}
	if err := l.stop(ctx, id, 30); err != nil {
		return err
	}
	if err := l.ended(ctx, id, 7); err != nil {
		return err
	}
	if l.r.IntN(2) == 0 {
		return l.removeContainer(ctx, id)
	}
	return nil
}

// saysHello waits until the container has set its trap.
func (l *life) saysHello() error {
	path := filepath.Join(l.config.LogDirectory, "c.log")
	for over := time.Now().Add(patience); ; {
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			return nil
		}
		if time.Now().After(over) {
			return fmt.Errorf("a container has written nothing to its log in %v", patience)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// stubborn: a container that ignores SIGTERM is killed after the grace, with all that it has started.
func (l *life) stubborn(ctx context.Context) error {
	id, err := l.start(ctx, "c", "trap '' TERM; (setsid sleep 1000 &) ; echo hello; sleep 1000 & wait; sleep 1000")
	if err != nil {
		return err
	}
	if err := l.saysHello(); err != nil {
		return err
	}
	if err := l.stop(ctx, id, int64(l.r.IntN(2))); err != nil {
		return err
	}
	return l.ended(ctx, id, 137)
}

// killed: somebody kills the container's first process.
func (l *life) killed(ctx context.Context) error {
	id, err := l.start(ctx, "c", idle)
	if err != nil {
		return err
	}
	pid, err := l.firstPid(id)
	if err == nil {
		err = killPid(pid)
	}
	if err != nil {
		return err
	}
	if err := l.ended(ctx, id, 137); err != nil {
		return err
	}
	return l.removeContainer(ctx, id)
}

// several containers in one pod; some are removed, one of them without being stopped.
func (l *life) several(ctx context.Context) error {
	ended, err := l.start(ctx, "a", "exit 3")
	if err != nil {
		return err
	}
	runs, err := l.start(ctx, "c", idle)
	if err != nil {
		return err
	}
	if _, err := l.create(ctx, "b", "exit 4"); err != nil {
		return err
	}
	if err := l.ended(ctx, ended, 3); err != nil {
		return err
	}
	if err := l.exec(ctx, runs); err != nil {
		return err
	}
	if l.r.IntN(2) == 0 {
		return errors.Join(l.removeContainer(ctx, runs), l.removeContainer(ctx, ended))
	}
	return nil
}

// slainPause: the pod's pause is killed, and all of the pod must end with it.
func (l *life) slainPause(ctx context.Context) error {
	id, err := l.start(ctx, "c", idle)
	if err != nil {
		return err
	}
	pid, err := l.firstPid(l.podID)
	if err != nil {
		return err
	}
	if l.r.IntN(2) == 0 { // while something goes on in it
		go func() {
			ctx, cancel := context.WithTimeout(ctx, rpcBound)
			defer cancel()
			_, _ = l.s.d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "3"}, Timeout: 5}) // it fails, somehow
		}()
	}
	if err := killPid(pid); err != nil {
		return err
	}
	if err := l.ended(ctx, id, 137, 255); err != nil { // nobody saw it end if criserver was away
		return err
	}
	for over := time.Now().Add(patience); ; {
		all, err := ask(ctx, l.r, "PodSandboxStatus", func(ctx context.Context) (cri.PodSandboxState, error) {
			r, err := l.s.d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: l.podID})
			return r.GetStatus().GetState(), err
		})
		if err != nil {
			return err
		}
		if all[0] == cri.PodSandboxState_SANDBOX_NOTREADY {
			return nil
		}
		if time.Now().After(over) {
			return fmt.Errorf("pod %s is ready without its pause", l.podID)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// unborn: a start fails, because there is no such program; the container has ended then.
func (l *life) unborn(ctx context.Context) error {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: l.s.image(l.r)}, Command: []string{"/no/such"}, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: l.config.Linux.SecurityContext.NamespaceOptions}},
	}
	ids, err := ask(ctx, l.r, "CreateContainer", func(ctx context.Context) (string, error) {
		r, err := l.s.d.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: l.podID, Config: config, SandboxConfig: l.config})
		return r.GetContainerId(), err
	})
	if err != nil {
		return err
	}
	_, err = ask(ctx, l.r, "StartContainer", func(ctx context.Context) (*cri.StartContainerResponse, error) {
		return l.s.d.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: ids[0]})
	})
	if err == nil || status.Code(err) == codes.Internal {
		return fmt.Errorf("start of a program that does not exist: %w", err)
	}
	return l.ended(ctx, ids[0], 128, 255) // 255: criserver was killed before it could record why
}

// replaced: the pod is asked for with another config under the same identity, and replaces the older one.
func (l *life) replaced(ctx context.Context) error {
	if _, err := l.start(ctx, "c", idle); err != nil {
		return err
	}
	if l.address != "" {
		l.s.addresses.Delete(l.address)
	}
	older := l.podID
	l.config.Hostname = "other"
	l.podID = ""
	answers, err := ask(ctx, l.r, "RunPodSandbox of another config", func(ctx context.Context) (string, error) {
		r, err := l.s.d.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: l.config})
		return r.GetPodSandboxId(), err
	})
	if err != nil {
		l.podID = older
		return err
	}
	l.podID, l.address = answers[0], ""
	if l.podID == older {
		return fmt.Errorf("a different request got the older pod %s", older)
	}
	if err := l.onlyOne(ctx); err != nil {
		return err
	}
	return l.claimAddress(ctx)
}
