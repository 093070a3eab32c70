package critest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
			began := time.Now()
			c := p.start(t, row.script)
			c.wait(t)
			var got []string
			complete := within(settleBound, func() bool {
				got = nil
				for _, line := range readLog(t, c.log()) {
					got = append(got, line.stream+" "+line.tag+" "+line.text)
					if line.at.Before(began) || line.at.After(time.Now()) {
						t.Errorf("time %v", line.at)
					}
				}
				return slices.Equal(got, row.want)
			})
			if !complete {
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
	c.wrote(t, "x\n")
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

// manyLines are numbered, so that each that is missing or out of order is seen.
const manyLines = 1_000_000

// counting is a container that writes numbered lines until it is told to stop.
type counting struct {
	*container
	control string // directory of the host
}

func (p *pod) count(t *testing.T) *counting {
	t.Helper()
	c := &counting{control: t.TempDir()}
	c.container = p.start(t, "i=0; until [ -e /control/stop ]; do seq $((i+1)) $((i+10000)); i=$((i+10000)); done; echo $i >/control/lines",
		mounts(&cri.Mount{HostPath: c.control, ContainerPath: "/control"}))
	return c
}

// finish has it stop and returns how many lines it wrote.
func (c *counting) finish(t *testing.T) (lines int) {
	t.Helper()
	write(t, filepath.Join(c.control, "stop"), "")
	if s := c.wait(t); s.GetExitCode() != 0 {
		t.Errorf("exit code %d", s.GetExitCode())
	}
	text, err := os.ReadFile(filepath.Join(c.control, "lines"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(text), &lines); err != nil {
		t.Fatal(err)
	}
	return lines
}

// rotate does what the kubelet does with a log that is too large, and returns the name of the older one.
func (c *counting) rotate(t *testing.T, i int) (old string) {
	t.Helper()
	old = fmt.Sprintf("%s.%d", c.log(), i)
	if err := os.Rename(c.log(), old); err != nil {
		t.Fatal(err)
	}
	if _, err := c.p.d.runtime.ReopenContainerLog(bounded(t), &cri.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.log()); err != nil {
		t.Fatalf("after ReopenContainerLog: %v", err)
	}
	return old
}

func TestLogOrder(t *testing.T) {
	d := use(t)
	p := runPod(t, d)
	c := p.start(t, fmt.Sprintf("seq %d", manyLines))
	c.wait(t)
	expectSequence(t, manyLines, c.log())
}

// expectSequence wants the lines 1 to last in the logs, which are read one after the other when the last line is there.
func expectSequence(t *testing.T, last int, logs ...string) {
	t.Helper()
	end := fmt.Sprintf(" %d\n", last)
	within(settleBound, func() bool {
		text, err := os.ReadFile(logs[len(logs)-1])
		return err == nil && bytes.HasSuffix(text, []byte(end))
	})
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
	c := p.count(t)
	var logs []string
	for i := range 100 {
		logs = append(logs, c.rotate(t, i))
	}
	expectSequence(t, c.finish(t), append(logs, c.log())...)
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
	eventually(t, settleBound, "all lines are in the log", func() bool { return len(readLog(t, c.log())) >= 4000 })
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
	if got := c.exec(t, "echo exec"); got != "exec\n" {
		t.Errorf("exec says %q", got)
	}
	if s := p.start(t, "exit 6").wait(t); s.GetExitCode() != 6 {
		t.Errorf("exit code %d", s.GetExitCode())
	}
	c.stop(t, 0)
	if s := c.status(t); s.GetExitCode() != 137 {
		t.Errorf("exit code %d", s.GetExitCode())
	}
}
