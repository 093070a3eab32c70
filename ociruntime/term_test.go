package ociruntime

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A scope that somebody else stops, as a machine that shuts down stops all processes, is gone once its containers have obeyed: long
// before systemd kills, which is after 90 s.
func TestSystemdStopsPod(t *testing.T) {
	f := newFixtureSystemd(t)
	const obeys = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
	for _, row := range []struct {
		name   string
		shared bool // one pid namespace with a PID 1 that does not mind SIGTERM
		script string
		code   int32
	}{
		{name: "no container"},
		{name: "no container, shared pid namespace", shared: true},
		{name: "container that has ended", script: "exit 7", code: 7},
		{name: "container that obeys", script: obeys, code: 5},
		{name: "container that obeys, shared pid namespace", shared: true, script: obeys, code: 5},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := f.pod(t, func(c *PodConfig) { c.SharedPID = row.shared })
			var c *Container
			if row.script != "" {
				var log string
				c, log = f.started(t, p, row.script, func(cc *ContainerConfig) { cc.SharedPID = row.shared })
				if row.script == obeys {
					waitLog(t, log, "ready")
				} else {
					waitExit(t, c)
				}
			}
			out, err := exec.CommandContext(testContext(t), "systemctl", "stop", "cri-"+p.config.ID+".scope").CombinedOutput()
			if err != nil {
				t.Fatalf("systemctl stop: %v: %s", err, out)
			}
			<-p.Exited()
			if c != nil {
				if exit := waitExit(t, c); exit.Code != row.code {
					t.Errorf("exit %+v, want code %d", exit, row.code)
				}
			}
			if units := systemctl(t, "list-units", "--all", "--plain", "--no-legend", "cri-"+p.config.ID+".scope"); units != "" {
				t.Errorf("left: %s", units)
			}
		})
	}
}

// A SIGTERM to pause alone does no harm to a pod in use, now or later.
func TestTermOfPauseInUse(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	first, _ := f.started(t, p, "sleep 1000", nil)
	if err := unix.PidfdSendSignal(int(p.conn.PidFD().Fd()), unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}
	if out, code := execText(t, first, "echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec printed %q, code %d", out, code)
	}
	second, _ := f.started(t, p, "sleep 1000", nil)
	for _, c := range []*Container{first, second} {
		if err := c.Kill(testContext(t)); err != nil {
			t.Fatal(err)
		}
		waitExit(t, c)
	}
	if out, exit := f.run(t, p, DefaultSpec("echo", "again")); strings.TrimSpace(out) != "again" || exit.Code != 0 {
		t.Errorf("printed %q, exit %+v", out, exit)
	}
}
