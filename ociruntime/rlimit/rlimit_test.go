package rlimit

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		text string
		want specs.POSIXRlimit
		bad  bool
	}{
		{text: "nofile=1024:524288", want: specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}},
		{text: "core=0", want: specs.POSIXRlimit{Type: "RLIMIT_CORE"}},
		{text: "MEMLOCK=1:unlimited", want: specs.POSIXRlimit{Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: math.MaxUint64}},
		{text: "nproc=-1", want: specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: math.MaxUint64, Hard: math.MaxUint64}},
		{text: "nofile", bad: true},
		{text: "nofile=", bad: true},
		{text: "nofile=2:1", bad: true},
		{text: "nofile=unlimited:1", bad: true},
		{text: "nofile=-2", bad: true},
		{text: "nofile=1:2:3", bad: true},
		{text: "files=1", bad: true},
		{text: "RLIMIT_NOFILE=1", bad: true},
	} {
		got, err := Parse(test.text)
		if (err != nil) != test.bad {
			t.Errorf("%q: error %v", test.text, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" && !test.bad {
			t.Errorf("%q (-want +got):\n%s", test.text, diff)
		}
	}
}

func TestClamp(t *testing.T) {
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}, {Type: "RLIMIT_NPROC", Soft: 10, Hard: 20}, {Type: "RLIMIT_CORE", Soft: 10, Hard: 20}}
	clamped, lowered := Clamp(limits, map[string]uint64{"RLIMIT_NOFILE": 15, "RLIMIT_NPROC": 5})
	if diff := cmp.Diff([]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 15}, {Type: "RLIMIT_NPROC", Soft: 5, Hard: 5}, limits[2]}, clamped); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(limits[:2], lowered); diff != "" {
		t.Errorf("lowered (-want +got):\n%s", diff)
	}
}

func TestOwn(t *testing.T) {
	own, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	if len(own) != len(numbers) || own["RLIMIT_NOFILE"] == 0 {
		t.Errorf("%v", own)
	}
}
