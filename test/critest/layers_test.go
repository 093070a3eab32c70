package critest

import (
	"archive/tar"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// TestLayers has what TestImageFiles has not: whiteouts that hide nothing, names of special files, times, capabilities of
// files. Pods in user namespaces see the same.
func TestLayers(t *testing.T) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	at := func(f registry.File, sec, nsec int64) registry.File {
		f.ModTime = time.Unix(sec, nsec)
		return f
	}
	special := func(name string, kind byte, target string) registry.File {
		return registry.File{Header: tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o600, Devmajor: 7, Devminor: 99}}
	}
	capable := registry.File{Header: tar.Header{Name: "caps/busybox", Mode: 0o755, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x01\x00\x00\x00" + strings.Repeat("\x00", 12)}}, Body: string(program)} // cap_chown+ep
	bottom := registry.Layer{Compression: "gzip", Files: []registry.File{
		file("low/.wh.never", "", 0o644), file("low/kept", "x", 0o644), file("both/low", "x", 0o644), file("opaque/hidden", "x", 0o644)}}
	top := registry.Layer{Compression: "zstd", Files: []registry.File{
		file(".wh.nothing", "", 0o644), file("own/.wh.nothing", "", 0o644), file("own/f", "x", 0o644), file("own/.wh.f", "", 0o644), file("both/.wh.nothing", "", 0o644),
		file("opaque/.wh..wh..opq", "", 0o644), file("opaque/.wh.mine", "", 0o644), file("opaque/mine", "x", 0o644), file("swapped", "x", 0o644), dir("swapped/", 0o755), file("swapped/in", "x", 0o644),
		file("a/f", "names", 0o640), hardlink("b/g", "a/f"), special("a/pipe", tar.TypeFifo, ""), special("b/pipe", tar.TypeLink, "a/pipe"),
		special("a/dev", tar.TypeBlock, ""), special("b/dev", tar.TypeLink, "a/dev"), special("a/link", tar.TypeSymlink, "f"), special("b/link", tar.TypeLink, "a/link"),
		at(file("before", "", 0o644), -86400, 0), at(file("after", "", 0o644), 1<<32, 123456789), capable,
	}}
	eachStore(t, func(t *testing.T, d *daemon) {
		ref := pullNew(t, d, "kinds", ocispec.ImageConfig{}, bottom, top)
		_, inUserNS := userNamespace(9 << 20)
		for name, p := range map[string]*pod{"host's users": runPod(t, d), "user namespace": runPod(t, d, inUserNS)} {
			c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
			for _, row := range []struct{ name, script, want string }{
				{"whiteouts of nothing", "ls -l / own both low opaque 2>&1 | grep -F -e nothing -e never -e '??' -e 'No such'; ls own both low opaque", "both:\nlow\n\nlow:\nkept\n\nopaque:\nmine\n\nown:\nf\n"},
				{"what was hidden can be made", "echo 1 >own/nothing; cat own/nothing; rm own/nothing; ls own", "1\nf\n"},
				{"file, then directory", "ls swapped", "in\n"},
				{"names in several directories", "for n in f:g pipe:pipe dev:dev; do [ a/${n%:*} -ef b/${n#*:} ] && stat -c %h a/${n%:*}; done; stat -c '%i' a/link b/link | uniq | wc -l", "2\n2\n2\n1\n"},
				{"times", "stat -c %Y before after", "-86400\n4294967296\n"},
			} {
				t.Run(name+" "+row.name, func(t *testing.T) {
					if got := c.exec(t, "cd /; "+row.script); got != row.want {
						t.Errorf("%q instead of %q", got, row.want)
					}
				})
			}
		}
		user := runPod(t, d).start(t, "/caps/busybox grep CapEff /proc/self/status", func(c *cri.ContainerConfig) {
			c.Image.Image = ref
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		})
		user.wait(t)
		user.wrote(t, "CapEff:\t0000000000000001\n")
	})
}

// TestManyLayers starts a container from more layers than one page of mount options could name.
func TestManyLayers(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		var layers []registry.Layer
		for i := range 100 {
			layers = append(layers, registry.Layer{Files: []registry.File{file(fmt.Sprintf("layers/%d", i), "x", 0o644), file("layers/top", fmt.Sprint(i), 0o644)}})
		}
		ref := pullNew(t, d, "many", ocispec.ImageConfig{}, layers...)
		_, inUserNS := userNamespace(10 << 20)
		for _, p := range []*pod{runPod(t, d), runPod(t, d, inUserNS)} {
			c := p.start(t, "ls /layers | wc -l; cat /layers/top", func(c *cri.ContainerConfig) { c.Image.Image = ref })
			c.wait(t)
			c.wrote(t, "101\n99")
		}
	})
}
