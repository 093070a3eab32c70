package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// errAbsent is how a probe says a conclusive no. Any other error means that it could not tell.
var errAbsent = errors.New("the kernel does not have it")

// absentIf turns an error that means no (one of errnos) into errAbsent, and leaves nil and any other as it is.
func absentIf(err error, errnos ...unix.Errno) error {
	for _, errno := range errnos {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", errAbsent, err)
		}
	}
	return err
}

// A Feature is something that a kernel may or may not be able to do.
type Feature struct {
	Name     string // "cgroup.kill"
	Since    string // first kernel version that has it: "5.14"
	Lost     string // what is lost without it
	Required bool   // criserver does not work without it

	probe func() error

	mu    sync.Mutex // held while probing: a second asker waits for the first one's answer
	known bool
	has   bool
}

var features []*Feature // filled while this package is initialised, then only read

// Probe makes a Feature. probe returns nil for yes, an error of absentIf for no, and any other error for "could not tell".
func Probe(name, since string, probe func() error) *Feature {
	f := &Feature{Name: name, Since: since, probe: probe}
	features = append(features, f)
	return f
}

func (f *Feature) required(lost string) *Feature {
	f.Required, f.Lost = true, lost
	return f
}

func (f *Feature) optional(lost string) *Feature {
	f.Lost = lost
	return f
}

// All lists every Feature: the required ones first, each part by name.
func All() []*Feature {
	return slices.SortedFunc(slices.Values(features), func(a, b *Feature) int {
		if a.Required != b.Required {
			if a.Required {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	})
}

// Check says whether the kernel has f. An error means that the probe could not tell; it will be asked again.
func (f *Feature) Check() (bool, error) {
	if !f.Required && refused(f.Name) {
		return false, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known {
		return f.has, nil
	}
	err := f.probe()
	if err != nil && !errors.Is(err, errAbsent) {
		return false, fmt.Errorf("probe %s: %w", f.Name, err)
	}
	f.known, f.has = true, err == nil
	return f.has, nil
}

// Has is Check for callers with a fallback: what cannot be told is taken as missing.
func (f *Feature) Has() bool {
	has, err := f.Check()
	return has && err == nil
}

// refusals counts, by name, how often an optional feature is refused at present; "all" is every one.
var refusals = struct {
	sync.RWMutex
	names map[string]int
}{names: fromEnvironment(os.Getenv("CRISERVER_REFUSE"))}

func fromEnvironment(list string) map[string]int {
	names := map[string]int{}
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names[name] = 1
		}
	}
	return names
}

func refused(name string) bool {
	refusals.RLock()
	defer refusals.RUnlock()
	return refusals.names[name] > 0 || refusals.names["all"] > 0
}

// Refuse makes optional features look absent until restore is called; without names it is all of them.
// It is for tests. Required features are not refused.
func Refuse(names ...string) (restore func()) {
	if len(names) == 0 {
		names = []string{"all"}
	}
	change := func(by int) {
		refusals.Lock()
		defer refusals.Unlock()
		for _, name := range names {
			refusals.names[name] += by
		}
	}
	change(1)
	return sync.OnceFunc(func() { change(-1) })
}
