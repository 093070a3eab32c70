package specgen

import (
	"errors"
	"fmt"
	"path"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/seccomp"
)

const securityField = "linux.security_context."

// confinement adds labels, seccomp, AppArmor, masked and read-only paths. A privileged container has only labels.
func (g *generator) confinement() error {
	g.spec.Process.SelinuxLabel, g.spec.Linux.MountLabel = g.Labels.Process, g.Labels.Mount
	if g.privileged {
		return nil
	}
	if err := g.paths(); err != nil {
		return err
	}
	if err := g.seccomp(); err != nil {
		return err
	}
	return g.apparmor()
}

func (g *generator) paths() error {
	g.spec.Linux.MaskedPaths = g.security.GetMaskedPaths()
	g.spec.Linux.ReadonlyPaths = g.security.GetReadonlyPaths()
	return errors.Join(absolute("masked_paths", g.spec.Linux.MaskedPaths), absolute("readonly_paths", g.spec.Linux.ReadonlyPaths))
}

func absolute(field string, list []string) error {
	for i, p := range list {
		if !isAbsolute(p) {
			return invalid(indexed(securityField+field, i), "%q is not an absolute path", p)
		}
	}
	return nil
}

// isAbsolute accepts what a system call takes for an absolute path.
func isAbsolute(p string) bool { return path.IsAbs(p) && !strings.ContainsRune(p, 0) }

// Names of profiles in the deprecated fields.
const (
	runtimeDefault  = "runtime/default"
	dockerDefault   = "docker/default"
	unconfined      = "unconfined"
	localhostPrefix = "localhost/"
)

// profile returns a profile whichever field has it, the name of that field, and of the one that names a Localhost profile;
// nil if none has.
func profile(p *runtimev1.SecurityProfile, field, deprecated, deprecatedField string) (_ *runtimev1.SecurityProfile, name, ref string, err error) {
	local, isLocal := strings.CutPrefix(deprecated, localhostPrefix)
	switch {
	case p != nil:
		return p, securityField + field, securityField + field + ".localhost_ref", nil
	case deprecated == "":
		return nil, "", "", nil
	case deprecated == runtimeDefault || deprecated == dockerDefault:
		p = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}
	case deprecated == unconfined:
		p = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
	case isLocal:
		p = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: local}
	default:
		return nil, "", "", invalid(securityField+deprecatedField, "unknown value %q", deprecated)
	}
	return p, securityField + deprecatedField, securityField + deprecatedField, nil
}

// seccomp does what the handler says if the request says nothing.
func (g *generator) seccomp() error {
	//lint:ignore SA1019 old clients set it
	p, field, ref, err := profile(g.security.GetSeccomp(), "seccomp", g.security.GetSeccompProfilePath(), "seccomp_profile_path")
	if err != nil {
		return err
	}
	if p == nil {
		return g.seccompUnset()
	}
	switch kind := p.GetProfileType(); kind {
	case runtimev1.SecurityProfile_Unconfined:
		return nil
	case runtimev1.SecurityProfile_RuntimeDefault:
		return g.seccompDefault()
	case runtimev1.SecurityProfile_Localhost:
		if g.spec.Linux.Seccomp, err = loadSeccomp(p.GetLocalhostRef(), g.spec.Process.Capabilities.Bounding...); err != nil {
			return because(ref, err)
		}
		return nil
	default:
		return invalid(field+".profile_type", "unknown value %d", kind)
	}
}

// seccompUnset is for a request without a profile.
func (g *generator) seccompUnset() (err error) {
	file, isLocal := strings.CutPrefix(g.Handler.SeccompUnset, localhostPrefix)
	switch {
	case isLocal:
		if g.spec.Linux.Seccomp, err = loadSeccomp(file, g.spec.Process.Capabilities.Bounding...); err != nil {
			return fmt.Errorf("seccomp profile of the runtime handler: %w", err)
		}
		return nil
	case g.Handler.SeccompUnset == runtimeDefault:
		return g.seccompDefault()
	}
	return nil
}

// seccompDefault is the profile of RuntimeDefault.
func (g *generator) seccompDefault() (err error) {
	caps := g.spec.Process.Capabilities.Bounding
	if g.Handler.SeccompDefault == "" {
		g.spec.Linux.Seccomp = seccomp.DefaultProfile(caps)
		return nil
	}
	if g.spec.Linux.Seccomp, err = loadSeccomp(g.Handler.SeccompDefault, caps...); err != nil {
		return fmt.Errorf("default seccomp profile of the runtime handler: %w", err)
	}
	return nil
}

// apparmor: the default profile is for hosts that have AppArmor; one that is asked for by name must be there.
func (g *generator) apparmor() error {
	//lint:ignore SA1019 old clients set it
	p, field, ref, err := profile(g.security.GetApparmor(), "apparmor", g.security.GetApparmorProfile(), "apparmor_profile")
	if err != nil {
		return err
	}
	host := g.Host.AppArmor
	switch kind := p.GetProfileType(); {
	case p != nil && kind == runtimev1.SecurityProfile_Unconfined:
		return nil
	case kind == runtimev1.SecurityProfile_RuntimeDefault: // also if nothing is said
		if host != nil {
			g.spec.Process.ApparmorProfile = host.Default
		}
		return nil
	case kind != runtimev1.SecurityProfile_Localhost:
		return invalid(field+".profile_type", "unknown value %d", kind)
	}
	name := strings.TrimPrefix(p.GetLocalhostRef(), localhostPrefix)
	switch {
	case name == "" || strings.ContainsAny(name, "\n\x00"):
		return invalid(ref, "%q is not the name of a profile", name)
	case host == nil:
		return invalid(field, "profile %q is asked for, but this host has no AppArmor", name)
	}
	loaded, err := host.Loaded(name)
	switch {
	case err != nil:
		return err
	case !loaded:
		return invalid(field, "profile %q is not loaded", name)
	}
	g.spec.Process.ApparmorProfile = name
	return nil
}

// namespacesOf returns the namespace options of the container, or of the pod if it has none.
func (g *generator) namespacesOf() *runtimev1.NamespaceOption {
	if o := g.security.GetNamespaceOptions(); o != nil {
		return o
	}
	return podNamespaces(g.Pod)
}

func podNamespaces(pod *runtimev1.PodSandboxConfig) *runtimev1.NamespaceOption {
	return pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
}
