package cgroup

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// v2 is the dialect of cgroup2.
type v2 struct{}

func (v2) oomFile() string                                    { return "memory.events" }
func (v2) ownOOMFile() string                                 { return "memory.events.local" }
func (v2) memoryLimitFile() string                            { return "memory.max" }
func (v2) cpusetFile(kind string) string                      { return "cpuset." + kind + ".effective" }
func (v2) freeze(h *hierarchy, dir string, freeze bool) error { return freezeV2(h, dir, freeze) }
func (v2) frozen(h *hierarchy, dir string) (bool, error)      { return frozenV2(h, dir) }
func (v2) frozenItself(h *hierarchy, dir string) (bool, error) {
	return frozenItselfV2(h, dir)
}

func (v2) hugetlbFiles(size string) (usage, reservation string) {
	return "hugetlb." + size + ".max", "hugetlb." + size + ".rsvd.max"
}

// prepare distributes every controller of the root down to dir's parent. A pod cgroup that already has them, as under a
// kubelet, is only read. A group that still has processes itself cannot (EBUSY); a leaf without limits can do without. A
// single controller that cannot be had is missed only by a leaf that res limits by it.
func (v2) prepare(h *hierarchy, dir string, res *specs.LinuxResources) error {
	if len(h.Controllers) == 0 {
		return nil
	}
	return distribute(h, above(dir), res)
}

// distribute makes the controllers of h, at least those that res needs, available in the children of dir.
func distribute(h *hierarchy, dir string, res *specs.LinuxResources) error {
	const file = "cgroup.subtree_control"
	text, err := h.read(dir, file)
	if err != nil {
		return err
	}
	have := strings.Fields(text)
	missing := slices.DeleteFunc(slices.Clone(h.Controllers), func(c string) bool { return slices.Contains(have, c) })
	if len(missing) == 0 {
		return nil
	}
	if dir != "" {
		if err := distribute(h, above(dir), res); err != nil {
			return err
		}
	}
	err = h.write(dir, file, "+"+strings.Join(missing, " +"))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY): // it has processes; it would take some controllers, and no process could enter a group below
		if res == nil {
			return nil
		}
		return fmt.Errorf("enable controllers %s in %s: %w", strings.Join(missing, ", "), h.abs(dir, file), err)
	}
	for _, c := range missing { // together they fail for the sake of one
		err := h.write(dir, file, "+"+c)
		if err != nil && res != nil && slices.Contains(needed(res), c) {
			return fmt.Errorf("enable controller %s in %s: %w", c, h.abs(dir, file), err)
		}
	}
	return nil
}

// needed lists the controllers, by their names in v2, that res limits by.
func needed(res *specs.LinuxResources) []string {
	var names []string
	for file := range res.Unified {
		controller, _, _ := strings.Cut(file, ".")
		names = append(names, controller)
	}
	for _, l := range limits {
		switch {
		case !l.wanted(res), l.controller == "hugetlb" && onlyZeroHugepages(res):
		case l.controller == "blkio":
			names = append(names, "io")
		default:
			names = append(names, l.controller)
		}
	}
	return names
}

// cpuWeight converts v1 cpu shares (2 to 262144, 1024 is normal) to a v2 cpu weight (1 to 10000, 100 is normal) by the
// curve that Kubernetes and runc agreed on in 2025: the three points map exactly. 0 stays 0, "not set".
func cpuWeight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	exponent := (l*l+125*l)/612.0 - 7.0/34.0
	return uint64(math.Ceil(math.Pow(10, exponent)))
}

func (v2) cpu(now current, c *specs.LinuxCPU) ([]setting, error) {
	if set(c.RealtimeRuntime) || set(c.RealtimePeriod) {
		return nil, errors.New("realtime limits do not exist in cgroup v2")
	}
	var s []setting
	if c.Idle != nil {
		s = append(s, setting{what: "cpu idle", file: "cpu.idle", value: strconv.FormatInt(*c.Idle, 10)})
	}
	if set(c.Shares) && (c.Idle == nil || *c.Idle == 0) {
		s = append(s, setting{what: "cpu weight", file: "cpu.weight", value: strconv.FormatUint(cpuWeight(*c.Shares), 10)})
	}
	bandwidth, err := cpuBandwidth(now, c)
	return append(s, bandwidth...), err
}

// cpuBandwidth orders quota and burst, which may never be more than the quota.
func cpuBandwidth(now current, c *specs.LinuxCPU) ([]setting, error) {
	var s []setting
	if set(c.Quota) || set(c.Period) {
		value, err := cpuMax(now, c)
		if err != nil {
			return nil, err
		}
		s = append(s, setting{what: "cpu quota", file: "cpu.max", value: value})
	}
	if c.Burst == nil {
		return s, nil
	}
	s = append(s, setting{what: "cpu burst", file: "cpu.max.burst", value: strconv.FormatUint(*c.Burst, 10)})
	if now == nil {
		return s, nil
	}
	old, err := now.bytes("cpu.max.burst")
	if err == nil && *c.Burst < uint64(old) {
		slices.Reverse(s)
	}
	return s, err
}

// cpuMax joins quota and period; a quota alone keeps the period by itself, a period alone needs the present quota.
func cpuMax(now current, c *specs.LinuxCPU) (string, error) {
	quota := "max"
	switch {
	case set(c.Quota):
		quota = orMax(*c.Quota)
	case now != nil:
		text, err := now("cpu.max")
		if err != nil {
			return "", err
		}
		quota, _, _ = strings.Cut(strings.TrimSpace(text), " ")
	}
	if !set(c.Period) {
		return quota, nil
	}
	return quota + " " + strconv.FormatUint(*c.Period, 10), nil
}

func (v2) memory(now current, m *specs.LinuxMemory) ([]setting, error) {
	if m.Swappiness != nil {
		return nil, errors.New("swappiness does not exist in cgroup v2")
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		return nil, errors.New("the OOM killer cannot be disabled in cgroup v2")
	}
	var s []setting
	limit := int64(0)
	if set(m.Limit) {
		limit = *m.Limit
		if now != nil {
			var err error
			if s, err = reclaim(now, m); err != nil {
				return nil, err
			}
		}
		s = append(s, setting{what: "memory limit", file: "memory.max", value: orMax(limit)})
	}
	if set(m.Swap) {
		swap, err := swapAlone(now, *m.Swap, limit)
		if err != nil {
			return nil, err
		}
		// Without swap accounting there is no file; then none (0) and any amount (max) hold by themselves or not at all.
		s = append(s, setting{what: "swap limit", file: "memory.swap.max", value: swap, optional: swap == "0" || swap == "max"})
		if last := len(s) - 1; now != nil { // an existing group may have to page out before it fits: swap first
			s = slices.Insert(s[:last:last], 0, s[last])
		}
	}
	if set(m.Reservation) {
		s = append(s, setting{what: "memory reservation", file: "memory.low", value: orMax(*m.Reservation)})
	}
	return s, nil
}

// reclaim makes room for a limit that is below the usage (Linux 5.19). Where that is in vain it fails, as the limit itself does
// in v1; here that would make the kernel kill processes.
func reclaim(now current, m *specs.LinuxMemory) ([]setting, error) {
	if err := refuseBelowUsage(now, m, "memory.current"); err != nil || *m.Limit < 0 {
		return nil, err
	}
	usage, err := now.bytes("memory.current")
	if err != nil || usage <= *m.Limit {
		return nil, err
	}
	amount := strconv.FormatInt(usage-*m.Limit, 10)
	return []setting{{what: "amount to reclaim for the new memory limit", file: "memory.reclaim", value: amount, optional: true}}, nil
}

// swapAlone is what memory.swap.max must say for a limit of memory and swap together; limit 0 is "as it is now".
func swapAlone(now current, both, limit int64) (string, error) {
	if both < 0 {
		return "max", nil
	}
	if limit == 0 {
		var err error
		if limit, err = now.bytes("memory.max"); err != nil {
			return "", err
		}
	}
	switch {
	case limit < 0, limit == unlimited:
		return "", errors.New("a limit of memory and swap together needs a memory limit")
	case both < limit:
		return "", fmt.Errorf("memory and swap together (%d) are less than memory alone (%d)", both, limit)
	}
	return strconv.FormatInt(both-limit, 10), nil
}

func (v2) blockIO(now current, b *specs.LinuxBlockIO) ([]setting, error) {
	if set(b.LeafWeight) || slices.ContainsFunc(b.WeightDevice, func(d specs.LinuxWeightDevice) bool { return set(d.LeafWeight) }) {
		return nil, errors.New("leaf weights do not exist in cgroup v2")
	}
	var s []setting
	file, weight := "io.weight", func(w uint16) string { return strconv.FormatUint(ioWeight(w), 10) }
	if _, err := now("io.bfq.weight"); err == nil {
		file, weight = "io.bfq.weight", func(w uint16) string { return strconv.Itoa(int(w)) }
	}
	if w := b.Weight; w != nil {
		value := strconv.Itoa(defaultBlockWeight)
		if *w != 0 {
			value = weight(*w)
		}
		s = append(s, setting{what: "block weight", file: file, value: value})
	}
	for _, d := range b.WeightDevice {
		if d.Weight == nil {
			continue
		}
		value := weight(*d.Weight)
		if *d.Weight == 0 && file == "io.weight" {
			value = "default"
		}
		s = append(s, setting{what: "block device weight", file: file, value: fmt.Sprintf("%d:%d %s", d.Major, d.Minor, value)})
	}
	for _, t := range []struct {
		key     string
		devices []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.devices {
			s = append(s, setting{what: "block device rate", file: "io.max", value: fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.key, rateOrMax(d.Rate))})
		}
	}
	return s, nil
}

// rateOrMax spells a rate; v1's 0, "no limit", is "max" here.
func rateOrMax(rate uint64) string {
	if rate == 0 {
		return "max"
	}
	return strconv.FormatUint(rate, 10)
}

// ioWeight converts a v1 block weight (10 to 1000) to an io.weight (1 to 10000), linearly as runc does.
func ioWeight(w uint16) uint64 {
	return 1 + (uint64(max(w, 10))-10)*9999/990
}
