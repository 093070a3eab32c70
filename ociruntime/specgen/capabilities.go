package specgen

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are containerd's, and those of a handler that says nothing.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

const allCapabilities = "CAP_ALL"

// knownCapabilities maps every name to its number.
var knownCapabilities = func() map[string]int {
	known := make(map[string]int)
	for _, c := range capability.ListKnown() {
		known["CAP_"+strings.ToUpper(c.String())] = int(c)
	}
	return known
}()

// kernelCapabilities are all that this kernel has, in its order.
func (g *generator) kernelCapabilities() []string {
	var all []string
	for name, bit := range knownCapabilities {
		if bit <= g.Host.LastCap {
			all = append(all, name)
		}
	}
	slices.SortFunc(all, func(a, b string) int { return knownCapabilities[a] - knownCapabilities[b] })
	return all
}

// capabilities starts with those of the handler; ALL of either list comes before all single names, adding before dropping.
func (g *generator) capabilities() error {
	const field = "linux.security_context.capabilities."
	asked := g.security.GetCapabilities()
	add, err := capabilityNames(field+"add_capabilities", asked.GetAddCapabilities())
	if err != nil {
		return err
	}
	drop, err := capabilityNames(field+"drop_capabilities", asked.GetDropCapabilities())
	if err != nil {
		return err
	}
	ambient, err := capabilityNames(field+"add_ambient_capabilities", asked.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	kernel := g.kernelCapabilities()
	set := canonical(g.Handler.Capabilities)
	if g.privileged || slices.Contains(add, allCapabilities) || slices.Contains(set, allCapabilities) {
		set = slices.Clone(kernel)
	}
	if !g.privileged {
		if slices.Contains(drop, allCapabilities) {
			set = nil
		}
		set = append(set, add...)
		set = slices.DeleteFunc(set, func(name string) bool { return slices.Contains(drop, name) })
	}
	if slices.Contains(ambient, allCapabilities) {
		ambient = kernel
	}
	held := inOrder(kernel, append(set, ambient...))
	raised := inOrder(kernel, ambient)
	g.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: held, Effective: held, Permitted: held, Inheritable: raised, Ambient: raised}
	return nil
}

// inOrder returns those of all that are wanted, so that names that the kernel lacks go.
func inOrder(all, wanted []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !slices.Contains(wanted, name) })
}

// capabilityNames accepts any case, with or without CAP_.
func capabilityNames(field string, list []string) ([]string, error) {
	names := make([]string, 0, len(list))
	for i, name := range list {
		full := strings.ToUpper(name)
		if !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if _, ok := knownCapabilities[full]; !ok && full != allCapabilities {
			return nil, invalid(indexed(field, i), "%q is not a capability", name)
		}
		names = append(names, full)
	}
	return names, nil
}

// canonical are names that capabilityNames accepts, as it returns them.
func canonical(list []string) []string {
	names, _ := capabilityNames("", list) // Handler.Check has seen them
	return names
}
