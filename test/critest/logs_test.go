package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLogFormat(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	long := strings.Repeat("x", 16384)
	for _, row := range []struct {
		name, script string
		want         []string // stream, tag, text
	}{
		{"one line", "echo a", []string{"stdout F a"}},
		{"stderr", "echo a >&2", []string{"stderr F a"}},
		{"nothing", "true", nil},
		{"empty line", "echo", []string{"stdout F "}},
		{"spaces", "echo '  a  b  '", []string{"stdout F   a  b  "}},
		{"carriage return", `printf 'a\r\n'`, []string{"stdout F a\r"}},
		{"bytes that are no text", `printf '\377\000\001\n'`, []string{"stdout F \xff\x00\x01"}},
		{"no end of line", "printf abc", []string{"stdout P abc"}},
		{"longest whole line", "head -c 16384 /dev/zero | tr '\\0' x; echo", []string{"stdout F " + long}},
		{"one byte too long", "head -c 16385 /dev/zero | tr '\\0' x; echo", []string{"stdout P " + long, "stdout F x"}},
		{"very long", "head -c 40000 /dev/zero | tr '\\0' x; echo y", []string{"stdout P " + long, "stdout P " + long, "stdout F " + strings.Repeat("x", 40000-2*16384) + "y"}},
		{"line in pieces", "printf a; sleep 0.05; printf b; sleep 0.05; echo c", []string{"stdout F abc"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := p.start(t, row.script)
			c.wait(t)
			var got []string
			before := time.Now().Add(-rpcBound)
			for _, line := range readLog(t, c.log()) {
				got = append(got, line.stream+" "+line.tag+" "+line.text)
				if line.at.Before(before) || line.at.After(time.Now()) {
					t.Errorf("time %v", line.at)
				}
			}
			if strings.Join(got, "\n") != strings.Join(row.want, "\n") {
				t.Errorf("log has %q instead of %q", got, row.want)
			}
		})
	}
}

func TestLogFile(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, "echo x", func(c *cri.ContainerConfig) { c.LogPath = "sub/dir/0.log" })
	c.wait(t)
	st, err := os.Stat(c.log())
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
	text, err := os.ReadFile(c.log())
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) stdout F x\n$`).Match(text) {
		t.Errorf("log is %q", text)
	}
	c.remove(t)
	if _, err := os.Stat(c.log()); err != nil {
		t.Errorf("the log is gone with its container: %v", err)
	}
	none := p.start(t, "echo x", func(c *cri.ContainerConfig) { c.LogPath = "" })
	if s := none.wait(t); s.GetExitCode() != 0 || s.GetLogPath() != "" {
		t.Errorf("without a log: exit code %d, log path %q", s.GetExitCode(), s.GetLogPath())
	}
}

// lines of the stress below: numbered, so that each that is missing or out of order is seen.
const manyLines = 1_000_000

func TestLogOrder(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, fmt.Sprintf("seq %d", manyLines))
	c.wait(t)
	expectSequence(t, manyLines, c.log())
}

// expectSequence wants the lines 1 to last in the logs, which are read one after the other.
func expectSequence(t *testing.T, last int, logs ...string) {
	t.Helper()
	n := 0
	for _, path := range logs {
		for _, line := range readLog(t, path) {
			n++
			if line.text != fmt.Sprint(n) || line.tag != "F" || line.stream != "stdout" {
				t.Fatalf("%s: line %d is %q of %s, %s", filepath.Base(path), n, line.text, line.stream, line.tag)
			}
		}
	}
	if n != last {
		t.Errorf("%d lines instead of %d", n, last)
	}
}

// Reopening under load splits no line and loses none.
func TestLogReopenUnderLoad(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, fmt.Sprintf("seq %d", manyLines))
	var logs []string
	for c.status(t).GetState() == cri.ContainerState_CONTAINER_RUNNING {
		old := fmt.Sprintf("%s.%d", c.log(), len(logs))
		if err := os.Rename(c.log(), old); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, old)
		_, err := d.runtime.ReopenContainerLog(bounded(t), &cri.ReopenContainerLogRequest{ContainerId: c.id})
		if err != nil {
			if s := c.status(t).GetState(); s == cri.ContainerState_CONTAINER_RUNNING {
				t.Fatal(err)
			}
			break
		}
		if _, err := os.Stat(c.log()); err != nil {
			t.Fatalf("after ReopenContainerLog: %v", err)
		}
	}
	c.wait(t)
	if _, err := os.Stat(c.log()); err == nil {
		logs = append(logs, c.log())
	}
	if len(logs) < 3 {
		t.Errorf("only %d reopened", len(logs))
	}
	expectSequence(t, manyLines, logs...)
}

func TestLogReopenRefused(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	created, exited := p.create(t, idle), p.start(t, "true")
	exited.wait(t)
	if err := os.Remove(exited.log()); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		id   string
		code codes.Code
	}{
		"unknown": {strings.Repeat("2", 64), codes.NotFound}, "created": {created.id, codes.FailedPrecondition},
		"exited": {exited.id, codes.FailedPrecondition}, "empty": {"", codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.runtime.ReopenContainerLog(bounded(t), &cri.ReopenContainerLogRequest{ContainerId: row.id})
			refused(t, err, row.code)
		})
	}
	if _, err := os.Stat(exited.log()); err == nil {
		t.Error("a refused ReopenContainerLog made a file")
	}
}

// Two containers' logs, and both streams of one, do not mix within lines.
func TestLogStreams(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, "for i in $(seq 2000); do echo out$i; echo err$i >&2; done")
	c.wait(t)
	next := map[string]int{"stdout": 1, "stderr": 1}
	for _, line := range readLog(t, c.log()) {
		if want := fmt.Sprintf("%s%d", line.stream[3:], next[line.stream]); line.text != want {
			t.Fatalf("%q instead of %q", line.text, want)
		}
		next[line.stream]++
	}
	if next["stdout"] != 2001 || next["stderr"] != 2001 {
		t.Errorf("next would be %v", next)
	}
}

// A log on a file system that stalls (here: a full pipe, whose writer the kernel holds up) delays no exec, stop and exit.
func TestLogStalled(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	config := containerConfig("echo begin; yes | head -c 50000000; echo done >/tmp/done; "+idle, func(c *cri.ContainerConfig) { c.LogPath = "stalled" })
	if err := unix.Mkfifo(filepath.Join(p.logs, "stalled"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(filepath.Join(p.logs, "stalled"), os.O_RDWR, 0) // never read
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	c, err := p.tryCreate(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.tryStart(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, rpcBound, "the pipe is full", func() bool {
		n, err := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
		return err == nil && n > 60000
	})
	began := time.Now()
	if got := c.exec(t, "echo exec"); got != "exec\n" {
		t.Errorf("exec says %q", got)
	}
	if code, _ := p.run(t, "exit 6"); code != 6 {
		t.Errorf("exit code %d", code)
	}
	c.stop(t, 0)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("exec, exit and stop took %v", took)
	}
	if s := c.status(t); s.GetExitCode() != 137 {
		t.Errorf("exit code %d", s.GetExitCode())
	}
}
