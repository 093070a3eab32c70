package cgroup

import (
	"context"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// typical is what a container of a kubelet brings: requests, limits, zero huge pages, the default device rules.
func typical() *specs.LinuxResources {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(d[0]), Minor: ptr(d[1]), Access: "rwm"})
	}
	return &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(20000)), Period: ptr(uint64(100000))},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}, {Pagesize: "1GB"}},
		Devices:        rules,
	}
}

func BenchmarkCreatePlacementDelete(b *testing.B) {
	for _, c := range []struct {
		name string
		res  *specs.LinuxResources
	}{{"bare", nil}, {"typical", typical()}} {
		b.Run(c.name, func(b *testing.B) {
			hs := host(b)
			pod := create(b, hs, nil) // keeps the parent
			for b.Loop() {
				g, err := hs.Create(above(pod.Path()), "bench", c.res, nil)
				if err != nil {
					b.Fatal(err)
				}
				p, err := g.Placement()
				if err != nil {
					b.Fatal(err)
				}
				if err := p.Close(); err != nil {
					b.Fatal(err)
				}
				if err := g.Delete(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPlacement(b *testing.B) {
	g := create(b, host(b), nil)
	for b.Loop() {
		p, err := g.Placement()
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKillEmpty(b *testing.B) {
	for name, hs := range map[string]*Hierarchies{"host": host(b), "v1": pureV1(b)} {
		b.Run(name, func(b *testing.B) {
			g := create(b, hs, nil)
			for b.Loop() {
				if err := g.Kill(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSubDelete(b *testing.B) {
	g := create(b, host(b), nil)
	for b.Loop() {
		sub, err := g.Sub("exec")
		if err != nil {
			b.Fatal(err)
		}
		if err := sub.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
