package ociruntime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/mount"
)

// cloned is a detached mount of a directory or file.
func cloned(t *testing.T, path string) *os.File {
	t.Helper()
	source, err := mount.OpenSource(path)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	f, err := mount.Bind(source, mount.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Trees are attached as they are, with the options of their mounts, also by a criserver that did not make them.
func TestTrees(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("tree\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const whole, part = "/no/such/tree/0", "/no/such/tree/1"
	for _, adopted := range []bool{false, true} {
		p, config := f.adoptable(t)
		spec := DefaultSpec("sh", "-c", "cat /whole/file /part/of/it; touch /whole/x 2>&1; (/whole/file) 2>&1")
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/whole", Type: "bind", Source: whole, Options: []string{"rbind", "rprivate", "ro", "noexec"}},
			specs.Mount{Destination: "/part/of/it", Type: "bind", Source: part, Options: []string{"rbind", "ro"}})
		log := filepath.Join(t.TempDir(), "log")
		c, err := p.Create(testContext(t), ContainerConfig{ID: randomID(), Spec: spec, Root: f.openRoot(t), LogPath: log,
			Trees: []Tree{{whole, cloned(t, dir)}, {part, cloned(t, dir+"/file")}}})
		if err != nil {
			t.Fatal(err)
		}
		if adopted {
			p = f.adopt(t, config)
			c = p.Containers()[0]
		}
		p.stopAfter(t)
		if err := c.Start(testContext(t)); err != nil {
			t.Fatal(err)
		}
		waitExit(t, c)
		if out := logText(t, log); out != "tree\ntree\ntouch: /whole/x: Read-only file system\nsh: /whole/file: Permission denied\n" {
			t.Errorf("adopted %t: %q", adopted, out)
		}
		if err := c.Delete(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	p := f.pod(t, nil)
	spec := DefaultSpec("true")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/whole", Type: "bind", Source: whole, Options: []string{"rbind", "rslave"}})
	c, _ := f.create(t, p, spec, func(cc *ContainerConfig) { cc.Trees = []Tree{{whole, cloned(t, dir)}} })
	if err := c.Start(testContext(t)); err == nil || !strings.Contains(err.Error(), whole) {
		t.Errorf("a tree with propagation: %v", err)
	}
}
