package cni

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sync/singleflight"
)

// ErrNotReady says that there is no network a pod could be attached to; its text tells why.
var ErrNotReady = errors.New("network not ready")

// Config is what New needs. Zero durations mean the defaults.
type Config struct {
	ConfDir string   // the operator's configurations; need not exist
	BinDirs []string // of plugins, the first that has one wins

	// Template makes the operator's configuration of the node's pod CIDRs, see UsePodCIDRs; empty: there is none.
	Template string

	// Default is the network of a machine without any configuration; nil: such a machine is not ready.
	Default *DefaultNetwork

	// PreferIPv6 puts IPv6 addresses first in results. Otherwise IPv4 comes first.
	PreferIPv6 bool

	PluginTimeout time.Duration // of one call of one plugin; 60 s
	UndoTimeout   time.Duration // of the DEL after a failed ADD, all plugins together; 60 s
	Rescan        time.Duration // between two looks at ConfDir without an event; 5 s

	Log *slog.Logger // changes of the configuration; nil: none
}

// Network attaches pods to the network that is configured at the time. Close ends its watching.
type Network struct {
	conf Config
	exec *pluginExec

	current atomic.Pointer[snapshot] // replaced whole, by the watcher, by New and by Plan under load
	load    sync.Mutex               // one reading of ConfDir at a time; held for no plugin
	looks   singleflight.Group       // see ensureDefault
	shared  sync.Mutex               // what all pods of the default network share is made or removed by one at a time
	watch   *watcher
	probe   prober
	meter   meter
}

// snapshot is one reading of the configuration directory. It is never changed.
type snapshot struct {
	list      *libcni.NetworkConfigList // nil: none
	source    string                    // path of its file; empty: the embedded default network
	problem   string                    // list is nil: why. Else: why a newer configuration is not in force, or empty
	missing   string                    // a plugin that the list names and that is not there, as a sentence
	signature string
	emptyAt   time.Time // when the operator's configuration was first found gone, while it still is in force
}

// New reads the configuration and begins to watch it.
func New(conf Config) (*Network, error) {
	n, err := open(conf)
	if err != nil {
		return nil, err
	}
	n.watch, err = startWatcher(n.conf.ConfDir, n.conf.Rescan, n.reload)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", n.conf.ConfDir, err)
	}
	return n, nil
}

// Look tells what New would begin with. It asks no plugin for its status.
func Look(conf Config) (Status, error) {
	n, err := open(conf)
	if err != nil {
		return Status{}, err
	}
	return n.current.Load().status(), nil
}

// open reads the configuration once.
func open(conf Config) (*Network, error) {
	if conf.ConfDir == "" || len(conf.BinDirs) == 0 {
		return nil, errors.New("configure the network: a configuration directory and a plugin directory are needed")
	}
	if conf.Default != nil {
		d := *conf.Default
		if err := d.complete(); err != nil {
			return nil, fmt.Errorf("configure the default network: %w", err)
		}
		conf.Default = &d
	}
	setDefault(&conf.PluginTimeout, time.Minute)
	setDefault(&conf.UndoTimeout, time.Minute)
	setDefault(&conf.Rescan, 5*time.Second)
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	n := &Network{conf: conf, exec: &pluginExec{bound: conf.PluginTimeout}, meter: newMeter()}
	n.reload()
	return n, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// Close stops watching and waits until nothing of the Network runs by itself any more. Calls in progress go on.
func (n *Network) Close() error {
	err := n.watch.close()
	n.probe.close()
	return err
}

// settle is how long an emptied directory must stay empty before its last configuration is given up, because many
// installers replace a file or a directory by removing it first.
const settle = time.Second

// reload looks at the configuration directory and publishes what is in force now. It returns when to look again
// although nothing may happen, or 0 for the usual time.
func (n *Network) reload() time.Duration {
	n.load.Lock()
	defer n.load.Unlock()
	last := n.current.Load()
	sign := signature(n.conf.ConfDir)
	if last != nil && last.signature == sign && last.emptyAt.IsZero() {
		if missing := n.missingPlugin(last.list); missing != last.missing {
			next := *last
			next.missing = missing
			n.publish(&next, last)
		}
		return 0
	}
	next := n.read(last)
	next.signature = sign
	next.missing = n.missingPlugin(next.list)
	n.publish(next, last)
	if !next.emptyAt.IsZero() {
		return settle
	}
	return 0
}

// read decides what follows last, which may be nil.
func (n *Network) read(last *snapshot) *snapshot {
	list, path, err := loadDir(n.conf.ConfDir)
	operators := last != nil && last.list != nil && last.source != ""
	switch {
	case err != nil && operators:
		return &snapshot{list: last.list, source: last.source,
			problem: fmt.Sprintf("the last good configuration, %s, stays in force: %v", last.source, err)}
	case err != nil: // the operator wants a network of his own: the default one would be the wrong one
		return &snapshot{problem: err.Error()}
	case list != nil:
		return &snapshot{list: list, source: path}
	case operators && last.emptyAt.IsZero():
		next := *last
		next.emptyAt = time.Now()
		return &next
	case operators && time.Since(last.emptyAt) < settle:
		next := *last
		return &next
	case n.conf.Default != nil:
		return n.conf.Default.snapshot()
	}
	return &snapshot{problem: fmt.Sprintf("no network configuration in %s", n.conf.ConfDir)}
}

func (n *Network) missingPlugin(list *libcni.NetworkConfigList) string {
	if list == nil {
		return ""
	}
	for _, p := range list.Plugins {
		for _, name := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if _, err := findPlugin(name, n.conf.BinDirs); err != nil && name != "" {
				return err.Error()
			}
		}
	}
	return ""
}

// publish makes next current. The caller holds load.
func (n *Network) publish(next, last *snapshot) {
	n.current.Store(next)
	if last != nil && last.problem == next.problem && last.missing == next.missing && last.source == next.source &&
		string(confBytes(last)) == string(confBytes(next)) {
		return
	}
	n.probe.forget()
	if next.list == nil {
		n.conf.Log.Warn("no network for pods", "reason", next.problem)
		return
	}
	log := n.conf.Log.With("network", next.list.Name, "file", cmp.Or(next.source, "none, it is the embedded one"))
	if trouble := cmp.Or(next.missing, next.problem); trouble != "" {
		log.Warn("network configuration", "trouble", trouble)
		return
	}
	log.Info("network configuration")
}

func confBytes(s *snapshot) []byte {
	if s.list == nil {
		return nil
	}
	return s.list.Bytes
}

// Plan decides how a pod will be attached and changes nothing. It fails with ErrNotReady if there is no network, and
// with an error that names the field if the attachment asks for the impossible.
func (n *Network) Plan(a Attachment) (Debt, error) {
	if err := a.check(); err != nil {
		return Debt{}, fmt.Errorf("plan the network: %w", err)
	}
	s := n.current.Load()
	if s.list == nil {
		n.reload() // it may have come just now
		s = n.current.Load()
	}
	if s.list == nil {
		return Debt{}, fmt.Errorf("%w: %s", ErrNotReady, s.problem)
	}
	conf := s.list.Bytes
	if s.source == "" {
		conf = n.conf.Default.confList(&a)
	}
	return Debt{Attachment: a, ConfList: conf, Since: time.Now()}, nil
}
