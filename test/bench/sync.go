package main

import (
	"context"
	"fmt"
	"time"
)

// measureSync measures ExecSync over the sockets, one at a time and eight.
func measureSync(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	var everybody []contender
	pods := map[string]*pod{}
	for _, d := range all {
		p, err := d.newPod(onHost)
		if err != nil {
			return err
		}
		if err := p.up(ctx); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		pods[d.name] = p
		everybody = append(everybody, contender{d.name, func(ctx context.Context) ([]lap, error) {
			cpu := d.cpuTime()
			l := startLaps()
			err := p.exec(ctx, "true")
			l.total(lapSync)
			l.all = append(l.all, lap{lapSync + lapDaemonCPU, d.cpuTime() - cpu})
			return l.all, err
		}})
	}
	loop, err := inTurns(ctx, b.many(200), 0, everybody)
	if err != nil {
		return err
	}
	lone, err := inTurns(ctx, b.many(60), loneGap, everybody)
	if err != nil {
		return err
	}
	heading("CRI: ExecSync of true, ms")
	printTimes(loop, lone)
	b.compareDaemons(lapSync+", back to back", loop, lapSync, syncTarget)
	b.compareDaemons(lapSync+", every 100 ms", lone, lapSync, syncTarget)
	return b.execRates(ctx, all, pods)
}

// execRates measures how many ExecSyncs each daemon answers in a second, and how often true can be run without any.
func (b *bench) execRates(ctx context.Context, all []*daemon, pods map[string]*pod) error {
	dir, err := b.mkdir("sync")
	if err != nil {
		return err
	}
	u, err := newBundle(dir)
	if err != nil {
		return err
	}
	everybody := []contender{u.alone(lapSync)}
	for _, d := range all {
		everybody = append(everybody, contender{d.name, func(ctx context.Context) ([]lap, error) { return nil, pods[d.name].exec(ctx, "true") }})
	}
	fmt.Println()
	t := table{header: []string{"execs a second"}}
	rows := make([][]string, len(everybody))
	for _, workers := range []int{1, 8} {
		t.header = append(t.header, fmt.Sprintf("%d in parallel", workers))
		rates := map[string]float64{}
		for i, c := range everybody {
			n := b.many(1000)
			if c.name == peerContainerd || c.name == peerCRIO {
				n = b.many(100)
			}
			began := time.Now()
			if err := parallel(ctx, workers, n, func(ctx context.Context, _ int) error { _, err := c.round(ctx); return err }); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			rates[c.name] = float64(n) / time.Since(began).Seconds()
			rows[i] = append(rows[i], fmt.Sprintf("%.0f", rates[c.name]))
		}
		b.compareRates(ours, fmt.Sprintf("ExecSync of true, %d in parallel", workers), "a second", rates, syncTarget)
	}
	for i, c := range everybody {
		t.add(append([]string{c.name}, rows[i]...)...)
	}
	t.print()
	return nil
}
