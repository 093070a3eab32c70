package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/mount"
)

// embedded is our runtime with one pod, driven as package sandbox drives it.
type embedded struct {
	runtime *ociruntime.Runtime
	pod     *ociruntime.Pod
	bundle  *bundle
	logs    string
}

// newEmbedded starts a pod; the part's end stops it.
func (b *bench) newEmbedded(ctx context.Context, name string) (*embedded, error) {
	dir, err := b.mkdir(name)
	if err != nil {
		return nil, err
	}
	e := &embedded{logs: filepath.Join(dir, "logs")}
	if e.bundle, err = newBundle(filepath.Join(dir, "bundle")); err != nil {
		return nil, err
	}
	work, podDir := filepath.Join(dir, "work"), filepath.Join(dir, "pod")
	for _, d := range []string{work, podDir, e.logs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	e.runtime, err = ociruntime.New(ociruntime.Config{PauseBinary: b.pause, WorkDir: work, Cgroups: b.cgroups, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	b.later(e.runtime.Close)
	e.pod, err = e.runtime.StartPod(ctx, ociruntime.PodConfig{ID: randomID(), Dir: podDir, Hostname: "bench", HostNetwork: true, CgroupParent: b.parent})
	if err != nil {
		return nil, fmt.Errorf("start pod: %w", err)
	}
	b.later(func() error {
		ctx, cancel := cleanContext()
		defer cancel()
		return e.pod.Stop(ctx)
	})
	return e, nil
}

// create creates a container whose root is the bundle's directory.
func (e *embedded) create(ctx context.Context, args ...string) (*ociruntime.Container, error) {
	source, err := mount.OpenSource(e.bundle.root)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	root, err := mount.Bind(source, mount.Options{RecBind: true, Propagation: unix.MS_PRIVATE}, nil)
	if err != nil {
		return nil, err
	}
	return e.pod.Create(ctx, ociruntime.ContainerConfig{ID: randomID(), Spec: e.bundle.spec(args...), Root: root, LogPath: filepath.Join(e.logs, "log")})
}

// runTrue runs a container of true to its end, deletion included.
func (e *embedded) runTrue(ctx context.Context) ([]lap, error) {
	l := startLaps()
	c, err := e.create(ctx, "true")
	if err != nil {
		return nil, err
	}
	l.step("create")
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, end(c))
	}
	l.step("start")
	select {
	case <-c.Exited():
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), end(c))
	}
	l.step("exit")
	if err := c.Delete(ctx); err != nil {
		return nil, err
	}
	l.step("delete")
	l.total("run of true")
	return l.all, nil
}

// detach creates and starts a container that sleeps; ending it does not count.
func (e *embedded) detach(ctx context.Context) ([]lap, error) {
	l := startLaps()
	c, err := e.create(ctx, "sleep", "1000")
	if err != nil {
		return nil, err
	}
	if err = c.Start(ctx); err == nil {
		l.total("run --detach of sleep")
	}
	return l.all, errors.Join(err, end(c))
}

// end kills and deletes a container.
func end(c *ociruntime.Container) error {
	ctx, cancel := cleanContext()
	defer cancel()
	if err := c.Kill(ctx); err != nil {
		return err
	}
	if c.Pid() != 0 {
		select {
		case <-c.Exited():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.Delete(ctx)
}

// execTrue returns a contender that runs true in a container that sleeps.
func execTrue(c *ociruntime.Container, null *os.File) contender {
	return contender{ours, func(ctx context.Context) ([]lap, error) {
		l := startLaps()
		x, err := c.Exec(ctx, ociruntime.ExecConfig{Args: []string{"true"}, Stdin: null, Stdout: null, Stderr: null})
		if err != nil {
			return nil, err
		}
		defer x.Close()
		select {
		case <-x.Done():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		l.total("exec of true")
		if x.Code() != 0 {
			return nil, fmt.Errorf("true exited with %d", x.Code())
		}
		return l.all, nil
	}}
}
