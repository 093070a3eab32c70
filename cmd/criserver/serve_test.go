package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cri"
)

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	lock, err := lockDir("state", dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lockDir("state", dir)
	if err == nil || !strings.Contains(err.Error(), "state directory "+dir+" is in use by the criserver with pid "+strconv.Itoa(os.Getpid())) {
		t.Errorf("second instance: got error %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockDir("state", dir)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// A forked child of a killed criserver holds its lock for a moment.
func TestLockDirWaits(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockDir("state", dir)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = lock.Close() })
	again, err := lockDir("state", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, path string)
		want    string // part of the error; empty: it listens
	}{
		{name: "nothing there", prepare: func(*testing.T, string) {}},
		{name: "left by a killed instance", prepare: func(t *testing.T, path string) {
			l := listenAt(t, path)
			l.SetUnlinkOnClose(false)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "in use", prepare: func(t *testing.T, path string) {
			l := listenAt(t, path)
			t.Cleanup(func() { _ = l.Close() })
		}, want: "another process already does"},
		{name: "a file", prepare: func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, want: "not a socket"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			test.prepare(t, path)
			l, err := listen("unix://"+path, 0o660)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got error %v, want one about %q", err, test.want)
				}
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("what was there is gone: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			info, err := os.Lstat(path)
			if err != nil || info.Mode().Perm() != 0o660 {
				t.Errorf("got mode %v, error %v, want 0660", info.Mode(), err)
			}
		})
	}
}

// Permissions that are taken away after the socket is there let in who connects before.
func TestSocketNeverHasMorePermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old := unix.Umask(0)
	l, err := bind(path, 0o600)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func listenAt(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestNodeAnswersSaysReadyAndStops drives run with a manager that listens for notifications, as systemd does.
func TestNodeAnswersSaysReadyAndStops(t *testing.T) {
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	c := defaultConfig()
	c.Address, c.Root, c.State = "unix://"+filepath.Join(dir, "s"), filepath.Join(dir, "root"), filepath.Join(dir, "state")
	c.settle()
	log := slog.New(slog.DiscardHandler)
	socket, err := listen(c.Address, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	var closed []string
	closer := func(name string) func(context.Context) error {
		return func(context.Context) error { closed = append(closed, name); return nil }
	}
	hangup := make(chan os.Signal)
	n := &node{config: c, log: log, cri: cri.New(cri.Config{Version: "1", Log: log}),
		reloads: reloads{wanted: hangup, load: func() (Config, error) { return c, errors.New("broken") }},
		start:   func(context.Context) error { return nil }, closers: closers{closer("store"), closer("pods")}}

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx, socket) }()
	expect := func(want string) {
		t.Helper()
		if err := manager.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 64)
		n, err := manager.Read(buffer)
		if got, _, _ := strings.Cut(string(buffer[:n]), "\n"); got != want || err != nil {
			t.Fatalf("manager got %q, error %v, want %q", got, err, want)
		}
	}
	expect("READY=1")

	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	response, err := runtimev1.NewRuntimeServiceClient(conn).Version(t.Context(), &runtimev1.VersionRequest{})
	if err != nil || response.GetRuntimeName() != "criserver" || response.GetRuntimeApiVersion() != "v1" || response.GetVersion() == "" || response.GetRuntimeVersion() == "" {
		t.Errorf("Version: got %v, error %v", response, err)
	}
	hangup <- unix.SIGHUP
	expect("RELOADING=1")
	expect("READY=1")
	cancel()
	expect("STOPPING=1")
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "s")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	if want := []string{"pods", "store"}; !slices.Equal(closed, want) {
		t.Errorf("closed %q, want %q", closed, want)
	}
}

func TestNodeThatCannotStart(t *testing.T) {
	socket, err := listen("unix://"+filepath.Join(t.TempDir(), "s"), 0o660)
	if err != nil {
		t.Fatal(err)
	}
	broken, closed := errors.New("no cgroups"), false
	log := slog.New(slog.DiscardHandler)
	n := &node{log: log, cri: cri.New(cri.Config{Log: log}), start: func(context.Context) error { return broken },
		closers: closers{func(context.Context) error { closed = true; return nil }}}
	if err := n.run(t.Context(), socket); !errors.Is(err, broken) || !closed {
		t.Errorf("got error %v, closed %v", err, closed)
	}
}

func TestNodeThatIsStoppedWhileItStarts(t *testing.T) {
	socket, err := listen("unix://"+filepath.Join(t.TempDir(), "s"), 0o660)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.DiscardHandler)
	n := &node{log: log, cri: cri.New(cri.Config{Log: log}), start: func(ctx context.Context) error { cancel(); return ctx.Err() }}
	if err := n.run(ctx, socket); err != nil {
		t.Errorf("got error %v: to be stopped is no failure", err)
	}
}
