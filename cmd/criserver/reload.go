package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/ociruntime/cdi"
	"github.com/criserver/criserver/sandbox"
)

// reloadable are the keys whose change needs no restart; a table stands for all that is in it.
var reloadable = []string{"blockio", "certs_dirs", "log.level", "log.slow", "container.absent_mount_sources_to_reject", "container.log_line_max", "cdi.spec_dirs", "images.pinned",
	"images.verify.policy", "images.verify.imports", "images.verify.bin_dir", "images.verify.max_verifiers", "images.verify.per_verifier_timeout", "handlers",
	"registries.credentials_file", "registries.credential_helper_timeout", "registries.min_throughput", "registries.throughput_window", "registries.attempts",
	"registries.max_wait", "registries.requests_per_second", "registries.requests_at_once", "registries.fallback", "registry_hosts"}

// reloads is what a node needs to take another configuration while it serves.
type reloads struct {
	wanted <-chan os.Signal
	load   func() (Config, error) // as at the start: defaults, file, flags
	level  *slog.LevelVar         // of the node's log
	apply  func(*Config) error    // to the running parts
}

// reload reads the configuration again and applies what it can. A configuration that is not right changes nothing, and is
// said to be so; nothing here is a reason to end.
func (n *node) reload() {
	err := notify(reloading())
	if wrong := n.reconfigure(); wrong != nil {
		n.log.Error("configuration not reloaded", "error", wrong)
	}
	if err = errors.Join(err, notify(daemon.SdNotifyReady)); err != nil {
		n.log.Warn("the service manager does not know of the reload", "error", err)
	}
}

func (n *node) reconfigure() error {
	next, err := n.load()
	if err != nil {
		return err
	}
	merged, changed, restart := merge(n.config, next)
	settings, err := merged.rpcSettings()
	if err != nil {
		return err
	}
	if err := n.level.UnmarshalText([]byte(merged.Log.Level)); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	n.config = merged
	n.cri.Configure(settings)
	if err := n.apply(&merged); err != nil {
		return fmt.Errorf("some parts go by the earlier one: %w", err)
	}
	n.log.Info("configuration reloaded", "changed", changed)
	for _, key := range restart {
		n.log.Warn("a changed key needs a restart of criserver", "key", key)
	}
	return nil
}

// apply gives the running parts what is theirs of the reloadable keys, each whatever the others say; devices may be nil.
func apply(c *Config, pods *sandbox.Service, images *imageservice.Service, devices *cdi.Registry, log *slog.Logger) error {
	pods.Configure(c.podSettings())
	images.SetRegistries(c.registries())
	verification, err := c.Images.Verify.verification(log)
	if err == nil {
		images.SetVerification(verification)
	}
	err = errors.Join(err, images.SetPinned(c.Images.Pinned))
	if devices != nil {
		err = errors.Join(err, devices.SetDirs(c.CDI.SpecDirs))
	}
	return err
}

// merge returns the configuration to go on with: now, with what next has for reloadable keys; the keys that changed so, and
// those that differ but need a restart.
func merge(now, next Config) (merged Config, changed, restart []string) {
	merged = now
	if (len(now.CDI.SpecDirs) == 0) != (len(next.CDI.SpecDirs) == 0) { // CDI is on or off for good
		next.CDI, restart = now.CDI, []string{"cdi.spec_dirs"}
	}
	ours, theirs := leaves("", reflect.ValueOf(&merged).Elem()), leaves("", reflect.ValueOf(&next).Elem())
	for i, leaf := range ours {
		switch {
		case reflect.DeepEqual(leaf.Interface(), theirs[i].Interface()):
		case slices.Contains(reloadable, leaf.key):
			leaf.Set(theirs[i].Value)
			changed = append(changed, leaf.key)
		default:
			restart = append(restart, leaf.key)
		}
	}
	return merged, changed, restart
}

// leaf is one key of a configuration, or a table of names that the file chooses.
type leaf struct {
	key string
	reflect.Value
}

func leaves(prefix string, v reflect.Value) []leaf {
	var all []leaf
	for i := range v.NumField() {
		name := prefix + v.Type().Field(i).Tag.Get("toml")
		if f := v.Field(i); f.Kind() == reflect.Struct {
			all = append(all, leaves(name+".", f)...)
		} else {
			all = append(all, leaf{name, f})
		}
	}
	return all
}

// reloading is what systemd wants to hear when a reload begins: the word and the time.
func reloading() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // the clock is always there
	return strings.Join([]string{daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000)}, "\n")
}
