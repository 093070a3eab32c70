package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/leak"
)

// daemon is a criserver that is killed and started again under one connection.
type daemon struct {
	dir, bridge string
	log         *os.File
	conn        *grpc.ClientConn
	runtime     cri.RuntimeServiceClient
	images      cri.ImageServiceClient

	mu     sync.Mutex // of the process
	cmd    *exec.Cmd
	ended  chan struct{}
	kills  int
	slowUp time.Duration // the longest time from start to ready
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }
func (d *daemon) socket() string          { return "unix://" + d.path("sock") }

func newDaemon() (*daemon, error) {
	d := &daemon{dir: filepath.Join(place.dir, "d"), bridge: "soak0"}
	if err := os.MkdirAll(d.path("net.d"), 0o755); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`address = %q
root = %q
state = %q
pause = %q
certs_dirs = []
[log]
level = "debug"
[cni]
conf_dir = %q
bin_dirs = [%q]
[network]
bridge = %q
subnets = ["10.98.0.0/24", "fd98::/64"]
[images]
store = %q
`, d.socket(), d.path("root"), d.path("state"), bin("pause"), d.path("net.d"), bin("cni"), d.bridge, *store)
	if err := os.WriteFile(d.path("config.toml"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	var err error
	if d.log, err = os.OpenFile(d.path("log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644); err != nil {
		return nil, err
	}
	quick := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1.2, MaxDelay: 20 * time.Millisecond}, MinConnectTimeout: time.Second}
	d.conn, err = grpc.NewClient(d.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(quick),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(path, "unix://"))
		}))
	if err != nil {
		return nil, err
	}
	d.runtime, d.images = cri.NewRuntimeServiceClient(d.conn), cri.NewImageServiceClient(d.conn)
	return d, d.start()
}

// start starts criserver and waits until it is ready.
func (d *daemon) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	began := time.Now()
	d.cmd = exec.Command(bin("criserver"), "--config", d.path("config.toml"), "serve")
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	cmd, ended := d.cmd, make(chan struct{})
	d.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }() // how it ended is in ProcessState
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		s, err := d.runtime.Status(ctx, &cri.StatusRequest{}, grpc.WaitForReady(true))
		if err == nil && runtimeReady(s) {
			d.slowUp = max(d.slowUp, time.Since(began))
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("criserver ended with %v\n%s", cmd.ProcessState, d.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("criserver is not ready after %v: %v, status %v\n%s", patience, err, s, d.lastLog())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func runtimeReady(s *cri.StatusResponse) bool {
	return slices.ContainsFunc(s.GetStatus().GetConditions(), func(c *cri.RuntimeCondition) bool { return c.Type == cri.RuntimeReady && c.Status })
}

// kill does what a crash does.
func (d *daemon) kill() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kills++
	select {
	case <-d.ended:
		return fmt.Errorf("criserver ended by itself, with %v\n%s", d.cmd.ProcessState, d.lastLog())
	default:
	}
	err := d.cmd.Process.Kill()
	<-d.ended
	return err
}

// stop does what an operator does.
func (d *daemon) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("criserver does not end on SIGTERM\n%s", d.lastLog()), d.cmd.Process.Kill())
	}
	if !d.cmd.ProcessState.Success() {
		err = errors.Join(err, fmt.Errorf("criserver ended with %v on SIGTERM", d.cmd.ProcessState))
	}
	return err
}

// haunt kills and restarts criserver until ctx ends; it runs then.
func (d *daemon) haunt(ctx context.Context, r *rand.Rand) error {
	for *killMin > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(*killMin + time.Duration(r.Int64N(int64(*killMax-*killMin)))):
		}
		if err := errors.Join(d.kill(), d.start()); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) lastLog() string {
	text, _ := os.ReadFile(d.log.Name())
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// descriptors is what those of criserver lead to.
func (d *daemon) descriptors() ([]string, error) {
	d.mu.Lock()
	pid := d.cmd.Process.Pid
	d.mu.Unlock()
	return leak.DescriptorsOf(pid)
}

// threads tells how many threads criserver has: they tell of goroutines that block in system calls.
func (d *daemon) threads() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", d.cmd.Process.Pid)) // none: it is dead
	return len(entries)
}
