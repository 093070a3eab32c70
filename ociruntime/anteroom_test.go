package ociruntime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/leak"
)

// volumeOnHost is a shared tmpfs with directories a, b and c, a mount on b and one on c that a bind leaves out.
func volumeOnHost(t *testing.T) string {
	t.Helper()
	host := filepath.Join(t.TempDir(), "with a blank")
	mountOn(t, host)
	t.Cleanup(func() {
		if err := unix.Unmount(host, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", host, err)
		}
	})
	if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(host+"/a", 0o755); err != nil {
		t.Fatal(err)
	}
	mountOn(t, host+"/b")
	mountOn(t, host+"/c")
	if err := unix.Mount("", host+"/c", "", unix.MS_UNBINDABLE, ""); err != nil {
		t.Fatal(err)
	}
	return host
}

// mountOn makes a directory and mounts a tmpfs with a file "mounted" on it.
func mountOn(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/mounted", nil, 0o644); err != nil {
		t.Error(err)
	}
}

// What the host mounts and unmounts between the cloning of a volume and its attaching is there, and not there, for the container.
func TestMountsWhileVolumeIsCloned(t *testing.T) {
	f := newFixture(t)
	for _, inUserNS := range []bool{false, true} {
		p := f.pod(t, func(c *PodConfig) {
			if inUserNS {
				ids := []specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}
				c.UserNS, c.HostNetwork = &IDMap{UIDs: ids, GIDs: ids}, false
			}
		})
		for _, propagation := range []string{"rslave", "rshared"} {
			t.Run(fmt.Sprintf("%s, user namespace %t", propagation, inUserNS), func(t *testing.T) {
				host := volumeOnHost(t)
				leak.Check(t, leak.Only(leak.Descriptor, leak.Mount))
				cloned := 0
				f.runtime.cloned = func() {
					if cloned++; cloned > 1 {
						return
					}
					mountOn(t, host+"/a")
					if err := unix.Unmount(host+"/b", 0); err != nil {
						t.Error(err)
					}
				}
				defer func() { f.runtime.cloned = nil }()
				spec := DefaultSpec("sh", "-c", "cd /v; echo *; echo */mounted; busybox grep -c ' /v/' /proc/self/mountinfo")
				spec.Linux.RootfsPropagation = propagation
				spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: host, Options: []string{"rbind", propagation}})
				out, exit := f.run(t, p, spec)
				if want := "a b c mounted\na/mounted\n1\n"; out != want || exit.Code != 0 || cloned != 2 {
					t.Errorf("cloned %d times: %q, %+v, want %q", cloned, out, exit, want)
				}
				if _, err := os.Stat(host + "/a/mounted"); err != nil {
					t.Errorf("the host's mount is gone: %v", err)
				}
				if err := unix.Unmount(host+"/a", 0); err != nil {
					t.Error(err)
				}
				mountOn(t, host+"/b")
			})
		}
	}
}

// Mounts that come at every time end the start with an error.
func TestVolumeThatChangesAlways(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	host := volumeOnHost(t)
	f.runtime.cloned = func() { mountOn(t, host+"/a") }
	spec := DefaultSpec("true")
	spec.Linux.RootfsPropagation = "rshared"
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: host, Options: []string{"rbind", "rshared"}})
	c, _ := f.create(t, p, spec, nil)
	if err := c.Start(testContext(t)); err == nil || !strings.Contains(err.Error(), host+" on /v: mounts below it came or went") {
		t.Errorf("start: %v", err)
	}
	if _, err := os.Stat(host + "/b/mounted"); err != nil {
		t.Errorf("the host's mount is gone: %v", err)
	}
}
