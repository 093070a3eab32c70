package mount

import (
	"maps"
	"slices"
	"testing"
)

func TestForeignPoints(t *testing.T) {
	const table = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /srv/with\040blank rw shared:2 - nfs4 server:/x rw
23 21 0:21 / /srv/local rw - tmpfs tmpfs rw
24 21 0:22 / /mnt/fuse rw master:3 - fuse.sshfs host:/ rw
25 21 0:23 / /auto rw - autofs systemd-1 rw
`
	points := slices.Sorted(maps.Keys(foreignPoints(table)))
	if want := []string{"/auto", "/mnt/fuse", "/srv/with blank"}; !slices.Equal(points, want) {
		t.Errorf("got %q, want %q", points, want)
	}
	f := &Foreign{points: foreignPoints(table)}
	for path, want := range map[string]bool{
		"/srv": false, "/srv/local/x": false, "/srv/with blank": true, "/srv/with blank/a/b": true, "/mnt/fuse/..": false, "/auto/x": true, "/automatic": false,
	} {
		if got, some := f.crosses(path); got != want || !some {
			t.Errorf("%s: crosses %v, some %v", path, got, some)
		}
	}
}

func BenchmarkCrosses(b *testing.B) {
	f, err := NewForeign()
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		if _, _, err := f.Crosses("/var/lib/kubelet/pods/uid/volumes/kubernetes.io~projected/token"); err != nil {
			b.Fatal(err)
		}
	}
}
