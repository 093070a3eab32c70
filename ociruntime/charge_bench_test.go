package ociruntime

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/criserver/criserver/ociruntime/cgroup"
)

// BenchmarkPodCharges tells to whose memory a pod is charged in a cgroup2 with systemd: its own scope, or what makes it. Each pod
// has its own network and one container. Needs a guest.
func BenchmarkPodCharges(b *testing.B) {
	f := newFixtureSystemd(b)
	if f.runtime.config.Cgroups.Mode() != cgroup.V2 {
		b.Skip("not cgroup v2")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		b.Fatal(err)
	}
	maker := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(strings.TrimSpace(string(own)), "0::"))
	f.started(b, f.pod(b, nil), "sleep 1000", nil) // what only the first one takes
	kinds := []string{"anon", "shmem", "kernel"}
	before := memoryStat(b, maker, kinds)
	const pods = 50
	scopes := map[string]int64{}
	for b.Loop() {
		for range pods {
			p := f.pod(b, func(c *PodConfig) { c.HostNetwork = false })
			f.started(b, p, "sleep 1000", nil)
			for kind, bytes := range memoryStat(b, filepath.Join("/sys/fs/cgroup", p.scope.Path()), kinds) {
				scopes[kind] += bytes
			}
		}
	}
	after := memoryStat(b, maker, kinds)
	for _, kind := range kinds {
		all := float64(pods * b.N)
		b.ReportMetric(float64(after[kind]-before[kind])/all/1024, "KiB-"+kind+"-of-maker/pod")
		b.ReportMetric(float64(scopes[kind])/all/1024, "KiB-"+kind+"-of-scope/pod")
	}
}

// memoryStat reads lines of memory.stat, in bytes.
func memoryStat(t testing.TB, dir string, kinds []string) map[string]int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		t.Fatal(err)
	}
	stat := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		for _, kind := range kinds {
			if value, found := strings.CutPrefix(line, kind+" "); found {
				if stat[kind], err = strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return stat
}
