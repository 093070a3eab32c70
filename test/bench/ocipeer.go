package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// ociPeer is another OCI runtime.
type ociPeer struct {
	name    string
	argv    []string
	version string
	without string // mount point that it must not see, or ""
	place   *place // where that is so
}

// fetchedCrun is what fetch-crun unpacked: the program with its own loader and libraries.
func fetchedCrun() []string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	root := filepath.Join(cache, "criserver-bench", "crun")
	loaders, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu/ld-linux-*.so.?")) // the pattern is well formed
	if len(loaders) == 0 {
		return nil
	}
	return []string{loaders[0], "--library-path", filepath.Dir(loaders[0]), filepath.Join(root, "usr/bin/crun")}
}

// findPeers looks for runc and crun, and lets each run true once.
func (b *bench) findPeers() {
	crun := strings.Fields(b.crun)
	if len(crun) == 0 {
		crun = fetchedCrun()
	}
	if len(crun) == 0 {
		crun = []string{"crun"}
	}
	for _, p := range []ociPeer{{name: "runc", argv: []string{b.runc}}, {name: "crun", argv: crun}} {
		path, err := exec.LookPath(p.argv[0])
		if err == nil {
			p.argv[0] = path
			p.version = firstLine(p.command(context.Background(), "--version"))
			err = b.tryPeer(&p)
		}
		if err != nil {
			b.missing = append(b.missing, fmt.Sprintf("%s: %v", p.name, err))
			continue
		}
		b.peers = append(b.peers, p)
	}
}

// unified is where a hybrid host has cgroup v2.
const unified = "/sys/fs/cgroup/unified"

// tryPeer finds out whether a peer runs here, if need be without cgroup v2 of a hybrid host.
func (b *bench) tryPeer(p *ociPeer) error {
	err := b.tryOnce(p)
	if err == nil || b.cgroups.Mode() != cgroup.Hybrid {
		return err
	}
	there := *p
	there.without = unified
	there.version += " (in a mount namespace without " + unified + ", since it refuses hybrid hosts)"
	var undo error
	if there.place, undo = newPlace(unified); undo != nil {
		return errors.Join(err, undo)
	}
	if b.tryOnce(&there) != nil {
		return errors.Join(err, there.place.close())
	}
	*p = there
	return nil
}

// placed returns the peer in a place with the mounts of now.
func (b *bench) placed(p ociPeer) (ociPeer, error) {
	if p.without == "" {
		return p, nil
	}
	var err error
	if p.place, err = newPlace(p.without); err == nil {
		b.later(p.place.close)
	}
	return p, err
}

func (b *bench) tryOnce(p *ociPeer) error {
	dir, err := b.mkdir("try-" + p.name)
	if err != nil {
		return err
	}
	u, err := newBundle(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := u.write(dir, b.parent+"/try-"+p.name, os.Getpid(), "true"); err != nil {
		return err
	}
	return p.run(ctx, dir, "run", "--bundle", dir, "try-"+p.name)
}

func (p ociPeer) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, p.argv[0], append(p.argv[1:len(p.argv):len(p.argv)], args...)...)
}

// run runs one command of the peer with its state below dir, and its standard streams at /dev/null.
func (p ociPeer) run(ctx context.Context, dir string, args ...string) error {
	// A file, not a pipe: a container that lives on would hold a pipe open.
	said, err := os.OpenFile(filepath.Join(dir, "stderr"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer said.Close()
	cmd := p.command(ctx, append([]string{"--root", filepath.Join(dir, "state")}, args...)...)
	cmd.Stderr = said
	if err = p.place.start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("%s %s: %w: %s", p.name, args[0], err, bytes.TrimSpace(text))
	}
	return nil
}

// runTrue runs a container of true to its end, deletion included.
func (p ociPeer) runTrue(dir string) contender {
	return contender{p.name, func(ctx context.Context) ([]lap, error) {
		l := startLaps()
		err := p.run(ctx, dir, "run", "--bundle", dir, "bench-"+randomID()[:12])
		l.total("run of true")
		return l.all, err
	}}
}

// detach starts a container that sleeps: what `run --detach` takes is what a daemon waits for. Deleting it does not count.
func (p ociPeer) detach(dir string) contender {
	return contender{p.name, func(ctx context.Context) ([]lap, error) {
		id := "bench-" + randomID()[:12]
		l := startLaps()
		err := p.run(ctx, dir, "run", "--detach", "--bundle", dir, id)
		l.total("run --detach of sleep")
		return l.all, errors.Join(err, p.delete(dir, id))
	}}
}

func (p ociPeer) delete(dir, id string) error {
	ctx, cancel := cleanContext()
	defer cancel()
	return p.run(ctx, dir, "delete", "--force", id)
}

func (p ociPeer) execTrue(dir, id string) contender {
	return contender{p.name, func(ctx context.Context) ([]lap, error) {
		l := startLaps()
		err := p.run(ctx, dir, "exec", id, "true")
		l.total("exec of true")
		return l.all, err
	}}
}
