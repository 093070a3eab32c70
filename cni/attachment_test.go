package cni

import (
	"strings"
	"testing"
)

func TestBadAttachments(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Attachment)
		want   string // in the error; empty: none
	}{
		{"good", func(*Attachment) {}, ""},
		{"no id", func(a *Attachment) { a.ContainerID = "" }, "container id"},
		{"id that leaves its directory", func(a *Attachment) { a.ContainerID = "../x" }, "container id"},
		{"device name", func(a *Attachment) { a.IfName = "an/other" }, "interface name"},
		{"second argument in a name", func(a *Attachment) { a.PodName = "x;K8S_POD_UID=1" }, "K8S_POD_NAME"},
		{"host port", func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 70000, ContainerPort: 1}} }, "host port 70000"},
		{"container port", func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 1}} }, "container port 0"},
		{"container port without host port", func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 0}} }, ""},
		{"protocol", func(a *Attachment) {
			a.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}
		}, `protocol "icmp"`},
		{"bandwidth", func(a *Attachment) { a.Annotations = map[string]string{EgressBandwidth: "fast"} }, EgressBandwidth},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := somePod
			tc.change(&a)
			err := a.check()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"1k": 1000, "1000": 1000, "10M": 10_000_000, "1Gi": 1 << 30, "1.5G": 1_500_000_000, "1e6": 1_000_000,
		"1E4": 10_000, "1P": 1e15, "1000500m": 1001, "+5k": 5000, // fractions of a bit round up
		// and what is refused:
		"": 0, "0": 0, "999": 0, "-1M": 0, "2P": 0, "1 M": 0, "M": 0, "1/2": 0, "0x10000": 0, "1e999999999": 0, "1e99": 0,
		"ten": 0, "1_000_000": 0, "Inf": 0,
	} {
		got, err := parseRate(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("parseRate(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	f.Add("10M")
	f.Add("1e+7")
	f.Fuzz(func(t *testing.T, text string) {
		if rate, err := parseRate(text); err == nil && (rate < 1000 || rate > 1e15) {
			t.Errorf("parseRate(%q) = %d", text, rate)
		}
	})
}
