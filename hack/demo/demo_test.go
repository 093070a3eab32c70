package main

import (
	"bufio"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/leak"
)

// TestRun is `make run` in network and mount namespaces of its own, interrupted when it says how: it shows what it
// promises, ends well and leaves nothing but the daemon's own directories.
func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "run") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	leak.Check(t, leak.Only(leak.Process, leak.Mount, leak.Cgroup, leak.File), leak.Match("criserver-demo|"+regexp.QuoteMeta(dir)),
		leak.Files(filepath.Join(dir, "tmp")))
	socket := "unix://" + filepath.Join(dir, "sock")
	// It has a /run of its own, because the directory of network namespaces stays.
	run := exec.Command("unshare", "--net", "--mount", "sh", "-c", `ip link set lo up && mount -t tmpfs -o mode=755 run /run && exec hack/run "$@"`, "sh",
		"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", socket)
	run.Dir, run.Env, run.Stderr = "../..", append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp")), os.Stderr
	stdout, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "Ctrl-C removes") {
			if err := run.Process.Signal(unix.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	if err := run.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	for _, want := range []string{
		`(?m)^  PullImage +[0-9.]+ ms   127\.0\.0\.1:\d+/busybox:latest is [0-9a-f]{12}$`,
		`(?m)^  RunPodSandbox +[0-9.]+ ms   pod [0-9a-f]{12}$`,
		`(?m)^  CreateContainer +[0-9.]+ ms   container [0-9a-f]{12}$`,
		`(?m)^  StartContainer +[0-9.]+ ms`,
		`(?m)^  first log line +[0-9.]+ ms   \S+ stdout F hello from demo, Linux `,
		`(?m)^  PodSandboxStatus +[0-9.]+ ms   pod IP 10\.\S+, fd\S+$`,
		`(?m)^  ExecSync +[0-9.]+ ms   id: uid=0\(root\) .* \(exit code 0\)$`,
		`(?m)^removing the demonstration pod$`,
	} {
		if !regexp.MustCompile(want).MatchString(said.String()) {
			t.Errorf("no line like %s in:\n%s", want, said.String())
		}
	}
	checkStatic(t, "criserver", "pause", "cni/bandwidth", "cni/bridge", "cni/firewall", "cni/host-local", "cni/loopback", "cni/portmap", "cni/tuning")
}

// checkStatic looks at what was built: nothing needs a loader or a library.
func checkStatic(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		f, err := elf.Open(filepath.Join("../../bin", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("%s is not linked statically", name)
		}
		_ = f.Close()
	}
}
