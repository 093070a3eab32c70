package cgroup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// applyDevices puts the device rules in force: by the v1 controller where it is mounted, else by an eBPF program on the
// cgroup2 directory. No rules: as it is (v1: as above; v2: everything allowed).
func (g *Group) applyDevices(rules []specs.LinuxDeviceCgroup, fresh bool) error {
	if len(rules) == 0 {
		return nil
	}
	if h := g.hs.byController["devices"]; h != nil {
		settings, err := deviceSettings(rules)
		if err != nil {
			return err
		}
		return h.set(g.path, settings, nil)
	}
	if h := g.hs.unified; h != nil {
		if last := rules[len(rules)-1]; fresh && last.Allow && everyDevice(last) {
			return checkRule(last) // no filter, no cost for each device that is opened
		}
		return attachDeviceFilter(h, g.path, rules, fresh)
	}
	return fmt.Errorf("set device rules: neither a devices controller nor a cgroup2 is mounted")
}

// deviceSettings spells rules for devices.allow and devices.deny, which the kernel evaluates in order of writing.
func deviceSettings(rules []specs.LinuxDeviceCgroup) ([]setting, error) {
	var s []setting
	for i, r := range rules {
		if err := checkRule(r); err != nil {
			return nil, fmt.Errorf("device rule %d: %w", i, err)
		}
		file := "devices.deny"
		if r.Allow {
			file = "devices.allow"
		}
		value := "a"
		if !everyDevice(r) {
			if r.Type == "" || r.Type == "a" {
				return nil, fmt.Errorf("device rule %d: cgroup v1 has no rule for some devices or accesses of all types", i)
			}
			value = fmt.Sprintf("%s %s:%s %s", r.Type, orStar(r.Major), orStar(r.Minor), access(r))
		}
		s = append(s, setting{what: "device rule", file: file, value: value})
	}
	return s, nil
}

// everyDevice says whether a rule is about all accesses to all devices.
func everyDevice(r specs.LinuxDeviceCgroup) bool {
	return (r.Type == "" || r.Type == "a") && orStar(r.Major) == "*" && orStar(r.Minor) == "*" && len(access(r)) == 3
}

// checkRule refuses what the OCI runtime specification does not allow.
func checkRule(r specs.LinuxDeviceCgroup) error {
	if !slices.Contains([]string{"", "a", "b", "c"}, r.Type) {
		return fmt.Errorf("%q is no device type", r.Type)
	}
	if strings.Trim(r.Access, "rwm") != "" {
		return fmt.Errorf("%q is no device access", r.Access)
	}
	for _, n := range []*int64{r.Major, r.Minor} {
		if n != nil && (*n < -1 || *n > 1<<31-1) {
			return fmt.Errorf("%d is no device number", *n)
		}
	}
	return nil
}

// orStar spells a device number; nil and -1 are any.
func orStar(n *int64) string {
	if n == nil || *n < 0 {
		return "*"
	}
	return strconv.FormatInt(*n, 10)
}

// access gives a rule's accesses, each once, in the order rwm; none is all.
func access(r specs.LinuxDeviceCgroup) string {
	if r.Access == "" {
		return "rwm"
	}
	var a string
	for _, c := range []string{"r", "w", "m"} {
		if strings.Contains(r.Access, c) {
			a += c
		}
	}
	return a
}
