package compile

import (
	"fmt"
	"testing"

	"github.com/criserver/criserver/ociruntime/program"
)

// BenchmarkStart compiles and encodes a container of the usual size: 23 mounts, 15 masks, 39 capabilities to drop.
func BenchmarkStart(b *testing.B) {
	p := plain()
	p.CapLast, p.CapPermitted = 40, 1<<41-1
	p.Seccomp = &Filter{Code: make([]byte, 805*8)}
	c := container(p)
	for i := range 20 {
		c.Mounts = append(c.Mounts, Mount{What: "mount /srv/volume", Destination: fmt.Sprintf("/sys/fs/cgroup/%d", i), FD: program.FD(8 + i)})
	}
	for i := range 10 {
		c.Masked = append(c.Masked, fmt.Sprintf("/proc/masked%d", i))
	}
	for i := range 4 {
		c.Readonly = append(c.Readonly, fmt.Sprintf("/proc/readonly%d", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		p, err := Start(c)
		if err != nil {
			b.Fatal(err)
		}
		p.Encode()
	}
}
