package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statsTarget is how much less time than a peer a list of statistics may take.
const statsTarget = 1.0 / 10

// statsGap lies between two rounds, so that no daemon answers from what it has just read.
const statsGap = 200 * time.Millisecond

// statsLists are the lists that are asked for, in the order of a round.
var statsLists = []struct {
	name string
	ask  func(context.Context, cri.RuntimeServiceClient) (items int, err error)
}{
	{"ListContainerStats", func(ctx context.Context, c cri.RuntimeServiceClient) (int, error) {
		r, err := c.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
		return len(r.GetStats()), err
	}},
	{"ListPodSandboxStats", func(ctx context.Context, c cri.RuntimeServiceClient) (int, error) {
		r, err := c.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
		return len(r.GetStats()), err
	}},
	{"ListPodSandboxMetrics", func(ctx context.Context, c cri.RuntimeServiceClient) (int, error) {
		r, err := c.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
		return len(r.GetPodMetrics()), err
	}},
}

// A list that took longer than slowList is asked for in slowRounds rounds only.
const (
	slowList   = time.Second
	slowRounds = 4
)

// statsRound asks for every list once. One that the daemon does not know is left out.
func (d *daemon) statsRound(want int) func(context.Context) ([]lap, error) {
	slow := map[string]int{}
	return func(ctx context.Context) ([]lap, error) {
		var all []lap
		for _, l := range statsLists {
			if slow[l.name] == slowRounds {
				continue
			}
			began, cpu := time.Now(), d.cpuTime()
			n, err := l.ask(ctx, d.runtime)
			took, cpu := time.Since(began), d.cpuTime()-cpu
			if status.Code(err) == codes.Unimplemented {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.name, err)
			}
			if n != want {
				return nil, fmt.Errorf("%s has %d items instead of %d", l.name, n, want)
			}
			if took > slowList {
				slow[l.name]++
			}
			all = append(all, lap{l.name, took}, lap{l.name + lapDaemonCPU, cpu})
		}
		return all, nil
	}
}

// lapDaemonCPU marks the processor time that the daemon's own process, without shims, has used meanwhile: it tells more of a busy machine.
const lapDaemonCPU = ", CPU time"

// cpuTime is that of the daemon's process, by the clock that the kernel keeps for it; 0 if it is gone.
func (d *daemon) cpuTime() time.Duration {
	const scheduler = 2
	var t unix.Timespec
	if unix.ClockGettime(int32(^d.cmd.Process.Pid<<3|scheduler), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// measureStats asks for statistics of all pods, each of which has a container that runs.
func measureStats(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	n := b.rounds(b.pods)
	heading(fmt.Sprintf("CRI: statistics of %d one-container pods on the host network, ms", n))
	var everybody []contender
	for _, d := range all {
		if _, err := d.fill(ctx, onHost, n, nil); err != nil {
			return err
		}
		everybody = append(everybody, contender{d.name, d.statsRound(n)})
	}
	loop, err := inTurns(ctx, b.rounds(12), statsGap, everybody)
	if err != nil {
		return err
	}
	t := table{header: []string{"", "", "p50", "p99", "rounds"}}
	for _, s := range loop {
		t.add(s.contender, s.lap, ms(s.percentile(0.5)), ms(s.percentile(0.99)), fmt.Sprint(len(s.times)))
	}
	t.print()
	for _, l := range statsLists {
		b.compareDaemons(fmt.Sprintf("%s of %d pods", l.name, n), loop, l.name, statsTarget)
	}
	return nil
}
