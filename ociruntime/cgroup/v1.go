package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// v1 is the dialect of a version 1 hierarchy.
type v1 struct{}

func (v1) oomFile() string                                    { return "memory.oom_control" }
func (v1) ownOOMFile() string                                 { return "memory.oom_control" }
func (v1) memoryLimitFile() string                            { return "memory.limit_in_bytes" }
func (v1) cpusetFile(kind string) string                      { return "cpuset." + kind }
func (v1) freeze(h *hierarchy, dir string, freeze bool) error { return freezeV1(h, dir, freeze) }
func (v1) frozen(h *hierarchy, dir string) (bool, error)      { return frozenV1(h, dir) }
func (v1) frozenItself(h *hierarchy, dir string) (bool, error) {
	return frozenItselfV1(h, dir)
}

func (v1) hugetlbFiles(size string) (usage, reservation string) {
	return "hugetlb." + size + ".limit_in_bytes", "hugetlb." + size + ".rsvd.limit_in_bytes"
}

// prepare fills the cpuset of a new directory, without which no process can enter it. What res names is not inherited
// here but written with the other limits, except that the directories above need something in any case.
func (v1) prepare(h *hierarchy, dir string, res *specs.LinuxResources) error {
	if !slices.Contains(h.Controllers, "cpuset") {
		return nil
	}
	own := specs.LinuxCPU{}
	if res != nil && res.CPU != nil {
		own = *res.CPU
	}
	for file, wanted := range map[string]string{"cpuset.cpus": own.Cpus, "cpuset.mems": own.Mems} {
		var err error
		if wanted == "" {
			_, err = inheritCpuset(h, dir, file)
		} else {
			_, err = inheritCpuset(h, above(dir), file)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// above is the directory that dir is in, "" for the root.
func above(dir string) string {
	if up := path.Dir(dir); up != "." {
		return up
	}
	return ""
}

// inheritCpuset gives what file says in dir, having first copied it down from above wherever it was empty.
func inheritCpuset(h *hierarchy, dir, file string) (string, error) {
	text, err := h.read(dir, file)
	if text = strings.TrimSpace(text); err != nil || text != "" || dir == "" {
		return text, err
	}
	text, err = inheritCpuset(h, above(dir), file)
	if err != nil {
		return "", err
	}
	if err := h.write(dir, file, text); err != nil {
		return "", setting{what: "inherited cpuset", file: file, value: text}.failed(h, dir, err)
	}
	return text, nil
}

func (v1) cpu(now current, c *specs.LinuxCPU) ([]setting, error) {
	if set(c.RealtimeRuntime) || set(c.RealtimePeriod) {
		return nil, errors.New("realtime limits are not supported")
	}
	var s []setting
	if c.Idle != nil {
		s = append(s, setting{what: "cpu idle", file: "cpu.idle", value: strconv.FormatInt(*c.Idle, 10)})
	}
	if set(c.Shares) && (c.Idle == nil || *c.Idle == 0) {
		s = append(s, setting{what: "cpu shares", file: "cpu.shares", value: strconv.FormatUint(*c.Shares, 10)})
	}
	period := setting{what: "cpu period", file: "cpu.cfs_period_us"}
	quota := setting{what: "cpu quota", file: "cpu.cfs_quota_us"}
	if set(c.Period) {
		period.value = strconv.FormatUint(*c.Period, 10)
	}
	if set(c.Quota) {
		quota.value = strconv.FormatInt(max(*c.Quota, -1), 10)
	}
	ordered, err := cfsOrder(now, c, period, quota)
	if err != nil {
		return nil, err
	}
	s = append(s, ordered...)
	if c.Burst != nil {
		s = append(s, setting{what: "cpu burst", file: "cpu.cfs_burst_us", value: strconv.FormatUint(*c.Burst, 10)})
	}
	return s, nil
}

// cfsOrder puts period and quota so that no ratio in between is greater than both the old and the new one, since the
// parent's quota may refuse it. Both files are only written if they have a value.
func cfsOrder(now current, c *specs.LinuxCPU, period, quota setting) ([]setting, error) {
	switch {
	case period.value == "" && quota.value == "":
		return nil, nil
	case period.value == "":
		return []setting{quota}, nil
	case quota.value == "":
		return []setting{period}, nil
	case now == nil || *c.Quota < 0:
		if *c.Quota < 0 { // no quota first: then any period goes
			return []setting{quota, period}, nil
		}
		return []setting{period, quota}, nil
	}
	oldPeriod, err := now.bytes(period.file)
	if err != nil {
		return nil, err
	}
	if int64(*c.Period) < oldPeriod { // a shorter period with the old quota would be the greater ratio
		return []setting{quota, period}, nil
	}
	return []setting{period, quota}, nil
}

// memory orders limit and memsw (memory and swap together), because memsw may never be below limit.
// A limit without Swap keeps how much swap was allowed, as v2 does by itself.
func (v1) memory(now current, m *specs.LinuxMemory) ([]setting, error) {
	limit := setting{what: "memory limit", file: "memory.limit_in_bytes"}
	memsw := setting{what: "memory and swap limit", file: "memory.memsw.limit_in_bytes"}
	if set(m.Limit) {
		limit.value = strconv.FormatInt(max(*m.Limit, -1), 10)
	}
	if set(m.Swap) {
		memsw.value = strconv.FormatInt(max(*m.Swap, -1), 10)
		// Without swap accounting there is no file; then any amount and none, as far as anybody can tell, hold by themselves.
		memsw.optional = *m.Swap < 0 || set(m.Limit) && *m.Swap == *m.Limit
	}
	s, err := memoryOrder(now, m, limit, memsw)
	if err != nil {
		return nil, err
	}
	if set(m.Reservation) {
		s = append(s, setting{what: "memory reservation", file: "memory.soft_limit_in_bytes", value: strconv.FormatInt(max(*m.Reservation, -1), 10)})
	}
	if m.Swappiness != nil {
		s = append(s, setting{what: "swappiness", file: "memory.swappiness", value: strconv.FormatUint(*m.Swappiness, 10)})
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		s = append(s, setting{what: "OOM killer off", file: "memory.oom_control", value: "1"})
	}
	return s, nil
}

func memoryOrder(now current, m *specs.LinuxMemory, limit, memsw setting) ([]setting, error) {
	if limit.value == "" && memsw.value == "" {
		return nil, nil
	}
	if limit.value == "" {
		return []setting{memsw}, nil
	}
	if now == nil { // nothing is limited: downwards
		return slices.DeleteFunc([]setting{limit, memsw}, func(s setting) bool { return s.value == "" }), nil
	}
	if err := refuseBelowUsage(now, m, "memory.usage_in_bytes"); err != nil {
		return nil, err
	}
	oldMemsw, err := now.bytes(memsw.file)
	if errors.Is(err, unix.ENOENT) && (memsw.value == "" || memsw.optional) { // no swap accounting
		return []setting{limit}, nil
	}
	if err != nil {
		return nil, err
	}
	oldLimit, err := now.bytes(limit.file)
	if err != nil {
		return nil, err
	}
	if memsw.value == "" && oldMemsw != unlimited {
		memsw.value = keptAllowance(*m.Limit, oldLimit, oldMemsw)
	}
	switch {
	case memsw.value == "":
		return []setting{limit}, nil
	case *m.Limit < 0 || *m.Limit > oldMemsw:
		return []setting{memsw, limit}, nil
	}
	return []setting{limit, memsw}, nil
}

// keptAllowance is the memsw limit that leaves as much swap beyond the new limit as there was beyond the old one.
func keptAllowance(limit, oldLimit, oldMemsw int64) string {
	if limit < 0 {
		return "-1"
	}
	return strconv.FormatInt(limit+oldMemsw-oldLimit, 10)
}

// refuseBelowUsage is what CheckBeforeUpdate asks for.
func refuseBelowUsage(now current, m *specs.LinuxMemory, file string) error {
	if m.CheckBeforeUpdate == nil || !*m.CheckBeforeUpdate || *m.Limit < 0 {
		return nil
	}
	usage, err := now.bytes(file)
	if err == nil && *m.Limit < usage {
		err = refusal{fmt.Errorf("new memory limit %d is below the present usage %d", *m.Limit, usage), ErrInUse}
	}
	return err
}

// defaultBlockWeight is what the kernel gives a new group.
const defaultBlockWeight = 100

func (v1) blockIO(now current, b *specs.LinuxBlockIO) ([]setting, error) {
	if set(b.LeafWeight) || slices.ContainsFunc(b.WeightDevice, func(d specs.LinuxWeightDevice) bool { return set(d.LeafWeight) }) {
		return nil, errors.New("leaf weights went with the CFQ scheduler in Linux 5.0")
	}
	var s []setting
	weight, weightDevice := "blkio.weight", "blkio.weight_device"
	if _, err := now("blkio.bfq.weight"); err == nil {
		weight, weightDevice = "blkio.bfq.weight", "blkio.bfq.weight_device"
	}
	if b.Weight != nil {
		s = append(s, setting{what: "block weight", file: weight, value: strconv.Itoa(int(cmp.Or(*b.Weight, defaultBlockWeight)))})
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			s = append(s, setting{what: "block device weight", file: weightDevice, value: fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight)})
		}
	}
	for _, t := range []struct {
		file    string
		devices []specs.LinuxThrottleDevice
	}{
		{"blkio.throttle.read_bps_device", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.devices {
			s = append(s, setting{what: "block device rate", file: t.file, value: fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)})
		}
	}
	return s, nil
}
