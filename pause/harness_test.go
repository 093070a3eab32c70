package pause_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// binaries are built once: the real one and one with ASAN and UBSAN.
var binaries = map[string]string{}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pause-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for name, target := range map[string]string{"pause": "all", "pause-asan": "sanitize"} {
		out, err := exec.Command("make", "-C", "src", target, "BIN="+dir).CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "make %s: %v\n%s", target, err, out)
			return 1
		}
		binaries[name] = filepath.Join(dir, name)
	}
	return m.Run()
}

// eachBinary runs a test against the real pause and the sanitized one.
func eachBinary(t *testing.T, test func(t *testing.T, binary string)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: namespaces and mounts")
	}
	for _, name := range []string{"pause", "pause-asan"} {
		t.Run(name, func(t *testing.T) { test(t, binaries[name]) })
	}
}

const exitSlots = 256

// pod is a running pause with one connection to it.
type pod struct {
	t      testing.TB
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	dir    string
	exited chan struct{} // closed when pause is gone
	ended  bool          // the test ended it on purpose

	mu     sync.Mutex
	conn   *pause.Conn
	exits  map[uint64]pause.Exit
	change chan struct{} // closed and replaced with every exit
}

// startPause starts a pause and says hello. When the test ends it must still be alive, and is killed.
func startPause(t testing.TB, binary string) *pod {
	t.Helper()
	p, ours := spawn(t, binary, nil)
	conn, err := newConn(deadline(t), ours)
	if err != nil {
		t.Fatalf("greet pause: %v\n%s", err, p.stderr)
	}
	p.follow(conn)
	return p
}

// newConn says hello and waits for the answer.
func newConn(ctx context.Context, f *os.File) (*pause.Conn, error) {
	c, err := pause.Begin(f)
	if err != nil {
		return nil, err
	}
	if err := c.Greet(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// spawn starts a pause, which may be told to go on from a state, and returns the control socket.
func spawn(t testing.TB, binary string, state *os.File) (*pod, *os.File) {
	t.Helper()
	p := &pod{t: t, dir: t.TempDir(), exited: make(chan struct{}), exits: make(map[uint64]pause.Exit), change: make(chan struct{}), stderr: new(bytes.Buffer)}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer func() { _ = theirs.Close() }()
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(p.dir, "pause.sock"), Net: "unixpacket"})
	must(t, err)
	listener.SetUnlinkOnClose(false)
	listenerFile, err := listener.File()
	must(t, err)
	_ = listener.Close()
	defer func() { _ = listenerFile.Close() }()
	exits, err := os.Create(filepath.Join(p.dir, "exits"))
	must(t, err)
	defer func() { _ = exits.Close() }()
	must(t, exits.Truncate(exitSlots*pause.ExitRecordSize))

	p.cmd = exec.Command(binary)
	p.cmd.ExtraFiles = []*os.File{theirs, listenerFile, exits}
	if state != nil {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, state)
		p.cmd.Args = append(p.cmd.Args, "6")
	}
	p.cmd.Dir = "/"
	p.cmd.Env = []string{} // as criserver does: an environment costs every pod a page
	p.cmd.Stderr = p.stderr
	must(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(p.end)
	return p, ours
}

// follow makes conn the pod's connection and collects its exits.
func (p *pod) follow(conn *pause.Conn) {
	p.mu.Lock()
	p.conn = conn
	p.mu.Unlock()
	p.t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for {
			e, err := conn.Next()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.exits[e.Task] = e
			close(p.change)
			p.change = make(chan struct{})
			p.mu.Unlock()
		}
	}()
}

func (p *pod) end() {
	select {
	case <-p.exited:
		if !p.ended {
			p.t.Errorf("pause died: %v\n%s", p.cmd.ProcessState, p.stderr)
		}
	default:
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// reconnect opens a new connection through the listening socket, as a restarted criserver does.
func (p *pod) reconnect() {
	p.t.Helper()
	conn, err := pause.Dial(deadline(p.t), filepath.Join(p.dir, "pause.sock"))
	must(p.t, err)
	p.follow(conn)
}

// exit waits for the exit of a task.
func (p *pod) exit(task uint64) pause.Exit {
	p.t.Helper()
	ctx := deadline(p.t)
	died := p.exited
	if p.ended { // what it has said before may still be on its way
		died = nil
	}
	for {
		p.mu.Lock()
		e, ok := p.exits[task]
		change := p.change
		p.mu.Unlock()
		if ok {
			return e
		}
		select {
		case <-change:
		case <-died:
			p.t.Fatalf("pause died: %v\n%s", p.cmd.ProcessState, p.stderr)
		case <-ctx.Done():
			p.t.Fatalf("task %d did not exit\n%s", task, p.stderr)
		}
	}
}

func (p *pod) told(task uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.exits[task]
	return ok
}

// start runs a built program as task.
func (p *pod) start(s pause.Start, b *program.Builder, files ...*os.File) (pause.Started, error) {
	p.t.Helper()
	f := seal(p.t, b)
	defer func() { _ = f.Close() }()
	s.Program = f
	s.Files = files
	started, err := p.conn.Start(deadline(p.t), s)
	if err == nil {
		p.t.Cleanup(func() { _ = started.PidFD.Close() })
	}
	return started, err
}

func (p *pod) mustStart(s pause.Start, b *program.Builder, files ...*os.File) pause.Started {
	p.t.Helper()
	started, err := p.start(s, b, files...)
	if err != nil {
		p.t.Fatalf("start task %d: %v\n%s", s.Task, err, p.stderr)
	}
	return started
}

// container registers a container whose log is a file; it returns the child's ends of its stdio.
type container struct {
	task           uint64
	log            string
	stdout, stderr *os.File
}

func (p *pod) add(task uint64) container {
	p.t.Helper()
	return p.addWith(task, func(*pause.Container) {})
}

func (p *pod) addWith(task uint64, change func(*pause.Container)) container {
	p.t.Helper()
	c := container{task: task, log: filepath.Join(p.dir, fmt.Sprintf("%d.log", task))}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(p.t, err)
	outR, outW := pipe(p.t)
	errR, errW := pipe(p.t)
	c.stdout, c.stderr = outW, errW
	k := pause.Container{Task: task, Name: fmt.Sprintf("container-%d", task), ExitSlot: int(task % exitSlots), Log: log, Stdout: outR, Stderr: errR}
	change(&k)
	must(p.t, p.conn.Add(deadline(p.t), k))
	_ = log.Close()
	_ = outR.Close()
	_ = errR.Close()
	return c
}

// run starts a shell in a registered container; the test's copies of its stdio are closed.
func (p *pod) run(c container, script string) pause.Started {
	p.t.Helper()
	b := program.New()
	stdio(b, 0, 1)
	shell(b, script)
	s := p.mustStart(pause.Start{Task: c.task}, b, c.stdout, c.stderr)
	_ = c.stdout.Close()
	_ = c.stderr.Close()
	return s
}

// stdio makes two passed descriptors stdout and stderr.
func stdio(b *program.Builder, out, err program.FD) {
	b.Call("stdout", unix.SYS_DUP3, out, 1, 0)
	b.Call("stderr", unix.SYS_DUP3, err, 2, 0)
}

func shell(b *program.Builder, script string) {
	b.Call("close", unix.SYS_CLOSE_RANGE, 3, uint64(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	execute(b, "/bin/sh", program.Strings{"sh", "-c", script}, program.Strings{"PATH=/usr/bin:/bin"})
}

func seal(t testing.TB, b *program.Builder) *os.File {
	t.Helper()
	built, err := b.Build()
	must(t, err)
	f, err := pause.Seal(built.Encode())
	must(t, err)
	return f
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	must(t, unix.Pipe2(fds[:], unix.O_CLOEXEC))
	r, w = os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deadline bounds one step of a test.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// wantError checks a failed request.
func wantError(t testing.TB, err error, stage pause.Stage, errno unix.Errno) *pause.Error {
	t.Helper()
	var e *pause.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error of pause", err)
	}
	if e.Stage != stage || e.Errno != errno {
		t.Fatalf("got stage %d errno %v (%v), want stage %d errno %v", e.Stage, e.Errno, err, stage, errno)
	}
	return e
}

// record is one line of a log.
type record struct {
	at      time.Time
	stream  string
	partial bool
	content string
}

// readLog parses a whole log and fails on any line that is not well formed.
func readLog(t testing.TB, path string) []record {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return parseLog(t, string(data))
}

func parseLog(t testing.TB, data string) []record {
	t.Helper()
	var records []record
	for n, line := range strings.SplitAfter(data, "\n") {
		if line == "" {
			break
		}
		r, err := parseRecord(line)
		if err != nil {
			t.Fatalf("line %d: %v: %.200q", n+1, err, line)
		}
		records = append(records, r)
	}
	return records
}

func parseRecord(line string) (record, error) {
	var r record
	body, ok := strings.CutSuffix(line, "\n")
	parts := strings.SplitN(body, " ", 4)
	if !ok || len(parts) != 4 || len(parts[0]) != len("2006-01-02T15:04:05.999999999Z") {
		return r, errors.New("not a record")
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	if err != nil {
		return r, err
	}
	if (parts[1] != "stdout" && parts[1] != "stderr") || (parts[2] != "F" && parts[2] != "P") {
		return r, errors.New("wrong stream or tag")
	}
	return record{at: at, stream: parts[1], partial: parts[2] == "P", content: parts[3]}, nil
}

// text joins the contents of one stream as kubectl logs does.
func text(records []record, stream string) string {
	var b strings.Builder
	for _, r := range records {
		if r.stream != stream {
			continue
		}
		b.WriteString(r.content)
		if !r.partial {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// eventually polls a condition of the kernel's that nothing tells about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s did not happen", what)
		}
	}
}

// execute ends a Program with one execve candidate.
func execute(b *program.Builder, path string, argv, env program.Strings) {
	b.ExecAll([]string{path}, argv, env)
}
