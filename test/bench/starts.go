package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ours    = "criserver"
	loneGap = 100 * time.Millisecond
)

// Laps that ratios are made of.
const (
	lapRun    = "run of true"
	lapStart  = "start"
	lapDetach = "run --detach of sleep"
	lapExec   = "exec of true"
)

// startContenders are ours and every OCI runtime here, for runs of true to the end and for detached starts.
func (b *bench) startContenders(ctx context.Context, name string) (runs, detached []contender, err error) {
	e, err := b.newEmbedded(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	runs, detached = []contender{{ours, e.runTrue}, e.bundle.alone(lapRun)}, []contender{{ours, e.detach}}
	for _, p := range b.peers {
		if p, err = b.placed(p); err != nil {
			return nil, nil, err
		}
		dir, sleepDir := filepath.Join(b.dir, name, p.name), filepath.Join(b.dir, name, p.name+"-sleep")
		if err := e.bundle.write(dir, b.parent+"/"+p.name, e.pod.Pid(), "true"); err != nil {
			return nil, nil, err
		}
		if err := e.bundle.write(sleepDir, b.parent+"/"+p.name, e.pod.Pid(), "sleep", "1000"); err != nil {
			return nil, nil, err
		}
		runs, detached = append(runs, p.runTrue(dir)), append(detached, p.detach(sleepDir))
	}
	return runs, detached, nil
}

// targets of issue 2, ours / peer.
var (
	startTarget = map[string]float64{"runc": 1.0 / 10, "crun": 1.0 / 3}
	execTarget  = map[string]float64{"runc": 1.0 / 10, "crun": 1.0 / 4}
)

func measureStart(ctx context.Context, b *bench) error {
	runs, detached, err := b.startContenders(ctx, "start")
	if err != nil {
		return err
	}
	heading("Start of a container: the OCI runtimes alone, one bundle, ms")
	both := func(rounds int, gap time.Duration) (results, error) {
		r, err := inTurns(ctx, rounds, gap, runs)
		if err != nil {
			return r, err
		}
		d, err := inTurns(ctx, rounds/2, gap, detached)
		return append(r, d...), err
	}
	loop, err := both(b.rounds(200), 0)
	if err != nil {
		return err
	}
	lone, err := both(b.rounds(60), loneGap)
	if err != nil {
		return err
	}
	printTimes(loop, lone)
	for _, p := range b.peers {
		for _, pace := range []struct {
			name string
			r    results
		}{{"back to back", loop}, {"every 100 ms", lone}} {
			theirs := pace.r.find(p.name, lapRun)
			b.compare("start / "+p.name+" run, "+pace.name, pace.r.find(ours, lapStart), theirs, startTarget[p.name])
			b.compare("run of true / "+p.name+" run, "+pace.name, pace.r.find(ours, lapRun), theirs, noTarget)
		}
	}
	return nil
}

// hostMounts is how many mounts a busy node may have.
const hostMounts = 2000

// mountsTarget is how much slower a start may be there.
const mountsTarget = 1.2

// measureMounts measures blocks of starts with and without extra mounts in turns. The runtime of each block was
// born with the mounts that it is measured with.
func measureMounts(ctx context.Context, b *bench) error {
	few, _, err := b.startContenders(ctx, "few")
	if err != nil {
		return err
	}
	undo, err := b.manyMounts()
	if err != nil {
		return err
	}
	many, _, err := b.startContenders(ctx, "many")
	if err = errors.Join(err, undo()); err != nil {
		return err
	}
	var r results
	for range b.rounds(40) / 4 {
		if err := blockInto(ctx, &r, few, ""); err != nil {
			return err
		}
		undo, err := b.manyMounts()
		if err != nil {
			return err
		}
		if err := errors.Join(blockInto(ctx, &r, many, fmt.Sprintf(", %d mounts", hostMounts)), undo()); err != nil {
			return err
		}
	}
	heading(fmt.Sprintf("The same with %d extra mounts on the host, ms", hostMounts))
	printTimes(r, nil)
	with, without := r.find(ours+fmt.Sprintf(", %d mounts", hostMounts), lapStart), r.find(ours, lapStart)
	b.compare(fmt.Sprintf("start with %d mounts / without", hostMounts), with, without, mountsTarget)
	return nil
}

// blockInto adds a few rounds to r under names with a suffix.
func blockInto(ctx context.Context, r *results, everybody []contender, suffix string) error {
	block, err := inTurns(ctx, 8, 0, everybody)
	for _, s := range block {
		for _, d := range s.times {
			r.add(s.contender+suffix, lap{s.lap, d})
		}
	}
	return err
}

// manyMounts binds a directory many times over, in the bench's mount namespace, until undo is called.
func (b *bench) manyMounts() (undo func() error, err error) {
	dir, err := b.mkdir("mounts")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	undo = func() error { return unix.Unmount(dir, unix.MNT_DETACH) }
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return nil, errors.Join(err, undo())
	}
	for i := range hostMounts - 1 {
		point := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(point, 0o755); err != nil {
			return nil, errors.Join(err, undo())
		}
		if err := unix.Mount("/etc", point, "", unix.MS_BIND, ""); err != nil {
			return nil, errors.Join(fmt.Errorf("bind mount %d: %w", i, err), undo())
		}
	}
	return undo, nil
}

func measureExec(ctx context.Context, b *bench) error {
	e, err := b.newEmbedded(ctx, "exec")
	if err != nil {
		return err
	}
	c, err := e.create(ctx, "sleep", "1000")
	if err != nil {
		return err
	}
	b.later(func() error { return end(c) })
	if err := c.Start(ctx); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b.later(null.Close)
	everybody := []contender{execTrue(c, null), e.bundle.alone(lapExec)}
	for _, p := range b.peers {
		dir, id := filepath.Join(b.dir, "exec", p.name), "bench-"+randomID()[:12]
		if err := e.bundle.write(dir, b.parent+"/"+p.name+"-exec", e.pod.Pid(), "sleep", "1000"); err != nil {
			return err
		}
		if err := p.run(ctx, dir, "run", "--detach", "--bundle", dir, id); err != nil {
			return err
		}
		b.later(func() error { return p.delete(dir, id) })
		everybody = append(everybody, p.execTrue(dir, id))
	}
	heading("Exec of true in a running container: the OCI runtimes alone, ms")
	loop, err := inTurns(ctx, b.rounds(300), 0, everybody)
	if err != nil {
		return err
	}
	lone, err := inTurns(ctx, b.rounds(80), loneGap, everybody)
	if err != nil {
		return err
	}
	printTimes(loop, lone)
	for _, p := range b.peers {
		b.compare("exec of true / "+p.name+" exec, back to back", loop.find(ours, lapExec), loop.find(p.name, lapExec), execTarget[p.name])
		b.compare("exec of true / "+p.name+" exec, every 100 ms", lone.find(ours, lapExec), lone.find(p.name, lapExec), execTarget[p.name])
	}
	return nil
}
