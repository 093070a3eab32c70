package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/cgroup"
)

type cri = runtimev1.LinuxContainerResources

func TestUpdate(t *testing.T) {
	for _, started := range []bool{false, true} {
		in(t, func(t *testing.T, m *machine) {
			pod, err := m.s.RunPod(t.Context(), podConfig(), "")
			must(t, err)
			config := containerConfig()
			config.Linux = &runtimev1.LinuxContainerConfig{Resources: &cri{CpuShares: 100}}
			id, err := m.s.CreateContainer(t.Context(), pod, config, podConfig())
			must(t, err)
			if started {
				must(t, m.s.StartContainer(t.Context(), id))
			}
			must(t, m.s.UpdateContainer(t.Context(), id, &cri{CpuQuota: 5000, MemoryLimitInBytes: 100, OomScoreAdj: 7}, nil))
			must(t, m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 512}, nil))
			must(t, m.s.UpdateContainer(t.Context(), id, &cri{}, nil))
			must(t, m.s.UpdateContainer(t.Context(), id, nil, nil))
			look := func() {
				t.Helper()
				r := m.status(id).Resources()
				want(t, "limits", r.String(), (&cri{CpuShares: 512, CpuQuota: 5000, MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 100, OomScoreAdj: 7}).String())
				want(t, "config", m.status(id).Config().GetLinux().GetResources().String(), (&cri{CpuShares: 100}).String())
			}
			look()
			p := m.process(id)
			want(t, "updates", len(p.limits), 4)
			want(t, "shares", *p.limits[1].Resources.CPU.Shares, uint64(512))
			if p.limits[1].Resources.Memory != nil || p.limits[1].OOMScoreAdj != nil {
				t.Error("what is not asked for is changed")
			}
			m.restart()
			look()
			must(t, m.s.RemovePod(t.Context(), pod))
			m.clean()
		})
	}
}

func TestUpdateRefused(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		unfit, busy := fmt.Errorf("a: %w", cgroup.ErrUnfit), fmt.Errorf("b: %w", cgroup.ErrInUse)
		for _, row := range []struct {
			name   string
			id     ContainerID
			change *cri
			fail   error
			want   error
			text   string
		}{
			{"unknown", ContainerID(newID()), &cri{}, nil, ErrNotFound, ""},
			{"no id", "", &cri{}, nil, ErrInvalid, ""},
			{"negative", id, &cri{CpuShares: -1}, nil, ErrInvalid, "linux.cpu_shares: -1"},
			{"page size", id, &cri{HugepageLimits: []*runtimev1.HugepageLimit{{PageSize: "2"}}}, nil, ErrInvalid, "linux.hugepage_limits[0].page_size"},
			{"swap without memory", id, &cri{MemorySwapLimitInBytes: 9}, nil, ErrInvalid, "linux.memory_swap_limit_in_bytes: 9"},
			{"unified", id, &cri{Unified: map[string]string{"memory.high": "1"}}, nil, ErrInvalid, "linux.unified"},
			{"not of this host", id, &cri{CpuShares: 5}, unfit, ErrInvalid, "a"},
			{"in use", id, &cri{CpuShares: 5}, busy, ErrState, "b"},
			{"broken", id, &cri{CpuShares: 5}, os.ErrPermission, os.ErrPermission, ""},
		} {
			before := m.status(id)
			m.failing("Update", row.fail)
			if err := m.s.UpdateContainer(t.Context(), row.id, row.change, nil); !errors.Is(err, row.want) || !strings.Contains(err.Error(), row.text) {
				t.Errorf("%s: %v, want %v", row.name, err, row.want)
			}
			if m.status(id) != before || len(m.process(id).limits) > 0 {
				t.Errorf("%s: something has changed", row.name)
			}
		}
		m.failing("Update", nil)
		must(t, m.s.StopContainer(t.Context(), id, 0))
		if err := m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 5}, nil); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "is exited") {
			t.Errorf("update of a container that has exited: %v", err)
		}
		must(t, m.s.StopPod(t.Context(), pod))
		if err := m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 5}, nil); !errors.Is(err, ErrState) {
			t.Errorf("update in a pod that was stopped: %v", err)
		}
		must(t, m.s.RemovePod(t.Context(), pod))
		if err := m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 5}, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("update of a container that was removed: %v", err)
		}
		m.clean()
	})
}

// An update that cannot be recorded is not made, or taken back.
func TestUpdateThatCannotBeRecorded(t *testing.T) {
	for _, from := range []string{"before update", "after update", ""} {
		in(t, func(t *testing.T, m *machine) {
			pod, id := m.made()
			must(t, m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 5}, nil))
			before, p := m.status(id), m.process(id)
			c, err := m.s.container(id)
			must(t, err)
			away := func(boundary string) {
				if boundary == from {
					must(t, os.Rename(c.p.dir(), c.p.dir()+".away"))
				}
			}
			m.s.boundary = away
			away("")
			if err := m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 7}, nil); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("no record from %q on: %v", from, err)
			}
			if m.status(id) != before || len(p.limits) != 1 {
				t.Errorf("no record from %q on: %d changes are in force", from, len(p.limits))
			}
			must(t, os.Rename(c.p.dir()+".away", c.p.dir()))
			must(t, m.s.RemovePod(t.Context(), pod))
			m.clean()
		})
	}
}

// A criserver that is killed within an update leaves one that the next criserver ends, or none.
func TestKilledWithinAnUpdate(t *testing.T) {
	for _, killedAt := range []string{"before update", "before Update", "after Update", "after update"} {
		t.Run(killedAt, func(t *testing.T) {
			in(t, func(t *testing.T, m *machine) {
				pod, id := m.made()
				must(t, m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 5, OomScoreAdj: 3}, nil))
				killed := m.s
				at := func(boundary string) {
					if boundary == killedAt {
						killed.halt()
						runtime.Goexit()
					}
				}
				m.be(func(n *node) { n.at = at })
				m.s.boundary = at
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { _ = killed.UpdateContainer(ctx, id, &cri{CpuShares: 9}, nil) })
				synctest.Wait()
				cancel()
				wg.Wait()
				m.be(func(n *node) { n.at = nil })
				m.restart()
				killed.Close(ctx)
				want(t, "limits", m.status(id).Resources().String(), (&cri{CpuShares: 9, OomScoreAdj: 3}).String())
				all := m.process(id).limits
				want(t, "shares of the cgroup", int64(*all[len(all)-1].Resources.CPU.Shares), int64(9))
				c, err := m.s.container(id)
				must(t, err)
				if c.pending != nil {
					t.Error("the update has not ended")
				}
				must(t, m.s.RemovePod(t.Context(), pod))
				m.clean()
			})
		})
	}
}

// Changes of one container take turns: an update waits for the start, a removal for the update.
func TestUpdatesTakeTurns(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, err := m.s.RunPod(t.Context(), podConfig(), "")
		must(t, err)
		id, err := m.s.CreateContainer(t.Context(), pod, containerConfig(), podConfig())
		must(t, err)
		blocked := make(chan struct{})
		hold := func(call string) {
			m.be(func(n *node) {
				n.at = func(boundary string) {
					if boundary == "before "+call {
						<-blocked
					}
				}
			})
		}
		p := m.process(id)
		hold("Start")
		var wg sync.WaitGroup
		wg.Go(func() { must(t, m.s.StartContainer(t.Context(), id)) })
		synctest.Wait()
		for i := range 5 {
			wg.Go(func() { must(t, m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 100 + int64(i)}, nil)) })
		}
		synctest.Wait()
		want(t, "updates during the start", len(p.limits), 0)
		close(blocked)
		wg.Wait()
		want(t, "updates", len(p.limits), 5)
		want(t, "last one", m.status(id).Resources().CpuShares, int64(*p.limits[4].Resources.CPU.Shares))

		blocked = make(chan struct{})
		hold("Update")
		short, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if err := m.s.UpdateContainer(short, id, &cri{CpuShares: 999}, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("update without a caller: %v", err)
			}
		})
		synctest.Wait()
		cancel() // ends the wait, not the work
		synctest.Wait()
		wg.Go(func() { must(t, m.s.StopContainer(t.Context(), id, 0)) })
		wg.Go(func() { must(t, m.s.RemoveContainer(t.Context(), id)) })
		synctest.Wait()
		want(t, "the container is there", len(m.s.ListContainers()), 1)
		close(blocked)
		wg.Wait()
		want(t, "containers", len(m.s.ListContainers()), 0)
		want(t, "updates", len(p.limits), 6)
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

// What made an update necessary may fail after it: then it is taken back.
func TestUpdateTakenBack(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		pod, id := m.made()
		must(t, m.s.UpdateContainer(t.Context(), id, &cri{CpuShares: 5}, nil))
		c, err := m.s.container(id)
		must(t, err)
		before := c.status.Load().Limits
		undo, err := c.update(t.Context(), ociruntime.Limits{Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(9))}}, OOMScoreAdj: new(3)})
		must(t, err)
		want(t, "shares", m.status(id).Resources().String(), (&cri{CpuShares: 9, OomScoreAdj: 3}).String())
		must(t, undo(t.Context()))
		want(t, "shares", m.status(id).Resources().String(), (&cri{CpuShares: 5}).String())
		want(t, "changes in force", len(m.process(id).limits), 1)
		m.restart()
		want(t, "shares after a restart", m.status(id).Resources().CpuShares, int64(*before.Resources.CPU.Shares))
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}

func TestUpdatePod(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		config := podConfig()
		config.Linux.Overhead = &cri{CpuShares: 2}
		pod, err := m.s.RunPod(t.Context(), config, "")
		must(t, err)
		look := func(overhead, resources *cri) {
			t.Helper()
			st, err := m.s.PodStatus(pod)
			must(t, err)
			o, r := st.Resources()
			want(t, "overhead", o.String(), overhead.String())
			want(t, "resources", r.String(), resources.String())
			want(t, "overhead of the config", st.Config().Linux.Overhead.String(), (&cri{CpuShares: 2}).String())
		}
		look(&cri{CpuShares: 2}, nil)
		calls := len(m.calls)
		must(t, m.s.UpdatePod(t.Context(), pod, nil, &cri{CpuQuota: 5}))
		look(&cri{CpuShares: 2}, &cri{CpuQuota: 5})
		m.restart()
		look(&cri{CpuShares: 2}, &cri{CpuQuota: 5})
		must(t, m.s.UpdatePod(t.Context(), pod, &cri{CpuShares: 9}, nil))
		look(&cri{CpuShares: 9}, &cri{CpuQuota: 5})
		for _, call := range m.calls[calls:] {
			if call != "GC" {
				t.Errorf("an update of a pod does %s", call)
			}
		}
		if err := m.s.UpdatePod(t.Context(), ID(newID()), nil, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("update of a pod that is not there: %v", err)
		}
		must(t, m.s.RemovePod(t.Context(), pod))
		m.clean()
	})
}
