package cgroup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// HostBus is the Bus of this host. When the connection is lost, because the bus or systemd was started anew, another one is
// made, and calls that were not answered are repeated for some seconds; a job whose end can no longer be heard of ends as
// "lost". It is safe for concurrent use.
type HostBus struct {
	dial     func(context.Context) (*busLink, error)
	patience time.Duration // how long systemd may not answer
	turn     chan struct{} // holds one token; whoever has it may use link, and may be dialling
	link     *busLink
}

// busLink is one connection to systemd.
type busLink struct {
	Bus
	lost  <-chan struct{}
	close func()
}

// ConnectSystemd connects to systemd. Close gives the connection back.
func ConnectSystemd(ctx context.Context) (*HostBus, error) {
	b := newHostBus(dialSystemd)
	if _, err := b.connected(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

func newHostBus(dial func(context.Context) (*busLink, error)) *HostBus {
	b := &HostBus{dial: dial, patience: busPatience, turn: make(chan struct{}, 1)}
	b.turn <- struct{}{}
	return b
}

// Close ends the connection.
func (b *HostBus) Close() {
	<-b.turn
	defer b.giveTurn()
	if b.link != nil {
		b.link.close()
	}
}

func (b *HostBus) giveTurn() { b.turn <- struct{}{} }

// StartTransientUnitContext implements Bus.
func (b *HostBus) StartTransientUnitContext(ctx context.Context, name, mode string, properties []systemd.Property, ch chan<- string) (int, error) {
	return b.queue(ctx, ch, func(to Bus, ch chan<- string) (int, error) {
		return to.StartTransientUnitContext(ctx, name, mode, properties, ch)
	})
}

// StartUnitContext implements Bus.
func (b *HostBus) StartUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error) {
	return b.queue(ctx, ch, func(to Bus, ch chan<- string) (int, error) {
		return to.StartUnitContext(ctx, name, mode, ch)
	})
}

// StopUnitContext implements Bus.
func (b *HostBus) StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error) {
	return b.queue(ctx, ch, func(to Bus, ch chan<- string) (int, error) {
		return to.StopUnitContext(ctx, name, mode, ch)
	})
}

// KillUnitWithTarget implements Bus.
func (b *HostBus) KillUnitWithTarget(ctx context.Context, name string, target systemd.Who, signal int32) error {
	return b.call(ctx, func(l *busLink) error { return l.KillUnitWithTarget(ctx, name, target, signal) })
}

// queue queues a job.
func (b *HostBus) queue(ctx context.Context, ch chan<- string, queue func(Bus, chan<- string) (int, error)) (id int, err error) {
	err = b.call(ctx, func(l *busLink) error {
		result := make(chan string, 1)
		var err error
		if id, err = queue(l, result); err == nil {
			go l.pass(result, ch)
		}
		return err
	})
	return id, err
}

// Bounds of waiting for a systemd that is executed anew, or for its bus.
const (
	busPatience  = 30 * time.Second
	busPollFirst = time.Millisecond
	busPollLast  = 100 * time.Millisecond
)

// call calls systemd, and again if nobody answers. What was called may have been done each time.
func (b *HostBus) call(ctx context.Context, call func(*busLink) error) error {
	end := time.Now().Add(b.patience)
	for pause := busPollFirst; ; pause = min(2*pause, busPollLast) {
		l, err := b.connected(ctx)
		if err == nil {
			if err = call(l); err == nil || !l.isLost() && !unanswered(err) {
				return err
			}
		}
		if time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// unanswered says that a call came to nobody, or that there was nobody any more to answer it. A write may find that out
// before the connection counts as lost.
func unanswered(err error) bool {
	var broken *net.OpError
	return errors.As(err, &broken) || errors.Is(err, dbus.ErrClosed) || isBusError(err, "org.freedesktop.DBus.Error.NoReply") ||
		isBusError(err, "org.freedesktop.DBus.Error.ServiceUnknown") || isBusError(err, "org.freedesktop.DBus.Error.NameHasNoOwner") ||
		isBusError(err, "org.freedesktop.DBus.Error.Disconnected")
}

// connected gives the connection, a new one if there is none that lives.
func (b *HostBus) connected(ctx context.Context) (*busLink, error) {
	select {
	case <-b.turn:
		defer b.giveTurn()
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to systemd: %w", ctx.Err())
	}
	if b.link != nil && !b.link.isLost() {
		return b.link, nil
	}
	l, err := b.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	if b.link != nil {
		b.link.close()
	}
	b.link = l
	return l, nil
}

func (l *busLink) isLost() bool {
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}

// pass passes on how a job ended.
func (l *busLink) pass(result <-chan string, to chan<- string) {
	select {
	case r := <-result:
		to <- r
	case <-l.lost:
		to <- jobLost
	}
}

// systemdSocket is systemd's own, for hosts without a system bus.
const systemdSocket = "unix:path=/run/systemd/private"

func dialSystemd(ctx context.Context) (*busLink, error) {
	l, err := dialBy(ctx, dbus.ConnectSystemBus)
	if err == nil || ctx.Err() != nil {
		return l, err
	}
	if l, privateErr := dialBy(ctx, dialPrivate); privateErr == nil {
		return l, nil
	}
	return nil, err
}

// dialBy makes a link, of the two connections that go-systemd works with.
func dialBy(ctx context.Context, dial func(...dbus.ConnOption) (*dbus.Conn, error)) (*busLink, error) {
	life, end := context.WithCancel(context.Background())
	defer context.AfterFunc(ctx, end)()
	conn, err := systemd.NewConnection(func() (*dbus.Conn, error) {
		c, err := dial(dbus.WithContext(life))
		if err == nil {
			context.AfterFunc(c.Context(), end)
		}
		return c, err
	})
	if err != nil {
		end()
		return nil, err
	}
	return &busLink{Bus: conn, lost: life.Done(), close: conn.Close}, nil
}

func dialPrivate(options ...dbus.ConnOption) (*dbus.Conn, error) {
	c, err := dbus.Dial(systemdSocket, options...)
	if err != nil {
		return nil, err
	}
	if err := c.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
