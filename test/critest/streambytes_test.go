package critest

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bytesEnv is how much TestStreamExecBytes sends each way; 1073741824 takes a while.
const bytesEnv = "CRITEST_STREAM_BYTES"

// slowReader takes what comes in its own time.
type slowReader struct {
	hash.Hash
	size  atomic.Int64
	every int64 // bytes, after which it rests; 0: never
	rest  time.Duration
}

func (r *slowReader) Write(p []byte) (int, error) {
	before := r.size.Load()
	after := r.size.Add(int64(len(p)))
	if r.every > 0 && before/r.every != after/r.every {
		time.Sleep(r.rest) // being slow is what is tested
	}
	return r.Hash.Write(p)
}

// All bytes come through a command, both ways at once, to fast and slow readers, and criserver holds few of them.
func TestStreamExecBytes(t *testing.T) {
	d := use(t)
	size, err := strconv.ParseInt(cmp.Or(os.Getenv(bytesEnv), strconv.Itoa(64<<20)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c := runPod(t, d).start(t, idle)
	eachProtocol(t, func(t *testing.T, p protocol) {
		p.bound = rpcBound * time.Duration(1+size/(64<<20))
		for _, row := range []struct {
			name string
			out  *slowReader
		}{{"fast", &slowReader{Hash: sha256.New()}}, {"slow", &slowReader{Hash: sha256.New(), every: 2 << 20, rest: 20 * time.Millisecond}}} {
			t.Run(row.name, func(t *testing.T) {
				r := c.execRequest([]string{"head", "-c", strconv.FormatInt(size, 10)}, withStdin)
				answer, err := d.runtime.Exec(bounded(t), r)
				if err != nil {
					t.Fatal(err)
				}
				before, most := footprintOf(t, d.cmd.Process.Pid).memory, 0
				began := time.Now()
				s := p.connect(t, answer.GetUrl(), r, row.out)
				sent := sha256.New()
				go func() { _, _ = io.CopyN(io.MultiWriter(s.in, sent), rand.NewChaCha8([32]byte{1}), size) }()
				for ended := false; !ended; {
					select {
					case err := <-s.result:
						if err != nil {
							t.Fatal(err)
						}
						ended = true
					case <-time.After(50 * time.Millisecond):
						most = max(most, footprintOf(t, d.cmd.Process.Pid).memory)
					}
				}
				took := time.Since(began)
				if got := row.out.size.Load(); got != size || string(row.out.Sum(nil)) != string(sent.Sum(nil)) {
					t.Errorf("%d bytes have come of %d, or they are others", got, size)
				}
				if room := 48 << 20; most > before+room {
					t.Errorf("criserver had %d bytes of memory, and %d while it copied", before, most)
				}
				t.Logf("%d MiB each way in %v, %.0f MiB/s; %d KiB of memory before, at most %d", size>>20, took, float64(size>>20)/took.Seconds(), before>>10, most>>10)
			})
		}
	})
}

// How long a command takes with streams, and how fast its output comes, is told with -v.
func TestStreamExecFigures(t *testing.T) {
	d := use(t)
	c := runPod(t, d).start(t, idle)
	const times, size = 50, 256 << 20
	began := time.Now()
	for range times {
		c.exec(t, "true")
	}
	t.Logf("ExecSync: %.2f ms a command", time.Since(began).Seconds()*1000/times)
	script := fmt.Sprintf("yes 0123456789abcdef0123456789abcdef | head -c %d", size)
	began = time.Now()
	local := exec.Command("busybox", "sh", "-c", script)
	local.Stdout = &counter{} // through a pipe
	if err := local.Run(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the same output through a pipe to this test: %.0f MiB/s", float64(size>>20)/time.Since(began).Seconds())
	eachProtocol(t, func(t *testing.T, p protocol) {
		began := time.Now()
		for range times {
			p.stream(t, c, []string{"true"}).ends(t, 0)
		}
		t.Logf("Exec: %.2f ms a command", time.Since(began).Seconds()*1000/times)
		began = time.Now()
		for range times {
			s := p.stream(t, c, []string{"true"}, withTTY)
			s.sizes <- remotecommand.TerminalSize{Width: 80, Height: 24}
			s.ends(t, 0)
		}
		t.Logf("Exec with a terminal: %.2f ms a command", time.Since(began).Seconds()*1000/times)
		r := c.execRequest(sh(script))
		answer, err := d.runtime.Exec(bounded(t), r)
		if err != nil {
			t.Fatal(err)
		}
		out := &counter{}
		began = time.Now()
		used := cpuTime(t, d.cmd.Process.Pid)
		p.connect(t, answer.GetUrl(), r, out).ends(t, 0)
		used = cpuTime(t, d.cmd.Process.Pid) - used
		t.Logf("output: %.0f MiB/s, for which criserver took %v of a processor: %.0f MiB/s", float64(size>>20)/time.Since(began).Seconds(), used, float64(size>>20)/used.Seconds())
		if out.n != size {
			t.Errorf("%d bytes", out.n)
		}
	})
}

// cpuTime is what a process has used of processors.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var ticks time.Duration
	for _, field := range strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * time.Second / 100 // USER_HZ
}

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

// A token opens one stream, once, of its own kind; too many that nobody uses are refused.
func TestStreamTokens(t *testing.T) {
	d := use(t)
	alive(t, d)
	c := runPod(t, d).start(t, idle)
	eachProtocol(t, func(t *testing.T, p protocol) {
		r := c.execRequest(sh("echo once"))
		answer, err := d.runtime.Exec(bounded(t), r)
		if err != nil {
			t.Fatal(err)
		}
		first := p.connect(t, answer.GetUrl(), r, nil)
		first.ends(t, 0)
		second := p.connect(t, answer.GetUrl(), r, nil)
		if err := <-second.result; err == nil || second.out.String() != "" {
			t.Errorf("a token was good twice: %v, %q", err, second.out)
		}
		if answer, err = d.runtime.Exec(bounded(t), r); err != nil {
			t.Fatal(err)
		}
		other := p.connect(t, strings.Replace(answer.GetUrl(), "/exec/", "/attach/", 1), r, nil)
		if err := <-other.result; err == nil {
			t.Error("a token of exec was good for attach")
		}
	})
	const most = 1000
	var err error
	for n := 0; n <= most && err == nil; n++ {
		_, err = d.runtime.Exec(bounded(t), c.execRequest([]string{"true"}))
	}
	refused(t, err, codes.ResourceExhausted, "too many streams")
	d.crash(t) // and is rid of them
	d.resume(t)
	if _, err := d.runtime.Exec(bounded(t), &cri.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Stdout: true}); err != nil {
		t.Error(err)
	}
}
