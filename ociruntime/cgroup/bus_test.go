package cgroup

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// dialer is a systemd that can be lost.
type dialer struct {
	bus    *fakeBus
	dials  int
	lose   func()
	closed int
}

func (d *dialer) dial(context.Context) (*busLink, error) {
	d.dials++
	lost, lose := context.WithCancel(context.Background())
	d.lose = lose
	return &busLink{Bus: &mortalBus{d.bus, lost}, lost: lost.Done(), close: func() { d.closed++ }}, nil
}

// mortalBus answers as long as it is not lost.
type mortalBus struct {
	*fakeBus
	life context.Context
}

func (b *mortalBus) StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error) {
	if b.life.Err() != nil {
		return 0, errors.New("connection closed")
	}
	return b.fakeBus.StopUnitContext(ctx, name, mode, ch)
}

func TestHostBusIsConnectedAgain(t *testing.T) {
	d := &dialer{bus: &fakeBus{units: map[string][]systemd.Property{}, result: "done"}}
	bus := newHostBus(d.dial)
	scope, err := StartScope(ctx(t), bus, "abc", "a.slice", 42)
	if err != nil {
		t.Fatal(err)
	}
	d.lose()
	if err := scope.Stop(ctx(t), bus); err != nil {
		t.Errorf("stop after the connection was lost: %v", err)
	}
	if d.dials != 2 || d.closed != 1 {
		t.Errorf("%d connections, %d closed; want 2 and 1", d.dials, d.closed)
	}

	d.bus.result = "" // the job is queued, and its end never heard of
	result := make(chan string, 1)
	if _, err := bus.StartTransientUnitContext(ctx(t), "x.scope", "replace", nil, result); err != nil {
		t.Fatal(err)
	}
	d.lose()
	select {
	case r := <-result:
		if r != "lost" {
			t.Errorf("job of a lost connection ended as %q", r)
		}
	case <-ctx(t).Done():
		t.Error("job of a lost connection never ends")
	}
	bus.Close()
	if d.closed != 2 {
		t.Errorf("%d connections closed, want 2", d.closed)
	}
}

// A write to a bus that has just gone fails before anybody has noticed otherwise; the call is repeated all the same.
func TestHostBusRepeatsBrokenCall(t *testing.T) {
	d := &dialer{bus: &fakeBus{units: map[string][]systemd.Property{}, result: "done"}}
	bus, calls := newHostBus(d.dial), 0
	err := bus.call(ctx(t), func(*busLink) error {
		if calls++; calls == 1 {
			return &net.OpError{Op: "write", Net: "unix", Err: unix.EPIPE}
		}
		return nil
	})
	if err != nil || calls != 2 {
		t.Errorf("%d calls, error %v; want 2 and none", calls, err)
	}
	refused := errors.New("refused")
	if err := bus.call(ctx(t), func(*busLink) error { return refused }); err != refused {
		t.Errorf("an answer becomes %v", err)
	}
}

// With a real bus, on which nobody is systemd, started anew in between.
func TestHostBusSurvivesRestartOfBus(t *testing.T) {
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip(err)
	}
	address := "unix:path=" + t.TempDir() + "/bus"
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	stop := startBus(t, address)
	bus := newHostBus(func(ctx context.Context) (*busLink, error) { return dialBy(ctx, dbus.ConnectSystemBus) }) // and not systemd's own socket
	defer bus.Close()
	bus.patience = 0
	ask := func() error {
		_, err := bus.StopUnitContext(ctx(t), "x.scope", "replace", make(chan string, 1))
		return err
	}
	const nobody = "org.freedesktop.DBus.Error.ServiceUnknown"
	if err := ask(); !isBusError(err, nobody) {
		t.Errorf("first bus: %v", err)
	}
	lost := bus.link.lost
	stop()
	<-lost
	if err := ask(); err == nil || !strings.HasPrefix(err.Error(), "connect to systemd: ") {
		t.Errorf("no bus: %v", err)
	}
	startBus(t, address)
	if err := ask(); !isBusError(err, nobody) {
		t.Errorf("second bus: %v", err)
	}
}

// startBus starts a bus and waits until it listens.
func startBus(t *testing.T, address string) (stop func()) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "bus.conf")
	text := "<busconfig><listen>" + address + `</listen><policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return stop
}
