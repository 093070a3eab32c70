package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Laps of a pod's life.
const (
	lapUp       = "RunPodSandbox + CreateContainer + StartContainer"
	lapCRIStart = "StartContainer"
	lapSync     = "ExecSync of true"
	lifeTarget  = 1.0 / 12
	syncTarget  = 1.0 / 10
)

// life takes a pod from RunPodSandbox to its removal.
func (d *daemon) life(ctx context.Context) ([]lap, error) {
	p, err := d.newPod()
	if err != nil {
		return nil, err
	}
	l := startLaps()
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"RunPodSandbox", p.run},
		{"CreateContainer", func(ctx context.Context) error { return p.create(ctx, p.containerConfig()) }},
		{lapCRIStart, p.start},
		{"StopContainer", p.stopContainer},
		{"RemoveContainer", p.removeContainer},
		{"StopPodSandbox", p.stopSandbox},
		{"RemovePodSandbox", p.removeSandbox},
	}
	for _, s := range steps {
		if err := s.do(ctx); err != nil {
			clean, cancel := cleanContext()
			defer cancel()
			return nil, errors.Join(fmt.Errorf("%s: %w", s.name, err), p.remove(clean))
		}
		l.step(s.name)
		if s.name == lapCRIStart {
			l.total(lapUp)
			l.last = time.Now()
		}
	}
	return l.all, nil
}

// measureLife measures pods over the sockets, one after another and eight at a time.
func measureLife(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	heading("CRI: life of a pod with one container on the host network, ms")
	everybody, err := b.lifePeers()
	if err != nil {
		return err
	}
	for _, d := range all {
		everybody = append(everybody, contender{d.name, d.life})
	}
	loop, err := inTurns(ctx, b.rounds(60), 0, everybody)
	if err != nil {
		return err
	}
	stages, err := all[0].operations(ctx)
	if err != nil {
		return err
	}
	lone, err := inTurns(ctx, b.rounds(25), loneGap, everybody)
	if err != nil {
		return err
	}
	printTimes(loop, lone)
	b.compare("CRI: "+lapUp+" / containerd, back to back", loop.find(ours, lapUp), loop.find(peerDaemon, lapUp), lifeTarget)
	b.compare("CRI: "+lapUp+" / containerd, every 100 ms", lone.find(ours, lapUp), lone.find(peerDaemon, lapUp), lifeTarget)
	for _, p := range b.peers {
		b.compare("CRI: StartContainer / "+p.name+" run, back to back", loop.find(ours, lapCRIStart), loop.find(p.name, lapRun), startTarget[p.name])
		b.compare("CRI: StartContainer / "+p.name+" run, every 100 ms", lone.find(ours, lapCRIStart), lone.find(p.name, lapRun), startTarget[p.name])
	}
	printStages(stages)
	return b.throughput(ctx, all)
}

// lifePeers are the OCI runtimes, to compare StartContainer with.
func (b *bench) lifePeers() ([]contender, error) {
	dir, err := b.mkdir("life")
	if err != nil {
		return nil, err
	}
	u, err := newBundle(dir)
	if err != nil {
		return nil, err
	}
	var everybody []contender
	for _, p := range b.peers {
		there := filepath.Join(dir, p.name)
		if err := u.write(there, b.parent+"/"+p.name, os.Getpid(), "true"); err != nil {
			return nil, err
		}
		everybody = append(everybody, p.runTrue(there))
	}
	return everybody, nil
}

// printStages prints what each stage of criserver's operations took, as the flight recorder has it.
func printStages(operations []operation) {
	var r results
	for _, o := range operations {
		if o.Error != "" || len(o.Stages) == 0 {
			continue
		}
		r.add(o.Name, lap{"in all", o.Took})
		for _, s := range o.Stages {
			r.add(o.Name, lap{s.Name, s.Took})
		}
	}
	heading("CRI: stages of criserver, from its flight recorder, ms")
	t := table{header: []string{"operation", "stage", "p50", "p99", "times"}}
	for _, s := range r {
		t.add(s.contender, s.lap, ms(s.percentile(0.5)), ms(s.percentile(0.99)), fmt.Sprint(len(s.times)))
	}
	t.print()
}

// throughput lets eight workers take pods through their whole lives.
func (b *bench) throughput(ctx context.Context, all []*daemon) error {
	heading("CRI: whole lives of pods, 8 in parallel")
	t := table{header: []string{"", "pods/s", "pods"}}
	for _, d := range all {
		n := b.rounds(160)
		if d.name != ours {
			n = b.rounds(40)
		}
		began := time.Now()
		err := parallel(ctx, 8, n, func(ctx context.Context, _ int) error {
			_, err := d.life(ctx)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s, 8 in parallel: %w", d.name, err)
		}
		t.add(d.name, fmt.Sprintf("%.1f", float64(n)/time.Since(began).Seconds()), fmt.Sprint(n))
	}
	t.print()
	return nil
}

// measureSync measures ExecSync over the sockets, one at a time and eight.
func measureSync(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	var everybody []contender
	pods := map[string]*pod{}
	for _, d := range all {
		p, err := d.newPod()
		if err != nil {
			return err
		}
		if err := p.up(ctx); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		pods[d.name] = p
		everybody = append(everybody, contender{d.name, func(ctx context.Context) ([]lap, error) {
			l := startLaps()
			err := p.exec(ctx, "true")
			l.total(lapSync)
			return l.all, err
		}})
	}
	loop, err := inTurns(ctx, b.rounds(200), 0, everybody)
	if err != nil {
		return err
	}
	lone, err := inTurns(ctx, b.rounds(60), loneGap, everybody)
	if err != nil {
		return err
	}
	heading("CRI: ExecSync of true, ms")
	printTimes(loop, lone)
	b.compare("CRI: "+lapSync+" / containerd, back to back", loop.find(ours, lapSync), loop.find(peerDaemon, lapSync), syncTarget)
	b.compare("CRI: "+lapSync+" / containerd, every 100 ms", lone.find(ours, lapSync), lone.find(peerDaemon, lapSync), syncTarget)
	fmt.Println()
	t := table{header: []string{"execs a second", "1", "8 in parallel"}}
	for _, d := range all {
		row := []string{d.name}
		for _, workers := range []int{1, 8} {
			n := b.rounds(80)
			if d.name == ours {
				n = b.rounds(1000)
			}
			began := time.Now()
			if err := parallel(ctx, workers, n, func(ctx context.Context, _ int) error { return pods[d.name].exec(ctx, "true") }); err != nil {
				return err
			}
			row = append(row, fmt.Sprintf("%.0f", float64(n)/time.Since(began).Seconds()))
		}
		t.add(row...)
	}
	t.print()
	return nil
}
