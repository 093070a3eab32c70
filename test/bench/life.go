package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Laps of a pod's life.
const (
	lapUp       = "RunPodSandbox + CreateContainer + StartContainer"
	lapCRIStart = "StartContainer"
	lapStop     = "StopContainer"
	lapStopPod  = "StopPodSandbox"
	lapLife     = "whole life"
	lapSync     = "ExecSync of true"
)

// Targets of DESIGN.md, ours / the better peer.
const (
	upTarget         = 1.0 / 6
	stopTarget       = 1.0 / 8
	stopPodTarget    = 1.0
	hostRateTarget   = 1.0 / 5
	bridgeRateTarget = 1.0 / 2
	syncTarget       = 1.0 / 5
	besidePlugins    = 15 * time.Millisecond // what ours may take with a bridge, beside the plugins
)

// life takes a pod from RunPodSandbox to its removal.
func (d *daemon) life(ctx context.Context, net network) ([]lap, error) {
	p, err := d.newPod(net)
	if err != nil {
		return nil, err
	}
	cpu := d.cpuTime()
	l := startLaps()
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"RunPodSandbox", p.run},
		{"CreateContainer", func(ctx context.Context) error { return p.create(ctx, p.containerConfig()) }},
		{lapCRIStart, p.start},
		{lapStop, p.stopContainer},
		{"RemoveContainer", p.removeContainer},
		{lapStopPod, p.stopSandbox},
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
	l.all = append(l.all, lap{lapLife + lapDaemonCPU, d.cpuTime() - cpu})
	return l.all, p.group.Delete(ctx)
}

func (d *daemon) lives(net network) contender {
	return contender{d.name, func(ctx context.Context) ([]lap, error) { return d.life(ctx, net) }}
}

// measureLife measures pods on the host network over the sockets, one after another and eight at a time.
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
	loop, lone, err := b.takeLives(ctx, all, onHost, everybody)
	if err != nil {
		return err
	}
	for _, r := range []struct {
		how string
		results
	}{{"back to back", loop}, {"every 100 ms", lone}} {
		b.compareDaemons(lapUp+", host network, "+r.how, r.results, lapUp, upTarget)
		b.compareDaemons(lapStop+", killed, "+r.how, r.results, lapStop, stopTarget)
		b.compareDaemons(lapStopPod+", host network, "+r.how, r.results, lapStopPod, stopPodTarget)
		for _, p := range b.peers {
			b.compare("CRI: StartContainer / "+p.name+" run, "+r.how, r.find(ours, lapCRIStart), r.find(p.name, lapRun), startTarget[p.name])
		}
	}
	return b.throughput(ctx, all, onHost, nil, hostRateTarget)
}

// measureBridge measures the same with a bridge network, beside the plugins alone.
func measureBridge(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	heading("CRI: life of a pod with one container on a bridge network, ms")
	plugins, err := b.pluginsAlone()
	if err != nil {
		return err
	}
	own, err := b.startOwnNetwork(ctx)
	if err != nil {
		return err
	}
	all = append(all, own)
	loop, lone, err := b.takeLives(ctx, all, onBridge, []contender{plugins})
	if err != nil {
		return err
	}
	for _, r := range []struct {
		how string
		results
	}{{"back to back", loop}, {"every 100 ms", lone}} {
		own, add := r.find(ours, lapUp).percentile(0.5), r.find(alone, lapAdd).percentile(0.5)
		b.ratio("CRI: "+lapUp+", bridge, "+r.how+" / plugins' own ADD and 15 ms", ms(own)+" ms", ms(add)+" + 15 ms", float64(own)/float64(add+besidePlugins), 1)
		b.compareDaemons(lapUp+", bridge, "+r.how, r.results, lapUp, noTarget)
		b.compareDaemons(lapStopPod+", bridge, "+r.how, r.results, lapStopPod, noTarget)
		b.compareWith(ownNetwork, lapUp+", bridge, "+r.how, r.results, lapUp, noTarget)
	}
	return b.throughput(ctx, all, onBridge, &plugins, bridgeRateTarget)
}

// takeLives lets the daemons and everybody else take turns, back to back and lone, and prints their times and our stages.
func (b *bench) takeLives(ctx context.Context, all []*daemon, net network, everybody []contender) (loop, lone results, err error) {
	for _, d := range all {
		everybody = append(everybody, d.lives(net))
	}
	if loop, err = inTurns(ctx, b.many(60), 0, everybody); err != nil {
		return nil, nil, err
	}
	stages, err := all[0].operations(ctx)
	if err != nil {
		return nil, nil, err
	}
	if lone, err = inTurns(ctx, b.many(25), loneGap, everybody); err != nil {
		return nil, nil, err
	}
	printTimes(loop, lone)
	printStages("with the "+string(net)+" network", stages)
	return loop, lone, nil
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
func printStages(what string, operations []operation) {
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
	heading("CRI: stages of criserver " + what + ", from its flight recorder, ms")
	t := table{header: []string{"operation", "stage", "p50", "p99", "times"}}
	for _, s := range r {
		t.add(s.contender, s.lap, ms(s.percentile(0.5)), ms(s.percentile(0.99)), fmt.Sprint(len(s.times)))
	}
	t.print()
}

// throughput lets eight workers take pods through their whole lives, everybody in turns. floor, which may be nil, does only what
// everybody does of them.
func (b *bench) throughput(ctx context.Context, all []*daemon, net network, floor *contender, target float64) error {
	heading("CRI: whole lives of pods with the " + string(net) + " network, 8 in parallel")
	const turns = 3
	type share struct {
		contender
		pods int // in a turn
		took time.Duration
	}
	var shares []*share
	if floor != nil {
		shares = append(shares, &share{contender: *floor, pods: b.many(160)})
	}
	peers := b.peerDaemons()
	for _, d := range all {
		pods := b.many(160)
		if slices.ContainsFunc(peers, func(p peerDaemon) bool { return p.name == d.name }) {
			pods = b.many(40)
		}
		shares = append(shares, &share{contender: d.lives(net), pods: pods})
	}
	for range turns {
		for _, s := range shares {
			began := time.Now()
			err := parallel(ctx, 8, s.pods, func(ctx context.Context, _ int) error {
				_, err := s.round(ctx)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s, 8 in parallel: %w", s.name, err)
			}
			s.took += time.Since(began)
		}
	}
	t := table{header: []string{"", "pods/s", "pods"}}
	rates := map[string]float64{}
	for _, s := range shares {
		rates[s.name] = float64(turns*s.pods) / s.took.Seconds()
		t.add(s.name, fmt.Sprintf("%.1f", rates[s.name]), fmt.Sprint(turns*s.pods))
	}
	t.print()
	figure := "pods a second, whole lives, 8 in parallel, " + string(net) + " network"
	b.compareRates(ours, figure, "pods/s", rates, target)
	b.compareRates(ownNetwork, figure, "pods/s", rates, target)
	if floor != nil {
		b.ratio("CRI: "+figure+" / "+floor.name, fmt.Sprintf("%.3g pods/s", rates[ours]), fmt.Sprintf("%.3g pods/s", rates[floor.name]), rates[floor.name]/rates[ours], noTarget)
	}
	return nil
}
