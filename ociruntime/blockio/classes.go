package blockio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.yaml.in/yaml/v3"
)

// Classes are the classes of a file, by name.
type Classes map[string][]Entry

// Entry is one item of a class. Empty values are not set.
type Entry struct {
	Devices           []string `yaml:"Devices"` // patterns; none: all devices
	Weight            string   `yaml:"Weight"`
	ThrottleReadBps   string   `yaml:"ThrottleReadBps"`
	ThrottleWriteBps  string   `yaml:"ThrottleWriteBps"`
	ThrottleReadIOPS  string   `yaml:"ThrottleReadIOPS"`
	ThrottleWriteIOPS string   `yaml:"ThrottleWriteIOPS"`
}

// Read reads a file of classes.
func Read(path string) (Classes, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read classes of block I/O: %w", err)
	}
	classes, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read classes of block I/O from %s: %w", path, err)
	}
	return classes, nil
}

func parse(data []byte) (Classes, error) {
	var file struct {
		Classes Classes `yaml:"Classes"`
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil && !errors.Is(err, io.EOF) { // of an empty file
		return nil, err
	}
	for name, entries := range file.Classes {
		for i, e := range entries {
			if err := e.check(); err != nil {
				return nil, fmt.Errorf("class %s, entry %d: %w", name, i, err)
			}
		}
	}
	return file.Classes, nil
}

func (e Entry) rates() []string {
	return []string{e.ThrottleReadBps, e.ThrottleWriteBps, e.ThrottleReadIOPS, e.ThrottleWriteIOPS}
}

func (e Entry) check() error {
	for _, rate := range e.rates() {
		if _, err := quantity(rate); err != nil {
			return err
		}
		if rate != "" && len(e.Devices) == 0 {
			return fmt.Errorf("rate %s needs Devices", rate)
		}
	}
	switch w, err := quantity(e.Weight); {
	case err != nil:
		return err
	case e.Weight != "" && (w < minWeight || w > maxWeight):
		return fmt.Errorf("weight %s is not between %d and %d", e.Weight, minWeight, maxWeight)
	}
	return nil
}

const minWeight, maxWeight = 10, 1000

// Limits is what a class means for the devices that are there now. unmatched are patterns without one.
func (c Classes) Limits(class string) (limits *specs.LinuxBlockIO, unmatched []string, err error) {
	entries, ok := c[class]
	if !ok {
		return nil, nil, fmt.Errorf("there is no class of block I/O %q: there are %s", class, strings.Join(slices.Sorted(maps.Keys(c)), ", "))
	}
	limits = &specs.LinuxBlockIO{}
	for _, e := range entries {
		if len(e.Devices) == 0 {
			if w := weight(e.Weight); w != nil {
				limits.Weight = w
			}
			continue
		}
		for _, pattern := range e.Devices {
			devices, err := match(pattern)
			if err != nil {
				return nil, nil, err
			}
			if len(devices) == 0 {
				unmatched = append(unmatched, pattern)
			}
			for _, d := range devices {
				e.put(limits, d)
			}
		}
	}
	return limits, unmatched, nil
}

// put sets what e says of one device.
func (e Entry) put(limits *specs.LinuxBlockIO, d specs.LinuxBlockIODevice) {
	if w := weight(e.Weight); w != nil {
		limits.WeightDevice = slices.DeleteFunc(limits.WeightDevice, func(o specs.LinuxWeightDevice) bool { return o.LinuxBlockIODevice == d })
		limits.WeightDevice = append(limits.WeightDevice, specs.LinuxWeightDevice{LinuxBlockIODevice: d, Weight: w})
	}
	for i, to := range throttles(limits) {
		rate := e.rates()[i]
		if rate == "" {
			continue
		}
		n, _ := quantity(rate) // which was checked
		*to = slices.DeleteFunc(*to, func(o specs.LinuxThrottleDevice) bool { return o.LinuxBlockIODevice == d })
		*to = append(*to, specs.LinuxThrottleDevice{LinuxBlockIODevice: d, Rate: n})
	}
}

// throttles are the lists of rates, in the order of Entry.
func throttles(b *specs.LinuxBlockIO) []*[]specs.LinuxThrottleDevice {
	return []*[]specs.LinuxThrottleDevice{&b.ThrottleReadBpsDevice, &b.ThrottleWriteBpsDevice, &b.ThrottleReadIOPSDevice, &b.ThrottleWriteIOPSDevice}
}

// weight is nil for "".
func weight(text string) *uint16 {
	if text == "" {
		return nil
	}
	n, _ := quantity(text) // which was checked
	return new(uint16(n))
}
