package cgroup

import (
	"os"
	"strings"
	"testing"
)

func TestFindParent(t *testing.T) {
	modes(t, func(t *testing.T, hs *Hierarchies) {
		parent := testParent(t, hs)
		id, container, other := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
		pauses := parent + "/pauses"
		for _, row := range []struct {
			name string
			dirs []string
			want string
		}{
			{"leaf of pause", []string{"/burstable/pod1/" + id, "/pod2/" + other}, parent + "/burstable/pod1"},
			{"leaf of a container, pause is elsewhere", []string{"/pauses/" + id, "/burstable/pod1/" + container}, parent + "/burstable/pod1"},
			{"only a pause elsewhere", []string{"/pauses/" + id}, ""},
			{"scope", []string{"/k.slice/k-pod1.slice/cri-" + id + ".scope/" + id}, "k-pod1.slice"},
			{"another's", []string{"/pod2/" + other, "/pod2/x" + id}, ""},
		} {
			t.Run(row.name, func(t *testing.T) {
				for _, dir := range row.dirs {
					if err := os.MkdirAll(hs.watch.abs(parent+dir), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				defer removeAll(hs.watch.abs(parent))
				if got, err := hs.FindParent(id, []string{container}, pauses); got != row.want || err != nil {
					t.Errorf("got %q, %v, want %q", got, err, row.want)
				}
			})
		}
	})
}
