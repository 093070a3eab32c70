package pause_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMemory holds an idle pod with one container to its budget.
func TestMemory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	const pods, limit = 8, 31 << 10 // bytes of PSS; the text is shared between pods
	var started []*pod
	for range pods {
		p := startPause(t, binaries["pause"])
		c := p.add(1)
		p.run(c, "echo begun; exec sleep 1000")
		eventually(t, "the first log line", func() bool { return len(readLog(t, c.log)) == 1 })
		started = append(started, p)
	}
	awaitIdle(t)
	sum := 0
	for _, p := range started {
		sum += pss(t, p.cmd.Process.Pid)
		if os.Getenv("PAUSE_SMAPS") != "" {
			data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", p.cmd.Process.Pid))
			t.Logf("%s", data)
		}
	}
	t.Logf("PSS %d bytes a pod", sum/pods)
	if sum/pods > limit {
		t.Errorf("PSS is %d bytes a pod, want at most %d", sum/pods, limit)
	}
}

func pss(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			must(t, err)
			return kib << 10
		}
	}
	t.Fatal("no Pss")
	return 0
}

// awaitIdle waits until the writer has given its buffers back, one second after the last line.
func awaitIdle(t testing.TB) {
	t.Helper()
	timer := time.NewTimer(1500 * time.Millisecond)
	defer timer.Stop()
	<-timer.C
}
