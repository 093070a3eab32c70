package pause_test

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pause"
)

func TestExitStatus(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		tests := []struct {
			script string
			code   int
			signal unix.Signal
		}{
			{script: "exit 0"},
			{script: "exit 42", code: 42},
			{script: "exit 255", code: 255},
			{script: "kill -TERM $$", signal: unix.SIGTERM},
			{script: "kill -KILL $$", signal: unix.SIGKILL},
			{script: "kill -SEGV $$", signal: unix.SIGSEGV},
		}
		for i, tt := range tests {
			c := p.add(uint64(i + 1))
			p.run(c, tt.script)
			e := p.exit(c.task)
			if tt.signal != 0 {
				if !e.Status.Signaled() || e.Status.Signal() != tt.signal {
					t.Errorf("%s: status %#x, want signal %v", tt.script, e.Status, tt.signal)
				}
			} else if !e.Status.Exited() || e.Status.ExitStatus() != tt.code {
				t.Errorf("%s: status %#x, want exit %d", tt.script, e.Status, tt.code)
			}
			data, err := os.ReadFile(p.dir + "/exits")
			must(t, err)
			if r, ok := pause.ParseExits(data)[int(c.task)]; !ok || r != e {
				t.Errorf("%s: recorded %+v, told %+v", tt.script, r, e)
			}
		}
	})
}

func TestLogSmoke(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		p.run(c, "echo hello; echo oops >&2; printf tail")
		if e := p.exit(1); e.LogBehind || e.Populated {
			t.Errorf("exit %+v", e)
		}
		records := readLog(t, c.log)
		if got := fmt.Sprint(text(records, "stdout"), text(records, "stderr")); got != "hello\ntailoops\n" {
			t.Errorf("log has %q", got)
		}
	})
}
