package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/criserver/criserver/ociruntime/apparmor"
	"github.com/criserver/criserver/ociruntime/selinux"
	"github.com/criserver/criserver/ociruntime/specgen"
)

// unconfined, as apparmor_default, is no profile.
const unconfined = "unconfined"

// errNoAppArmor says that the kernel does not confine with AppArmor.
var errNoAppArmor = errors.New("the kernel has no AppArmor, or it is disabled")

// assembleAppArmor returns what containers get of AppArmor, nil if it is not used. What is not there is an error only
// where the configuration asks for it.
func (n *node) assembleAppArmor(ctx context.Context) (*specgen.AppArmor, error) {
	c := n.config.Security
	if c.AppArmor == "off" {
		return nil, nil
	}
	host, err := detectAppArmor()
	if err != nil {
		if c.AppArmor == "on" {
			return nil, fmt.Errorf("security.apparmor: %w", err)
		}
		n.log.Info("containers are not confined by AppArmor", "reason", err)
		return nil, nil
	}
	made := &specgen.AppArmor{Default: c.AppArmorDefault, Loaded: host.Loaded}
	if err := provide(ctx, host, c.AppArmorDefault, filepath.Join(n.config.State, "apparmor-loaded")); err != nil {
		if c.AppArmor == "on" {
			return nil, fmt.Errorf("security.apparmor_default: %w", err)
		}
		n.log.Error("containers that name no AppArmor profile are not confined by AppArmor", "error", err)
		made.Default = ""
	}
	if made.Default == unconfined {
		made.Default = ""
	}
	return made, nil
}

func detectAppArmor() (*apparmor.Host, error) {
	host, err := apparmor.Detect()
	if err == nil && host == nil {
		err = errNoAppArmor
	}
	return host, err
}

// provide sees to it that the kernel has the default profile.
func provide(ctx context.Context, host *apparmor.Host, profile, loaded string) error {
	switch profile {
	case unconfined:
		return nil
	case apparmor.DefaultProfile:
		return host.LoadDefault(ctx, loaded)
	}
	there, err := host.Loaded(profile)
	if err == nil && !there {
		err = fmt.Errorf("AppArmor profile %s is not loaded", profile)
	}
	return err
}

func checkAppArmor(c Config) finding {
	const cost = "containers are not confined by AppArmor"
	s := c.Security
	if s.AppArmor == "off" {
		return finding{found: "off in the configuration"}
	}
	without := degraded
	if s.AppArmor == "on" {
		without = missing
	}
	host, err := detectAppArmor()
	if errors.Is(err, errNoAppArmor) && without == degraded {
		return finding{found: "none: " + err.Error()} // most nodes have one security module
	}
	if err != nil {
		return finding{without, err.Error(), cost, "boot with apparmor=1, mount securityfs, or set security.apparmor to off"}
	}
	found := "default profile " + s.AppArmorDefault
	if s.AppArmorDefault == unconfined {
		return finding{found: "no default profile, as configured"}
	}
	there, err := host.Loaded(s.AppArmorDefault)
	if err == nil && !there && s.AppArmorDefault == apparmor.DefaultProfile {
		found += ", to be loaded"
		_, err = host.Parser()
	} else if err == nil && !there {
		err = errors.New("it is not loaded")
	}
	if err != nil {
		return finding{without, found + ": " + err.Error(), "containers that name no profile are not confined by AppArmor", "install the package apparmor, or load the profile"}
	}
	return finding{found: found}
}

// errNoSELinux says that the kernel has no SELinux that labels could be for.
var errNoSELinux = errors.New("the kernel has no SELinux, or it is disabled")

// assembleSELinux returns what the policy says of containers, nil if SELinux is not used.
func (n *node) assembleSELinux() (*selinux.Host, error) {
	c := n.config.Security
	if c.SELinux == "off" {
		return nil, nil
	}
	host, err := detectSELinux()
	switch {
	case err == nil:
		return host, nil
	case c.SELinux == "on":
		return nil, fmt.Errorf("security.selinux: %w", err)
	case errors.Is(err, errNoSELinux):
		n.log.Info("containers are not labelled", "reason", err)
	default:
		n.log.Error("containers are not labelled", "error", err)
	}
	return nil, nil
}

func detectSELinux() (*selinux.Host, error) {
	host, err := selinux.Detect()
	if err == nil && host == nil {
		err = errNoSELinux
	}
	return host, err
}

func checkSELinux(c Config) finding {
	if c.Security.SELinux == "off" {
		return finding{found: "off in the configuration"}
	}
	without := degraded
	if c.Security.SELinux == "on" {
		without = missing
	}
	host, err := detectSELinux()
	switch {
	case errors.Is(err, errNoSELinux) && without == degraded:
		return finding{found: "none: " + err.Error()} // most nodes have one security module
	case err != nil:
		return finding{without, err.Error(), "containers are not labelled", "install a policy for containers (container-selinux), or set security.selinux to off"}
	case host.Privileged() == "":
		return finding{degraded, "the policy has no " + selinux.PrivilegedType, "the policy decides what privileged containers may do", "install a policy for containers (container-selinux)"}
	}
	return finding{found: "containers are labelled"}
}
