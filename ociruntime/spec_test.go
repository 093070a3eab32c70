package ociruntime

import (
	"encoding/json"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/ociruntime/seccomp"
)

// The spec of a container can be read as long as the container is there, with what updates made of it, and no longer costs
// memory once the container was started.
func TestSpecOfAContainer(t *testing.T) {
	f := newFixture(t)
	p, config := f.adoptable(t)
	spec := DefaultSpec("sleep", "1000")
	spec.Linux.Seccomp = seccomp.DefaultProfile(spec.Process.Capabilities.Bounding)
	spec.Process.Env = append(spec.Process.Env, "NOT_TEXT=\xff")
	spec.Annotations = map[string]string{"a": "b"}
	want, score := *spec, 500
	c, _ := f.create(t, p, spec, nil)
	same := func(when string, c *Container) {
		t.Helper()
		got, err := c.Spec()
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if got, want := text(t, got), text(t, &want); got != want {
			t.Errorf("%s: the spec is\n%s\nwant\n%s", when, got, want)
		}
	}
	same("created", c)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	same("started", c)
	if _, err := c.Update(Limits{OOMScoreAdj: &score}); err != nil {
		t.Fatal(err)
	}
	process := *want.Process
	process.OOMScoreAdj, want.Process = &score, &process
	same("updated", c)
	if c.record.Spec != nil || c.spec != nil {
		t.Error("the spec of a container that was started is kept in memory")
	}
	again := f.adopt(t, config)
	again.stopAfter(t)
	same("adopted", again.Containers()[0])
}

func text(t *testing.T, spec *specs.Spec) string {
	t.Helper()
	data, err := json.MarshalIndent(spec, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
