package critest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// protocol is one of the ways in which clients open streams. The client is that of kubectl and crictl.
type protocol struct {
	name      string
	halfClose bool // a client can say that its stdin has ended, which is a row of its own then
	open      func(config *rest.Config, at string) (remotecommand.Executor, error)
	bound     time.Duration // of one stream; rpcBound if zero
}

var protocols = []protocol{
	{name: "SPDY", halfClose: true, open: func(config *rest.Config, at string) (remotecommand.Executor, error) {
		u, err := url.Parse(at)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(config, "POST", u)
	}},
	{name: "WebSocket", halfClose: true, open: func(config *rest.Config, at string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(config, "GET", at) // version 5
	}},
	{name: "WebSocket 4", open: func(config *rest.Config, at string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(config, "GET", at, "v4.channel.k8s.io")
	}},
}

// eachProtocol runs a test with all protocols.
func eachProtocol(t *testing.T, test func(*testing.T, protocol)) {
	t.Helper()
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}

// session is a client with its streams.
type session struct {
	in     io.WriteCloser // nil without stdin
	out    *buffer
	errs   *buffer
	sizes  chan remotecommand.TerminalSize // with a terminal
	leave  func()                          // what criserver sees when the client is killed
	result chan error
}

// buffer collects what a client has received.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// sizeQueue gives a client's sizes to the library.
type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, more := <-q
	if !more {
		return nil
	}
	return &size
}

// insecure is how crictl and the kubelet connect.
func insecureConfig() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// connect opens the streams of a URL, which with asks for.
func (p protocol) connect(t testing.TB, at string, with *cri.ExecRequest, out io.Writer) *session {
	t.Helper()
	at, relay := through(t, at)
	e, err := p.open(insecureConfig(), at)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(p.bound, rpcBound))
	s := &session{out: &buffer{}, errs: &buffer{}, leave: relay.cut, result: make(chan error, 1)}
	options := remotecommand.StreamOptions{Tty: with.GetTty()}
	if with.GetStdin() {
		r, w := io.Pipe()
		options.Stdin, s.in = r, w
		t.Cleanup(func() { _ = w.Close() })
	}
	if with.GetStdout() {
		options.Stdout = s.out
		if out != nil {
			options.Stdout = out
		}
	}
	if with.GetStderr() {
		options.Stderr = s.errs
	}
	if with.GetTty() {
		s.sizes = make(chan remotecommand.TerminalSize, 4)
		options.TerminalSizeQueue = sizeQueue(s.sizes)
	}
	t.Cleanup(cancel)
	go func() { s.result <- e.StreamWithContext(ctx, options) }()
	return s
}

// ends waits for the end of a session, and wants its exit code.
func (s *session) ends(t testing.TB, code int) {
	t.Helper()
	err := <-s.result
	got := 0
	var ended exec.CodeExitError
	if errors.As(err, &ended) {
		got = ended.Code
	} else if err != nil {
		t.Fatalf("the stream failed: %v; stdout %q, stderr %q", err, s.out, s.errs)
	}
	if got != code {
		t.Errorf("exit code %d instead of %d", got, code)
	}
}

func (s *session) write(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		t.Fatal(err)
	}
}

// received waits until the client has got text.
func (s *session) received(t testing.TB, text string) {
	t.Helper()
	if !within(rpcBound, func() bool { return bytes.Contains([]byte(s.out.String()), []byte(text)) }) {
		got := s.out.String()
		t.Fatalf("%q has not come, but %d bytes that end with %q", text, len(got), got[max(0, len(got)-200):])
	}
}

// execURL asks for a command; stdin and tty are as change says.
func (c *container) execRequest(cmd []string, change ...func(*cri.ExecRequest)) *cri.ExecRequest {
	r := &cri.ExecRequest{ContainerId: c.id, Cmd: cmd, Stdout: true, Stderr: true}
	for _, f := range change {
		f(r)
	}
	return r
}

func withStdin(r *cri.ExecRequest) { r.Stdin = true }
func withTTY(r *cri.ExecRequest)   { r.Tty, r.Stdin, r.Stderr = true, true, false }

// stream runs a command in a container with streams.
func (p protocol) stream(t testing.TB, c *container, cmd []string, change ...func(*cri.ExecRequest)) *session {
	t.Helper()
	r := c.execRequest(cmd, change...)
	answer, err := c.p.d.runtime.Exec(bounded(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return p.connect(t, answer.GetUrl(), r, nil)
}

// logSize is how many bytes of output a log has, more or less.
func logSize(t testing.TB, c *container) int64 {
	t.Helper()
	info, err := os.Stat(c.log())
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
