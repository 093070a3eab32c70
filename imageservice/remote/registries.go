package remote

import (
	"maps"
	"sync"
	"time"

	"github.com/criserver/criserver/imageservice/remote/credentials"
)

// Config says how to speak to registries. Zero numbers mean the defaults beside them.
type Config struct {
	CertsDirs     []string      // hosts.toml directories, the first that knows a host wins
	UserAgent     string        // "criserver"
	MinThroughput int64         // bytes a second that a body must bring over a Window, 10 KiB
	Window        time.Duration // 30 s; a response must begin in one, too
	Attempts      int           // failures in a row of one blob without a MiB of progress, 5; each endpoint is asked once in any case
	Backoff       time.Duration // before the second attempt at an endpoint; doubles up to MaxBackoff, 250 ms
	MaxBackoff    time.Duration // also bounds how long a Retry-After is obeyed, 30 s
	Limit         Limit         // of each host that has none of its own
	Fallback      Fallback      // of each registry that has none of its own, FallbackAlways
	Hosts         map[string]Host
	Credentials   credentials.Config // for hosts of which the caller of a pull has none
	Lanes         *Lanes             // for large blobs, of all sessions; nil: one connection a blob
}

// Host is what is different for one host[:port].
type Host struct {
	Limit    *Limit   // nil: that of all
	Proxy    string   // a URL, or Direct; empty: what the environment says
	Fallback Fallback // of the registry, when it has mirrors; empty: that of all
}

// Fallback says after which failures at one endpoint of a registry the next is asked. Whatever it says, an endpoint that
// may answer better the next time is asked again before it is given up.
type Fallback string

// The policies.
const (
	FallbackAlways      Fallback = "always"      // after any
	FallbackUnavailable Fallback = "unavailable" // after no useful answer: no connection, 5xx, 429, too slow; not after 401, 403, 404, a wrong digest
	FallbackNever       Fallback = "never"       // after none: the first endpoint is the only one
)

func (c Config) withDefaults() Config {
	if c.UserAgent == "" {
		c.UserAgent = "criserver"
	}
	if c.MinThroughput == 0 {
		c.MinThroughput = 10 << 10
	}
	if c.Window == 0 {
		c.Window = 30 * time.Second
	}
	if c.Attempts == 0 {
		c.Attempts = 5
	}
	if c.Backoff == 0 {
		c.Backoff = 250 * time.Millisecond
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = 30 * time.Second
	}
	if c.Fallback == "" {
		c.Fallback = FallbackAlways
	}
	return c
}

// host is what is different for a host[:port], under whichever of its names.
func (c Config) host(name string) Host {
	if own, found := c.Hosts[name]; found {
		return own
	}
	for other, own := range c.Hosts {
		if credentials.SameRegistry(name, other) {
			return own
		}
	}
	return Host{}
}

func (c Config) limit(host string) Limit {
	if own := c.host(host).Limit; own != nil {
		return *own
	}
	return c.Limit
}

func (c Config) fallback(registry string) Fallback {
	if own := c.host(registry).Fallback; own != "" {
		return own
	}
	return c.Fallback
}

// maxGates is how many hosts are remembered that are not being asked: references name any number of them.
const maxGates = 1000

// Registries opens sessions, and keeps what they share: how much each host may be asked at a time.
type Registries struct {
	mu    sync.Mutex
	cfg   Config
	gates map[string]*gate // by host[:port]
	store *credentials.Store
}

// New connects to nothing.
func New(cfg Config) *Registries {
	return &Registries{cfg: cfg.withDefaults(), gates: map[string]*gate{}, store: credentials.New(cfg.Credentials)}
}

// Configure replaces the configuration for sessions that are opened from now on.
func (r *Registries) Configure(cfg Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cfg.Credentials != r.cfg.Credentials {
		r.store = credentials.New(cfg.Credentials)
	}
	r.cfg = cfg.withDefaults()
}

// gate returns the one of a host. A limit that has changed makes a new one, and so does one that was forgotten; earlier
// sessions keep theirs.
func (r *Registries) gate(cfg Config, host string) *gate {
	r.mu.Lock()
	defer r.mu.Unlock()
	limit := cfg.limit(host)
	if g := r.gates[host]; g != nil && g.limit == limit {
		return g
	}
	if len(r.gates) >= maxGates {
		maps.DeleteFunc(r.gates, func(_ string, g *gate) bool { return g.idle() })
	}
	g := newGate(limit)
	r.gates[host] = g
	return g
}

func (r *Registries) config() (Config, *credentials.Store) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cfg, r.store
}
