package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/criserver/criserver/cri"
)

const (
	stopBound   = 10 * time.Second // how long RPCs that run may take to end when criserver stops
	closeBound  = 10 * time.Second // how long the parts may take to close after that
	flightSize  = 512              // operations that the flight recorder remembers
	readyNotice = "ready"
)

func newServe(flags *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Serve CRI on the socket until SIGTERM or SIGINT; pods go on without criserver",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.load()
			if err != nil {
				return err
			}
			level := &slog.LevelVar{}
			log, err := newLogger(cmd.ErrOrStderr(), config.Log, level)
			if err != nil {
				return err
			}
			klog.SetSlogLogger(slog.New(quiet{log.Handler()})) // what the streaming library uses
			hangup := make(chan os.Signal, 1)                  // of several, one reload sees what the last one means
			signal.Notify(hangup, unix.SIGHUP)
			defer signal.Stop(hangup)
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return serve(ctx, config, log, reloads{level: level, load: flags.load, wanted: hangup})
		},
	}
}

// serve serves until ctx ends.
func serve(ctx context.Context, config Config, log *slog.Logger, reloads reloads) error {
	unlock, err := lockDirs(config)
	if err != nil {
		return err
	}
	defer func() { _ = unlock() }() // the end of the process does
	socket, err := listen(config.Address, 0o660)
	if err != nil {
		return err
	}
	node, err := assemble(config, log)
	if err != nil {
		_ = socket.Close()
		return err
	}
	node.reloads = reloads
	return node.run(ctx, socket)
}

// node is the assembled daemon.
type node struct {
	config  Config
	log     *slog.Logger
	cri     *cri.Server
	metrics *prometheus.Registry        // nil: they are not served
	start   func(context.Context) error // brings back what was there before, then calls cri.Server.Start
	reloads
	closers
}

// run answers on socket from the begin, starts the services, and stops everything when ctx ends or something fails.
func (n *node) run(ctx context.Context, socket net.Listener) error {
	server := n.cri.GRPC()
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()

	began := time.Now()
	err := n.start(ctx)
	switch {
	case err == nil:
		n.log.Info(readyNotice, "socket", n.config.Address, "version", versionString(), "pid", os.Getpid(), "after", time.Since(began))
		err = notify(daemon.SdNotifyReady)
	case ctx.Err() != nil:
		err = nil // it was stopped while it started
	}
	if err == nil {
		err = n.stay(ctx, served)
	}
	n.log.Info("stopping; pods go on")
	err = errors.Join(err, notify(daemon.SdNotifyStopping))
	n.cri.EndStreams()
	stopServer(server)
	fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeBound)
	defer cancel()
	return errors.Join(err, n.close(fresh))
}

// stay reloads the configuration when that is wanted, until ctx ends or the server fails.
func (n *node) stay(ctx context.Context, served <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("serve %s: %w", n.config.Address, err)
		case <-n.wanted:
			n.reload()
		}
	}
}

// stopServer lets running RPCs end for a while, then cuts them off. It closes and removes the socket.
func stopServer(server *grpc.Server) {
	cut := time.AfterFunc(stopBound, server.Stop)
	defer cut.Stop()
	server.GracefulStop()
}

// closers are what ends the parts of a node, the last one first.
type closers []func(context.Context) error

func (c closers) close(ctx context.Context) error {
	var errs []error
	for i := len(c) - 1; i >= 0; i-- {
		errs = append(errs, c[i](ctx))
	}
	return errors.Join(errs...)
}
