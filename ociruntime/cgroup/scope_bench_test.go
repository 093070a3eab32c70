package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

const (
	benchPods       = 50 // that live at the same time
	benchContainers = 2  // of each, beside its sandbox
)

// BenchmarkScopes compares a scope for each pod with one for each container and sandbox: what systemd has to do for the
// lives of 50 parallel pods. Everything is given for one pod. The messages are those on the bus, all directions and signals
// together; somebody who subscribes to units, as logind does, makes them more. docs/adr/0002-one-scope-a-pod.md has results.
func BenchmarkScopes(b *testing.B) {
	if HostDriver() != Systemd {
		b.Skip("systemd is not the init system")
	}
	for _, subscribed := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			scopes int
		}{{"pod", 1}, {"container", 1 + benchContainers}} {
			b.Run(fmt.Sprintf("each=%s/subscribed=%t", c.name, subscribed), func(b *testing.B) { benchScopes(b, c.scopes, subscribed) })
		}
	}
}

func benchScopes(b *testing.B, scopes int, subscribed bool) {
	bus, err := ConnectSystemd(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer bus.Close()
	if subscribed {
		callSystemd(b, "org.freedesktop.systemd1.Manager.Subscribe")
	}
	parallelPods(b, bus, scopes) // makes the slices
	monitor := newBusMonitor(b)
	parallelPods(b, bus, scopes)
	messages := monitor.count(b)
	manager, daemon := cpuTime(b, 1), cpuTime(b, mainPID(b, "dbus.service"))
	for b.Loop() {
		parallelPods(b, bus, scopes)
	}
	pods := float64(b.N * benchPods)
	b.ReportMetric(float64(messages)/benchPods, "messages/pod")
	b.ReportMetric((cpuTime(b, 1)-manager)/pods, "systemd-cpu-ms/pod")
	b.ReportMetric((cpuTime(b, mainPID(b, "dbus.service"))-daemon)/pods, "dbus-cpu-ms/pod")
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/pods, "ms/pod")
	b.ReportMetric(0, "ns/op")
}

// parallelPods has the scopes of all pods made, ends their processes, and has the scopes removed.
func parallelPods(b *testing.B, bus Bus, scopes int) {
	var living [benchPods][]*livingScope
	var pods sync.WaitGroup
	for i := range living {
		pods.Go(func() {
			for j := range scopes {
				l, err := startLivingScope(b.Context(), bus, fmt.Sprintf("bench-%d-%d", i, j), fmt.Sprintf("critestbench-pod%d.slice", i))
				if err != nil {
					b.Error(err)
					return
				}
				living[i] = append(living[i], l)
			}
		})
	}
	pods.Wait()
	for i := range living {
		pods.Go(func() {
			for _, l := range living[i] {
				if err := l.end(b.Context(), bus); err != nil {
					b.Error(err)
				}
			}
		})
	}
	pods.Wait()
}

// livingScope is a scope and the process in it.
type livingScope struct {
	scope *Scope
	cmd   *exec.Cmd
}

func startLivingScope(ctx context.Context, bus Bus, id, slice string) (*livingScope, error) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s, err := StartScope(ctx, bus, id, slice, cmd.Process.Pid)
	return &livingScope{s, cmd}, err
}

func (l *livingScope) end(ctx context.Context, bus Bus) error {
	if err := l.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = l.cmd.Wait() // it was killed
	return l.scope.Stop(ctx, bus)
}

// busMonitor sees every message on the system bus.
type busMonitor struct {
	conn     *dbus.Conn
	messages chan *dbus.Message
}

func newBusMonitor(b *testing.B) *busMonitor {
	b.Helper()
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		b.Fatal(err)
	}
	m := &busMonitor{conn: conn, messages: make(chan *dbus.Message, 100_000)}
	if err := conn.BusObject().Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, []string{}, uint32(0)).Err; err != nil {
		b.Fatal(err)
	}
	conn.Eavesdrop(m.messages)
	return m
}

// count is how many messages there were until now; it ends the monitor.
func (m *busMonitor) count(b *testing.B) (n int) {
	b.Helper()
	defer m.conn.Close()
	callSystemd(b, "org.freedesktop.DBus.Peer.Ping")
	for msg := range m.messages {
		if member, _ := msg.Headers[dbus.FieldMember].Value().(string); member == "Ping" {
			return n
		}
		n++
	}
	b.Fatal("the monitor has ended")
	return 0
}

// callSystemd calls a method without arguments. The connection stays, as subscriptions end with it.
func callSystemd(b *testing.B, method string) {
	b.Helper()
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	if err := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").Call(method, 0).Err; err != nil {
		b.Fatal(err)
	}
}

// cpuTime is what the main thread of a process has used, in milliseconds.
func cpuTime(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		b.Fatal(err)
	}
	ns, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return ns / 1e6
}

func mainPID(b *testing.B, unit string) int {
	b.Helper()
	out, err := exec.Command("systemctl", "show", "--value", "-p", "MainPID", unit).Output()
	if err != nil {
		b.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		b.Fatal(err)
	}
	return pid
}
