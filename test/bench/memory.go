package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// memoryTarget is MiB per idle one-container pod, everything that the runtime adds counted.
const memoryTarget = 0.1

// settle is how long a daemon is left alone before its memory is read. No collection is forced.
const settle = 3 * time.Second

// usage is what a daemon and all it started occupies, by role, in bytes.
type usage struct {
	pods  int
	roles map[string]int64
}

// measureMemory fits the slope between two numbers of idle pods, whose containers' own processes do not count.
func measureMemory(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	heading("Memory per idle one-container pod on the host network, KiB")
	t := table{header: []string{"", "pods", "PSS", "of it"}}
	slopes := map[string]float64{}
	for _, d := range all {
		few, many := b.rounds(50), b.rounds(250)
		if d.name != ours {
			few, many = b.rounds(10), b.rounds(40)
		}
		var containers []string
		var at [2]usage
		for i, n := range []int{few, many} {
			if containers, err = d.fill(ctx, n, containers); err != nil {
				return err
			}
			if at[i], err = d.usage(ctx, containers); err != nil {
				return err
			}
		}
		slope, parts := at[0].slope(at[1])
		slopes[d.name] = slope
		t.add(d.name, fmt.Sprintf("%d to %d", few, many), fmt.Sprintf("%.1f", slope/1024), parts)
		if err := d.removeAll(ctx); err != nil {
			return err
		}
	}
	t.print()
	const mib = 1 << 20
	b.ratio("memory per idle pod / target, MiB of PSS", fmt.Sprintf("%.3f MiB", slopes[ours]/mib), fmt.Sprintf("target %.1f MiB", memoryTarget), slopes[ours]/mib/memoryTarget, 1)
	if theirs, ok := slopes[peerDaemon]; ok {
		b.ratio("memory per idle pod / containerd", fmt.Sprintf("%.3f MiB", slopes[ours]/mib), fmt.Sprintf("%.2f MiB", theirs/mib), slopes[ours]/theirs, noTarget)
	}
	return nil
}

// fill brings the number of pods up to n and returns the ids of all containers.
func (d *daemon) fill(ctx context.Context, n int, have []string) ([]string, error) {
	added := make([]string, n-len(have))
	err := parallel(ctx, 2, len(added), func(ctx context.Context, i int) error {
		p, err := d.newPod()
		if err != nil {
			return err
		}
		if err := p.up(ctx); err != nil {
			return fmt.Errorf("%s: pod %d: %w", d.name, len(have)+i, err)
		}
		added[i] = p.container
		return nil
	})
	return append(have, added...), err
}

// usage reads what everything occupies after a while of idleness.
func (d *daemon) usage(ctx context.Context, containers []string) (usage, error) {
	u := usage{pods: len(containers), roles: map[string]int64{}}
	if err := wait(ctx, settle); err != nil {
		return u, err
	}
	all, err := d.processes(containers)
	if err != nil {
		return u, err
	}
	for _, p := range all {
		bytes, err := pss(p.pid)
		if err != nil {
			return u, fmt.Errorf("%s, process %d (%s): %w", d.name, p.pid, p.name, err)
		}
		u.roles[p.name] += bytes
	}
	return u, nil
}

// slope is bytes of PSS per pod between two measurements, without the containers' own processes, and its parts in words.
func (u usage) slope(more usage) (float64, string) {
	var sum float64
	var parts []string
	n := float64(more.pods - u.pods)
	for role := range more.roles {
		v := float64(more.roles[role]-u.roles[role]) / n
		if role != "container" {
			sum += v
			parts = append(parts, fmt.Sprintf("%s %.1f", role, v/1024))
		} else {
			parts = append(parts, fmt.Sprintf("(not counted: container %.1f)", v/1024))
		}
	}
	slices.Sort(parts)
	return sum, strings.Join(parts, ", ")
}
