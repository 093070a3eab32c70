package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// DefaultDirs are where vendors put their files; in the later one is what programs of this boot have written.
func DefaultDirs() []string { return slices.Clone(cdi.DefaultSpecDirs) }

// Registry is what is described in some directories.
type Registry struct {
	cache *cdi.Cache
}

// New prepares to read dirs, a later of which wins. They need not exist.
func New(dirs []string) (*Registry, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("read CDI devices: %w", err)
	}
	return &Registry{cache}, nil
}

// SetDirs makes the registry read other directories from now on.
func (r *Registry) SetDirs(dirs []string) error {
	if err := r.cache.Configure(cdi.WithSpecDirs(dirs...)); err != nil {
		return fmt.Errorf("read CDI devices: %w", err)
	}
	return nil
}

// Inject changes spec as the devices say, which are full names such as "vendor.com/class=name". On error spec is of no use.
func (r *Registry) Inject(spec *specs.Spec, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	_ = r.cache.Refresh() // what cannot be read matters if it is asked for: see broken
	unknown, err := r.cache.InjectDevices(spec, devices...)
	if len(unknown) > 0 {
		return fmt.Errorf("no CDI device %s in %s%s", strings.Join(unknown, ", "), strings.Join(r.cache.GetSpecDirectories(), ", "), r.broken())
	}
	if err != nil {
		return fmt.Errorf("CDI devices %s: %w", strings.Join(devices, ", "), err)
	}
	return nil
}

// broken says which files cannot be used, ready to be appended to an error.
func (r *Registry) broken() string {
	faults := r.cache.GetErrors()
	var text strings.Builder
	for _, path := range slices.Sorted(maps.Keys(faults)) {
		fmt.Fprintf(&text, "; %s: %v", path, errors.Join(faults[path]...))
	}
	return text.String()
}

// Annotated returns the devices that annotations "cdi.k8s.io/..." ask for, in the order of the keys.
func Annotated(annotations map[string]string) ([]string, error) {
	var devices []string
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(annotations[key], ",") {
			if !parser.IsQualifiedName(name) {
				return nil, fmt.Errorf("annotation %s: %q is not the name of a CDI device", key, name)
			}
			devices = append(devices, name)
		}
	}
	return devices, nil
}

// Distinct joins lists of devices; of those that are named twice the first stays.
func Distinct(lists ...[]string) []string {
	var all []string
	for _, name := range slices.Concat(lists...) {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}
