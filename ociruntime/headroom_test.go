package ociruntime

import (
	"os"
	"strings"
	"testing"
)

// What pause was given so that others can be given it is not for everybody: with a hard limit of RLIMIT_RTPRIO any process
// can put itself before all others of the machine.
func TestPausePassesNoHeadroomOn(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	want := withoutOpenFiles(string(own) + string(limits))
	const script = "cat /proc/self/oom_score_adj /proc/self/limits"
	if out, _ := f.run(t, p, DefaultSpec("sh", "-c", script)); withoutOpenFiles(out) != want {
		t.Errorf("a container has\n%swant\n%s", out, want)
	}
	c, _ := f.started(t, p, "sleep 1000", nil)
	if out, _ := execText(t, c, "sh", "-c", script); withoutOpenFiles(out) != want {
		t.Errorf("an exec has\n%swant\n%s", out, want)
	}
}

// withoutOpenFiles takes out the limit that DefaultSpec names.
func withoutOpenFiles(limits string) string {
	var rest strings.Builder
	for line := range strings.Lines(limits) {
		if !strings.HasPrefix(line, "Max open files") {
			rest.WriteString(line)
		}
	}
	return rest.String()
}
