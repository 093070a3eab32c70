package critest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What images.store may be.
const (
	storeAuto    = "auto"
	storeOverlay = "overlay"
)

// startBound is how long a criserver may take until it is ready.
var startBound = patience * 60 * time.Second

// daemons are all that were made, for the end of the suite.
var daemons []*daemon

// daemon is a criserver on directories, a socket, a bridge and subnets of its own. It can be killed and started again.
type daemon struct {
	name, dir string
	bridge    string
	log       *os.File
	cmd       *exec.Cmd     // nil while it does not run
	ended     chan struct{} // closed when cmd has been waited for
	conn      *grpc.ClientConn
	runtime   cri.RuntimeServiceClient
	images    cri.ImageServiceClient
}

func (d *daemon) root() string   { return filepath.Join(d.dir, "root") }
func (d *daemon) state() string  { return filepath.Join(d.dir, "state") }
func (d *daemon) socket() string { return "unix://" + filepath.Join(d.dir, "sock") }
func (d *daemon) config() string { return filepath.Join(d.dir, "config.toml") }
func (d *daemon) certs() string  { return filepath.Join(d.dir, "certs.d") }
func (d *daemon) cdiDir() string { return filepath.Join(d.dir, "cdi") }
func (d *daemon) cniDir() string { return filepath.Join(d.dir, "net.d") }
func (d *daemon) plugins() string {
	return filepath.Join(d.dir, "plugins") // before those that come with criserver
}

// newDaemon makes a daemon, starts it and has it make what it keeps.
func newDaemon(name, store string) (*daemon, error) {
	d, err := makeDaemon(name, store)
	if err != nil {
		return nil, err
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	if _, err = d.images.PullImage(context.Background(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: suite.busybox}}); err != nil {
		return nil, err
	}
	return d, d.warm(&suiteTB{dir: d.dir})
}

// makeDaemon makes the directories and the configuration of a daemon.
func makeDaemon(name, store string) (*daemon, error) {
	n := len(daemons)
	d := &daemon{name: name, dir: filepath.Join(suite.dir, name), bridge: fmt.Sprintf("critest%d", n)}
	for _, dir := range []string{d.dir, d.root(), d.certs(), d.cdiDir(), d.cniDir(), d.plugins()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	text := fmt.Sprintf(`cgroup_driver = %q
address = %q
root = %q
state = %q
pause = %q
certs_dirs = [%q]
[log]
level = "debug"
[container]
absent_mount_sources_to_reject = ["/etc/critest-absent"]
[cdi]
spec_dirs = [%q]
[cni]
conf_dir = %q
bin_dirs = [%q, %q]
[network]
bridge = %q
subnets = ["10.99.%d.0/24", "fd99:%d::/64"]
[stats]
layer_period = "1s"
[images]
store = %q
[nri]
enable = "on"
plugin_path = %q
plugin_request_timeout = "5s"
`, suite.driver, d.socket(), d.root(), d.state(), filepath.Join(suite.dir, "bin", "pause"), d.certs(), d.cdiDir(), d.cniDir(), d.plugins(), filepath.Join(suite.dir, "bin", "cni"),
		d.bridge, n, n, store, filepath.Join(d.dir, "nri"))
	if err := os.WriteFile(d.config(), []byte(text), 0o644); err != nil {
		return nil, err
	}
	var err error
	if d.log, err = os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644); err != nil {
		return nil, err
	}
	daemons = append(daemons, d)
	return d, nil
}

// warm has the daemon make what it keeps once it was used: mounts of the shared layer, the bridge.
func (d *daemon) warm(tb *suiteTB) error {
	defer tb.cleanUp()
	return tb.catch(func() {
		p := runPod(tb, d, podNetwork)
		c := p.start(tb, idle)
		c.exec(tb, "true")
	})
}

// command is a criserver on d's configuration.
func (d *daemon) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(suite.dir, "bin", "criserver"), append([]string{"--config", d.config()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// start starts the daemon and waits until it is ready.
func (d *daemon) start() error {
	d.cmd = d.command("serve")
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.ended = make(chan struct{})
	go func() { _ = d.cmd.Wait(); close(d.ended) }() // how it ended is in cmd.ProcessState
	conn, err := grpc.NewClient(d.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dialUntilThere), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	d.conn, d.runtime, d.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), startBound)
	defer cancel()
	go func() {
		select {
		case <-d.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		s, err := d.runtime.Status(ctx, &cri.StatusRequest{}, grpc.WaitForReady(true))
		if err == nil && condition(s, cri.RuntimeReady).GetStatus() {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("criserver %s is not ready: %w; status %v\n%s", d.name, err, s, d.lastLog()), d.kill())
		}
	}
}

// dialUntilThere bears that a socket is not there yet, without gRPC's backoff of a second.
func dialUntilThere(ctx context.Context, path string) (net.Conn, error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(path, "unix://"))
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

func condition(s *cri.StatusResponse, kind string) *cri.RuntimeCondition {
	for _, c := range s.GetStatus().GetConditions() {
		if c.GetType() == kind {
			return c
		}
	}
	return nil
}

// kill is what a crash or an out-of-memory kill does.
func (d *daemon) kill() error { return d.end(unix.SIGKILL) }

// stop lets the daemon end as an operator does.
func (d *daemon) stop() error { return d.end(unix.SIGTERM) }

func (d *daemon) end(sig syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	_ = d.conn.Close() // nothing is under way on it
	err := d.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-d.ended
	state := d.cmd.ProcessState
	d.cmd = nil
	if sig == unix.SIGTERM && !state.Success() {
		return errors.Join(err, fmt.Errorf("criserver %s ended with %v on SIGTERM\n%s", d.name, state, d.lastLog()))
	}
	return err
}

// lastLog is the end of the daemon's own log.
func (d *daemon) lastLog() string {
	text, _ := os.ReadFile(d.log.Name())
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "")
}

// removeNetwork removes the bridge and its packet filter table, which criserver leaves for its next start.
func (d *daemon) removeNetwork() error {
	// the table was made with the bridge; that it is gone is seen by the check at the end
	_ = exec.Command("nft", "delete", "table", "inet", "criserver-"+d.bridge).Run()
	link, err := netlink.LinkByName(d.bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// use is the begin of every test: the daemon runs, or the test is skipped; the oracle is asked at its end.
func use(t *testing.T) *daemon {
	t.Helper()
	if unfit != "" {
		t.Skip(unfit)
	}
	check(t, suite.main)
	return suite.main
}

// eachStore runs a test once for each layer store.
func eachStore(t *testing.T, test func(*testing.T, *daemon)) {
	t.Helper()
	t.Run("auto", func(t *testing.T) { test(t, use(t)) })
	t.Run("overlay", func(t *testing.T) {
		if unfit != "" {
			t.Skip(unfit)
		}
		d, err := overlay()
		if err != nil {
			t.Fatal(err)
		}
		check(t, d)
		test(t, d)
	})
}
