package limits

import (
	"cmp"
	"encoding/json"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// resources reads what OCI's configuration files call "resources".
func resources(t *testing.T, text string) *specs.LinuxResources {
	t.Helper()
	var r specs.LinuxResources
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func text(t *testing.T, r *specs.LinuxResources) string {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPlan(t *testing.T) {
	for _, c := range []struct{ name, old, change, todo, next string }{
		{"nothing", `{"cpu":{"shares":512},"pids":{"limit":7}}`, `{}`, `{}`, `{"cpu":{"shares":512},"pids":{"limit":7}}`},
		{"zero is unchanged", `{"cpu":{"shares":512,"quota":5000,"period":10000,"cpus":"0"},"memory":{"limit":9,"swap":9},"pids":{"limit":7}}`,
			`{"cpu":{"shares":0,"quota":0,"period":0},"memory":{"limit":0,"swap":0},"pids":{"limit":0}}`, "",
			`{"cpu":{"shares":512,"quota":5000,"period":10000,"cpus":"0"},"memory":{"limit":9,"swap":9},"pids":{"limit":7}}`},
		{"each field of the processor", `{"cpu":{"shares":1,"quota":2,"burst":3,"period":4,"idle":1,"cpus":"0","mems":"0"}}`,
			`{"cpu":{"quota":-1,"burst":0,"idle":0,"mems":"1"}}`, `{"cpu":{"quota":-1,"burst":0,"mems":"1","idle":0}}`,
			`{"cpu":{"shares":1,"quota":-1,"burst":0,"period":4,"cpus":"0","mems":"1","idle":0}}`},
		{"first limit of memory", `{}`, `{"memory":{"limit":100}}`, `{"memory":{"limit":100,"swap":100}}`, `{"memory":{"limit":100,"swap":100}}`},
		{"no swap before, none after", `{"memory":{"limit":50,"swap":50}}`, `{"memory":{"limit":100}}`, `{"memory":{"limit":100,"swap":100}}`, `{"memory":{"limit":100,"swap":100}}`},
		{"as much swap as before", `{"memory":{"limit":50,"swap":80}}`, `{"memory":{"limit":100}}`, `{"memory":{"limit":100,"swap":130}}`, `{"memory":{"limit":100,"swap":130}}`},
		{"less memory, as much swap", `{"memory":{"limit":50,"swap":80}}`, `{"memory":{"limit":10}}`, `{"memory":{"limit":10,"swap":40}}`, `{"memory":{"limit":10,"swap":40}}`},
		{"any swap stays", `{"memory":{"limit":50,"swap":-1}}`, `{"memory":{"limit":10}}`, `{"memory":{"limit":10,"swap":-1}}`, `{"memory":{"limit":10,"swap":-1}}`},
		{"no limit", `{"memory":{"limit":50,"swap":80}}`, `{"memory":{"limit":-1}}`, `{"memory":{"limit":-1,"swap":-1}}`, `{"memory":{"limit":-1,"swap":-1}}`},
		{"swap alone", `{"memory":{"limit":50,"swap":50}}`, `{"memory":{"swap":90}}`, `{"memory":{"swap":90}}`, `{"memory":{"limit":50,"swap":90}}`},
		{"swap by its file", `{"memory":{"limit":50}}`, `{"memory":{"limit":60},"unified":{"memory.swap.max":"5"}}`, `{"memory":{"limit":60},"unified":{"memory.swap.max":"5"}}`,
			`{"memory":{"limit":60},"unified":{"memory.swap.max":"5"}}`},
		{"huge pages by size", `{"hugepageLimits":[{"pageSize":"2MB","limit":4},{"pageSize":"1GB","limit":0}]}`, `{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}`, "",
			`{"hugepageLimits":[{"pageSize":"1GB","limit":0},{"pageSize":"2MB","limit":0}]}`},
		{"unified files by name", `{"unified":{"memory.high":"5","memory.low":"1"}}`, `{"unified":{"memory.high":"max"}}`, "", `{"unified":{"memory.high":"max","memory.low":"1"}}`},
		{"class of block I/O", `{"blockIO":{"weight":50,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5},{"major":8,"minor":1,"rate":2}]}}`,
			`{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":9}],"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":3}]}}`,
			`{"blockIO":{"weight":0,"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":9},{"major":8,"minor":0,"rate":0}],"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":3}]}}`,
			`{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":9}],"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":3}]}}`},
		{"weights of block devices", `{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":50}]}}`, `{"blockIO":{"weight":70}}`,
			`{"blockIO":{"weight":70,"weightDevice":[{"major":8,"minor":0,"weight":0}]}}`, `{"blockIO":{"weight":70}}`},
		{"the same class", `{"blockIO":{"weight":70}}`, `{"cpu":{"shares":7}}`, "", `{"cpu":{"shares":7},"blockIO":{"weight":70}}`},
		{"processes", `{"pids":{"limit":7}}`, `{"pids":{"limit":-1}}`, "", `{"pids":{"limit":-1}}`},
		{"devices are another matter", `{"devices":[{"allow":true}]}`, `{"devices":[{"allow":false}]}`, `{}`, `{}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			old, change := resources(t, c.old), resources(t, c.change)
			todo, next, err := Plan(old, change)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := text(t, next), text(t, resources(t, c.next)); got != want {
				t.Errorf("limits then\ngot  %s\nwant %s", got, want)
			}
			if want := text(t, resources(t, cmp.Or(c.todo, c.change))); text(t, todo) != want { // "": what was asked for
				t.Errorf("to do\ngot  %s\nwant %s", text(t, todo), want)
			}
			if text(t, old) != text(t, resources(t, c.old)) || text(t, change) != text(t, resources(t, c.change)) {
				t.Error("what was given has changed")
			}
		})
	}
}

func TestContradictions(t *testing.T) {
	for _, c := range []struct{ old, change, want string }{
		{`{}`, `{"memory":{"swap":90}}`, "90, which includes memory, needs a limit of memory"},
		{`{"memory":{"limit":-1,"swap":-1}}`, `{"memory":{"swap":90}}`, "90, which"},
		{`{"memory":{"limit":100,"swap":100}}`, `{"memory":{"swap":90}}`, "90 is below the memory limit of 100"},
		{`{}`, `{"memory":{"limit":100,"swap":99}}`, "99 is below the memory limit of 100"},
	} {
		if _, _, err := Plan(resources(t, c.old), resources(t, c.change)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s after %s: %v, want %q", c.change, c.old, err, c.want)
		}
	}
	if _, _, err := Plan(nil, resources(t, `{"memory":{"limit":100}}`)); err != nil {
		t.Error(err)
	}
}
