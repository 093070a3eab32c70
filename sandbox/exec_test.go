package sandbox

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/criserver/criserver/sandbox/stream"
)

func TestExecSync(t *testing.T) {
	m := newMachine(t)
	defer m.s.Close(context.Background())
	pod, id := m.made()
	for _, test := range []struct {
		name           string
		cmd            []string
		timeout        time.Duration
		stdout, stderr string
		code           int32
		fails          error
		drain          time.Duration
	}{
		{name: "both streams", cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, stdout: "out\n", stderr: "err\n", code: 3},
		{name: "true", cmd: []string{"true"}, timeout: time.Minute},
		{name: "output in one piece", cmd: []string{"sh", "-c", "printf '%0100000d' 7"}, stdout: strings.Repeat("0", 99999) + "7"},
		{name: "timeout", cmd: []string{"sh", "-c", "echo begun; sleep 1000 & wait"}, timeout: 2 * time.Second, fails: ErrExecTimeout,
			stdout: "begun\n"},
		{name: "background child keeps the pipe", cmd: []string{"sh", "-c", "sleep 1000 & echo done"}, stdout: "done\n", drain: drainBound},
		{name: "background child and a timeout", cmd: []string{"sh", "-c", "sleep 1000 & echo done"}, timeout: 2 * time.Second, stdout: "done\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m.s.drain = cmp.Or(test.drain, time.Hour)
			stdout, stderr, code, err := m.s.ExecSync(t.Context(), id, test.cmd, test.timeout)
			if !errors.Is(err, test.fails) {
				t.Errorf("got error %v, want %v", err, test.fails)
			}
			want(t, "stdout", string(stdout), test.stdout)
			want(t, "stderr", string(stderr), test.stderr)
			want(t, "code", code, test.code)
		})
	}
	must(t, m.s.RemovePod(t.Context(), pod))
}

func TestExecOutputIsBounded(t *testing.T) {
	m := newMachine(t)
	defer m.s.Close(context.Background())
	pod, id := m.made()
	stdout, stderr, code, err := m.s.ExecSync(t.Context(), id, []string{"sh", "-c", "head -c 20000000 /dev/zero; head -c 100 /dev/zero >&2; exit 4"}, 0)
	must(t, err)
	want(t, "stdout", len(stdout), 16<<20)
	want(t, "stderr", len(stderr), 100)
	want(t, "code", code, int32(4))
	must(t, m.s.RemovePod(t.Context(), pod))
}

func TestEndOfTheCallerKillsTheCommand(t *testing.T) {
	m := newMachine(t)
	defer m.s.Close(context.Background())
	pod, id := m.made()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, _, _, err := m.s.ExecSync(ctx, id, []string{"sleep", "1000"}, time.Hour)
	want(t, "error", errors.Is(err, context.Canceled), true)
	_, _, _, err = m.s.ExecSync(t.Context(), id, []string{"/does/not/exist"}, 0)
	want(t, "missing command is an error", err != nil, true)
	must(t, m.s.StopPod(t.Context(), pod))
	_, _, _, err = m.s.ExecSync(t.Context(), id, []string{"true"}, 0)
	want(t, "exec in an exited one", errors.Is(err, ErrState), true)
	must(t, m.s.RemovePod(t.Context(), pod))
}

// What a command wrote before it ended is not lost when nobody has read it by the deadline.
func TestOutputAtTheDeadline(t *testing.T) {
	for range 100 {
		var c capture
		if err := c.open(stream.Owner{}); err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("x", 60000)
		if _, err := c.w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		c.start()
		if got := c.finish(time.Now().Add(-time.Second)); string(got) != text {
			t.Fatalf("%d bytes of %d", len(got), len(text))
		}
	}
}
