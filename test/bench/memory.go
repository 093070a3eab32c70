package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Targets of DESIGN.md, MiB per idle one-container pod: PSS of everything that the runtime adds, and what the machine loses.
const (
	pssTarget       = 0.1
	availableTarget = 0.7
)

// settle is how long a daemon is left alone before its memory is read. No collection is forced.
const settle = 3 * time.Second

// usage is what a daemon and all it started occupies, by role, in bytes.
type usage struct {
	pods      int
	roles     map[string]int64
	available int64 // of the machine
}

// steps is how many times the pods grow between the fewest and the most. What the machine loses is the median of the slopes between any
// two of the numbers: others take and give back memory, too.
const steps = 4

// measureMemory fits the slope between numbers of idle pods, on the host network and on a bridge.
func measureMemory(ctx context.Context, b *bench) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	heading("Memory per idle one-container pod, KiB")
	t := table{header: []string{"", "network", "pods", "MemAvailable", "PSS", "of it"}}
	held, lost := map[string]float64{}, map[string]float64{}
	for _, d := range all {
		few, many := b.rounds(50), b.rounds(250)
		if d.name != ours {
			few, many = b.rounds(20), b.rounds(80)
		}
		for _, net := range []network{onHost, onBridge} {
			at, err := d.growth(ctx, net, few, many)
			if err != nil {
				return err
			}
			slope, parts := at[0].slope(at[steps])
			loss := lossOf(at)
			if net == onHost {
				held[d.name] = slope
			} else {
				lost[d.name] = loss
			}
			t.add(d.name, string(net), fmt.Sprintf("%d to %d", few, many), fmt.Sprintf("%.0f", loss/1024), fmt.Sprintf("%.1f", slope/1024), parts)
		}
	}
	t.print()
	b.compareMemory("PSS, host network", held, pssTarget)
	b.compareMemory("loss of MemAvailable, bridge", lost, availableTarget)
	return nil
}

// growth reads what d occupies with few pods, with more and with many, and removes them.
func (d *daemon) growth(ctx context.Context, net network, few, many int) (at [steps + 1]usage, err error) {
	var containers []string
	for i := range at {
		if containers, err = d.fill(ctx, net, few+(many-few)*i/steps, containers); err != nil {
			return at, err
		}
		if at[i], err = d.usage(ctx, containers); err != nil {
			return at, err
		}
	}
	return at, d.removeAll(ctx)
}

// lossOf is what the machine loses with a pod, in bytes.
func lossOf(at [steps + 1]usage) float64 {
	var slopes []float64
	for i := range at {
		for j := range i {
			slopes = append(slopes, float64(at[j].available-at[i].available)/float64(at[i].pods-at[j].pods))
		}
	}
	slices.Sort(slopes)
	return (slopes[(len(slopes)-1)/2] + slopes[len(slopes)/2]) / 2
}

// compareMemory adds the ratios of our bytes to a target in MiB, and to the better peer.
func (b *bench) compareMemory(what string, bytes map[string]float64, target float64) {
	mib := func(v float64) string { return fmt.Sprintf("%.3f MiB", v/(1<<20)) }
	b.ratio("memory per idle pod, "+what+" / target", mib(bytes[ours]), fmt.Sprintf("target %.1f MiB", target), bytes[ours]/(1<<20)/target, 1)
	best := ""
	for _, p := range b.peerDaemons() {
		if v, ok := bytes[p.name]; ok && (best == "" || v < bytes[best]) {
			best = p.name
		}
	}
	if best != "" {
		b.ratio("memory per idle pod, "+what, mib(bytes[ours]), mib(bytes[best])+", "+best, bytes[ours]/bytes[best], noTarget)
	}
}

// fill brings the number of pods up to n and returns the ids of all containers.
func (d *daemon) fill(ctx context.Context, net network, n int, have []string) ([]string, error) {
	added := make([]string, n-len(have))
	err := parallel(ctx, 2, len(added), func(ctx context.Context, i int) error {
		p, err := d.newPod(net)
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
	kib, err := strconv.ParseInt(strings.TrimSuffix(field("/proc/meminfo", "MemAvailable"), " kB"), 10, 64)
	if err != nil {
		return u, err
	}
	u.available = kib << 10
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
