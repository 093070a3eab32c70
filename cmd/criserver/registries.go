package main

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/imageservice/remote/credentials"
)

// Registries configures how registries are spoken to.
type Registries struct {
	CredentialsFile   string   `toml:"credentials_file" comment:"Credentials for hosts of which a request has none, in the form of docker's config.json, with credential helpers. Read again when it changes; it may be absent. Empty: none."`
	HelperTimeout     Duration `toml:"credential_helper_timeout" comment:"How long a credential helper may take."`
	MinThroughput     int64    `toml:"min_throughput" comment:"Bytes a second that a registry must send over throughput_window; a slower one is left for another endpoint."`
	Window            Duration `toml:"throughput_window" comment:"Time over which that is measured, and in which an answer must begin."`
	Attempts          int      `toml:"attempts" comment:"Failures in a row, without a MiB of progress between, after which a pull fails."`
	MaxWait           Duration `toml:"max_wait" comment:"Longest wait between two attempts; a registry that wants to be left alone longer (Retry-After) is given up."`
	RequestsPerSecond float64  `toml:"requests_per_second" comment:"Requests that each host is sent in a second, over all pulls. 0: no limit."`
	RequestsAtOnce    int      `toml:"requests_at_once" comment:"Requests that each host is sent at a time, over all pulls. 0: no limit."`
	Fallback          string   `toml:"fallback" comment:"After which failures at a mirror the next endpoint is asked. always: after any; unavailable: if it cannot be reached, answers 5xx or 429, or is too slow; never."`
}

// RegistryHost is what is different for one host, as endpoints name it, with its port.
type RegistryHost struct {
	RequestsPerSecond *float64 `toml:"requests_per_second" comment:"In the place of that of all."`
	RequestsAtOnce    *int     `toml:"requests_at_once" comment:"In the place of that of all."`
	Proxy             string   `toml:"proxy" comment:"URL of its proxy, or direct. Empty: what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say."`
	Fallback          string   `toml:"fallback" comment:"In the place of that of all, for the registry of this name. Empty: that."`
}

func defaultRegistries() Registries {
	return Registries{
		CredentialsFile: "/etc/criserver/auth.json", HelperTimeout: Duration(15 * time.Second),
		MinThroughput: 10 << 10, Window: Duration(30 * time.Second), Attempts: 5, MaxWait: Duration(30 * time.Second),
		Fallback: string(remote.FallbackAlways),
	}
}

// registries is what the image service is told of registries.
func (c *Config) registries() remote.Config {
	r := c.Registries
	all := remote.Limit{PerSecond: r.RequestsPerSecond, AtOnce: r.RequestsAtOnce}
	hosts := map[string]remote.Host{}
	for name, h := range c.RegistryHosts {
		host := remote.Host{Proxy: h.Proxy, Fallback: remote.Fallback(h.Fallback)}
		if h.RequestsPerSecond != nil || h.RequestsAtOnce != nil {
			limit := all
			if h.RequestsPerSecond != nil {
				limit.PerSecond = *h.RequestsPerSecond
			}
			if h.RequestsAtOnce != nil {
				limit.AtOnce = *h.RequestsAtOnce
			}
			host.Limit = &limit
		}
		hosts[name] = host
	}
	return remote.Config{
		CertsDirs: c.CertsDirs, MinThroughput: r.MinThroughput, Window: time.Duration(r.Window), Attempts: r.Attempts, MaxBackoff: time.Duration(r.MaxWait),
		Limit: all, Fallback: remote.Fallback(r.Fallback), Hosts: hosts,
		Credentials: credentials.Config{File: r.CredentialsFile, HelperTimeout: time.Duration(r.HelperTimeout)},
	}
}

func (r *Registries) check(f *faults) {
	f.absoluteIfAny("registries.credentials_file", r.CredentialsFile)
	for _, d := range []struct {
		key   string
		value Duration
	}{{"credential_helper_timeout", r.HelperTimeout}, {"throughput_window", r.Window}, {"max_wait", r.MaxWait}} {
		if d.value < Duration(time.Second) || d.value > Duration(time.Hour) {
			f.add("registries."+d.key, "%s is not between 1s and 1h", time.Duration(d.value))
		}
	}
	if r.HelperTimeout >= r.Window {
		f.add("registries.credential_helper_timeout", "must be shorter than registries.throughput_window, in which an answer must begin")
	}
	if r.MinThroughput < 1 {
		f.add("registries.min_throughput", "must be positive: a pull from a registry that is silent would never end")
	}
	f.between("registries.attempts", r.Attempts, 1, 100)
	f.requests("registries.", r.RequestsPerSecond, r.RequestsAtOnce)
	f.fallback("registries.", r.Fallback)
}

func checkRegistryHosts(hosts map[string]RegistryHost, f *faults) {
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		h, prefix := hosts[name], "registry_hosts."+name+"."
		if name == "" || strings.ContainsAny(name, "/ \t\n@") {
			f.add("registry_hosts", "%q is not a host or host:port", name)
		}
		perSecond, atOnce := 0.0, 0
		if h.RequestsPerSecond != nil {
			perSecond = *h.RequestsPerSecond
		}
		if h.RequestsAtOnce != nil {
			atOnce = *h.RequestsAtOnce
		}
		f.requests(prefix, perSecond, atOnce)
		if h.Fallback != "" {
			f.fallback(prefix, h.Fallback)
		}
		if h.Proxy != "" {
			if _, err := remote.ParseProxy(h.Proxy); err != nil {
				f.add(prefix+"proxy", "%v", err)
			}
		}
	}
}

func (f *faults) requests(prefix string, perSecond float64, atOnce int) {
	if !(perSecond >= 0 && perSecond <= 1e6) { // also if it is no number
		f.add(prefix+"requests_per_second", "%v is not between 0 and 1000000", perSecond)
	}
	if atOnce < 0 {
		f.add(prefix+"requests_at_once", "must not be negative")
	}
}

func (f *faults) fallback(prefix, value string) {
	f.oneOf(prefix+"fallback", value, string(remote.FallbackAlways), string(remote.FallbackUnavailable), string(remote.FallbackNever))
}
