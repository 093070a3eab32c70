package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/criserver/criserver/cri"
)

func TestMerge(t *testing.T) {
	now := defaultConfig()
	for _, test := range []struct {
		name             string
		change           func(*Config)
		changed, restart []string
	}{
		{name: "nothing", change: func(*Config) {}},
		{name: "all that can be reloaded", change: func(c *Config) {
			c.Container.RejectAbsent = []string{"/etc/hostname"}
			c.CertsDirs, c.Log.Level, c.Log.Slow, c.Container.LogLineMax = []string{"/x"}, "debug", Duration(time.Hour), 512
			c.CDI.SpecDirs, c.Images.Pinned = []string{"/cdi"}, []string{"pause"}
			h := defaultHandlerConfig()
			h.PidsLimit = 7
			c.Handlers = map[string]Handler{"default": h}
			c.Registries.Attempts, c.RegistryHosts = 9, map[string]RegistryHost{"a": {Proxy: "direct"}}
		}, changed: []string{"certs_dirs", "log.level", "log.slow", "container.absent_mount_sources_to_reject", "container.log_line_max", "cdi.spec_dirs", "images.pinned", "registries.attempts", "registry_hosts", "handlers"}},
		{name: "some of both", change: func(c *Config) { c.Root, c.Log.Level, c.Security.SELinux = "/y", "warn", "off" },
			changed: []string{"log.level"}, restart: []string{"root", "security.selinux"}},
		{name: "CDI switched off", change: func(c *Config) { c.CDI.SpecDirs = []string{} }, restart: []string{"cdi.spec_dirs"}},
	} {
		next := defaultConfig()
		test.change(&next)
		merged, changed, restart := merge(now, next)
		if diff := cmp.Diff(test.changed, changed) + cmp.Diff(test.restart, restart); diff != "" {
			t.Errorf("%s: keys (-want +got):\n%s", test.name, diff)
		}
		if len(restart) == 0 && !cmp.Equal(next, merged) {
			t.Errorf("%s: (-asked +merged):\n%s", test.name, cmp.Diff(next, merged))
		}
		if diff := cmp.Diff(defaultConfig(), now); diff != "" {
			t.Fatalf("%s: the present configuration has changed:\n%s", test.name, diff)
		}
	}
}

// Every key of the list exists, so that nobody relies on a misspelt one.
func TestReloadableKeysExist(t *testing.T) {
	all := strings.Join(keys(), "\n") + "\n"
	for _, key := range reloadable {
		if !strings.Contains(all, key+"\n") && !strings.Contains(all, key+".") {
			t.Errorf("there is no key %s", key)
		}
	}
}

func TestReload(t *testing.T) {
	var text bytes.Buffer
	var level slog.LevelVar
	now := defaultConfig()
	log, err := newLogger(&text, now.Log, &level)
	if err != nil {
		t.Fatal(err)
	}
	var next Config
	var wrong error
	var applied []string
	n := &node{config: now, log: log, cri: cri.New(cri.Config{Log: log}), reloads: reloads{level: &level,
		load:  func() (Config, error) { return next, wrong },
		apply: func(c *Config) error { applied = append(applied, c.Root+" "+c.Log.Level); return nil }}}

	wrong = errors.New("config.toml:1: unknown key")
	if n.reload(); len(applied) > 0 || !cmp.Equal(n.config, now) || !strings.Contains(text.String(), "unknown key") {
		t.Errorf("a wrong configuration: applied %q, log %s", applied, &text)
	}
	next, wrong = defaultConfig(), nil
	next.Root, next.Log.Level = "/elsewhere", "debug"
	n.reload()
	if want := []string{now.Root + " debug"}; !cmp.Equal(want, applied) {
		t.Errorf("applied %q instead of %q", applied, want)
	}
	if level.Level() != slog.LevelDebug || !strings.Contains(text.String(), "needs a restart of criserver\" key=root") {
		t.Errorf("level %s, log %s", level.Level(), &text)
	}
}
