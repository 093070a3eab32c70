package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/control"
	"github.com/criserver/criserver/stage"
)

// Exit codes of `criserver images`, beside 0 and 1.
const (
	exitNotRunning = 3
	exitDamaged    = 4
)

// codeError ends criserver with a code of its own.
type codeError struct {
	code int
	err  error
}

func (e codeError) Error() string { return e.err.Error() }
func (e codeError) Unwrap() error { return e.err }

// imagesCommand is what all of `criserver images` have in common.
type imagesCommand struct {
	flags   *flags
	json    bool
	offline bool
}

func newImages(flags *flags) *cobra.Command {
	c := &imagesCommand{flags: flags}
	images := &cobra.Command{
		Use:   "images",
		Short: "List, pull, remove, import, export, prune and verify images",
		Long: `Images speaks with the criserver that runs, through a socket for root in its state directory (--state, or --config if
that is not the default). With --offline it does the work itself; then none may run.

Exit codes: 0 done, 1 failed, 3 criserver does not run, 4 verify found damage.`,
	}
	images.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	images.PersistentFlags().BoolVar(&c.offline, "offline", false, "work on the directories of a criserver that does not run")
	images.AddCommand(c.newList(), c.newPull(), c.newRemove(), c.newImport(), c.newExport(), c.newPrune(), c.newVerify(), c.newUsage())
	return images
}

// call does one call and prints its result.
func call[R any](cmd *cobra.Command, c *imagesCommand, name string, args any, file *os.File, show func(io.Writer, R) error) error {
	result, err := ask[R](cmd, c, name, args, file)
	if err != nil {
		return err
	}
	return printed(cmd, c, result, show)
}

// ask does one call.
func ask[R any](cmd *cobra.Command, c *imagesCommand, name string, args any, file *os.File) (result R, err error) {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	socket, end, err := c.socket()
	if err != nil {
		return result, err
	}
	defer end()
	bar := newBar(cmd.ErrOrStderr(), name)
	err = control.Call(ctx, socket, name, args, file, bar.show, &result)
	bar.end(err == nil)
	if errors.Is(err, control.ErrNotRunning) {
		err = codeError{exitNotRunning, fmt.Errorf("%w; with --offline this command works without it", err)}
	}
	return result, err
}

// printed prints a result: as JSON if that is wanted, else by show.
func printed[R any](cmd *cobra.Command, c *imagesCommand, result R, show func(io.Writer, R) error) error {
	if !c.json {
		return show(cmd.OutOrStdout(), result)
	}
	out := json.NewEncoder(cmd.OutOrStdout())
	out.SetIndent("", "  ")
	return out.Encode(result)
}

// socket is that of the criserver that runs, or of one in this process that knows only images. end is called at last.
func (c *imagesCommand) socket() (path string, end func(), err error) {
	config, err := c.flags.load()
	if err != nil {
		return "", nil, err
	}
	if !c.offline {
		return control.Socket(config.State), func() {}, nil
	}
	return offline(config)
}

// offline serves images from this process. The locks keep a criserver from starting meanwhile.
func offline(config Config) (path string, end func(), err error) {
	n := &node{config: config, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	closeAll := func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour) // layers are synced, which is what takes time
		defer cancel()
		if err := n.close(ctx); err != nil {
			n.log.Error("images are not closed cleanly", "error", err)
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	unlock, err := lockDirs(config)
	if err != nil {
		return "", nil, err
	}
	n.closers = append(n.closers, func(context.Context) error { return unlock() })
	_, images, err := n.assembleImages(stage.NewRecorder(1))
	if err != nil {
		return "", nil, err
	}
	if err := n.serveControl(control.Config{Images: images}); err != nil {
		return "", nil, err
	}
	return control.Socket(config.State), closeAll, nil
}

// serveControl answers commands until the node is closed.
func (n *node) serveControl(c control.Config) error {
	path := control.Socket(n.config.State)
	l, err := listen("unix://"+path, 0o600)
	if err != nil {
		return err
	}
	c.SpoolDir, c.Log = filepath.Join(n.config.Root, "images"), n.log
	server := control.Serve(l, c)
	n.closers = append(n.closers, func(context.Context) error { return server.Close() })
	return nil
}
