package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// killEnv tells a copy of the test program at which boundary it is to be killed, and where.
const killEnv = "CRISERVER_TEST_KILL"

// TestKilledProcess is not a test by itself: it is the criserver that TestRealKill kills.
func TestKilledProcess(t *testing.T) {
	var at int
	var dir, parent string
	if n, _ := fmt.Sscanf(os.Getenv(killEnv), "%d %s %s", &at, &dir, &parent); n != 3 {
		t.Skip("runs as a part of TestRealKill")
	}
	r := realNodeIn(t, dir, parent)
	r.start(func(name string) {
		if at--; at == -1 {
			fmt.Println("killed", name)
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	})
	config := r.podConfig("kill")
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimev1.NamespaceMode_POD
	pod, err := r.s.RunPod(t.Context(), config, "")
	r.must(err)
	id, err := r.s.CreateContainer(t.Context(), pod, r.containerConfig("main", "sh", "-c", "sleep 1000 & sleep 1000"), nil)
	r.must(err)
	r.must(r.s.StartContainer(t.Context(), id))
	r.must(r.s.RemoveContainer(t.Context(), id))
	r.must(r.s.RemovePod(t.Context(), pod))
	fmt.Println("survived")
}

// TestRealKill kills a criserver by SIGKILL between any two of its steps, with a real kernel. Another one must then
// leave nothing of what was not finished, and be able to remove what was.
func TestRealKill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	for at := 0; ; at++ {
		survived := false
		t.Run(strconv.Itoa(at), func(t *testing.T) {
			r := newRealNode(t)
			r.s.Close(context.Background())
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$", "-test.v")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s", killEnv, at, r.dir, r.parent), "TMPDIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if survived = err == nil; !survived && cmd.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() == false {
				t.Fatalf("failed instead of being killed: %v\n%s", err, out)
			}
			t.Logf("%s", out)
			r.start(nil)
			deadline := time.Now().Add(20 * time.Second)
			for halfMade(r) && time.Now().Before(deadline) {
				<-time.After(10 * time.Millisecond) // it is undone in the background
			}
			if st := r.s.ListPods(); len(st) > 1 {
				t.Errorf("%d pods", len(st))
			}
		})
		if survived || t.Failed() {
			t.Logf("killed at %d boundaries", at)
			return
		}
	}
}

// halfMade says whether there is a pod on disk that is not listed.
func halfMade(r *realNode) bool {
	entries, err := os.ReadDir(r.dir + "/state/pods")
	r.must(err)
	return len(entries) > len(r.s.ListPods())
}
