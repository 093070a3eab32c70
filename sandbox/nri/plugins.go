package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	validator "github.com/containerd/nri/plugins/default-validator"
)

// What the peers have, and operators know.
const (
	DefaultSocket              = adaptation.DefaultSocketPath
	DefaultPluginDir           = adaptation.DefaultPluginPath
	DefaultPluginConfigDir     = adaptation.DefaultPluginConfigPath
	DefaultRegistrationTimeout = adaptation.DefaultPluginRegistrationTimeout
	DefaultRequestTimeout      = adaptation.DefaultPluginRequestTimeout
)

// Config is what New needs.
type Config struct {
	Version             string // of criserver, for plugins
	Socket              string // where plugins connect; "": they cannot
	PluginDir           string // plugins that are launched
	PluginConfigDir     string // configuration for those
	RegistrationTimeout time.Duration
	RequestTimeout      time.Duration
	Validator           *Validator // nil: none
	Required            bool       // Open fails if there is trouble; else it is logged, and there are no plugins
	Log                 *slog.Logger
}

// Validator refuses adjustments that a node does not want, see the rows of docs/configuration.md.
type Validator = validator.DefaultValidatorConfig

// Source knows the pods and containers that plugins are told of.
type Source interface {
	// Told returns what plugins know by now, for one that comes new.
	Told() ([]*Pod, []*Container)
	// Update is wanted by a plugin by itself. It returns those that failed, except those whose failure is to be ignored.
	Update(context.Context, []Update) (failed []Update)
}

// Plugins is all plugins of the node.
type Plugins struct {
	config     Config
	adaptation *adaptation.Adaptation
	source     Source
	count      atomic.Int64
	opened     chan struct{} // closed at the end of Open
	once       sync.Once     // guards that
}

// New returns the plugins of a node; there are none before Open. The library has one log and one pair of timeouts for
// the process: those of the last New.
func New(config Config) (*Plugins, error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	library.log.Store(config.Log)
	adaptation.SetPluginRegistrationTimeout(config.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(config.RequestTimeout)
	p := &Plugins{config: config, opened: make(chan struct{})}
	options := []adaptation.Option{adaptation.WithPluginPath(config.PluginDir), adaptation.WithPluginConfigPath(config.PluginConfigDir),
		adaptation.WithSocketPath(config.Socket), adaptation.WithDefaultValidator(config.Validator), adaptation.WithMetrics(counter{&p.count})}
	if config.Socket == "" {
		options = append(options, adaptation.WithDisabledExternalConnections())
	}
	var err error
	if p.adaptation, err = adaptation.New("criserver", config.Version, p.synchronize, p.unsolicited, options...); err != nil {
		return nil, fmt.Errorf("prepare NRI: %w", err)
	}
	return p, nil
}

// Open launches plugins and lets others connect. It is called once; events wait for it.
func (p *Plugins) Open(source Source) error {
	if p == nil {
		return nil
	}
	defer p.once.Do(func() { close(p.opened) })
	p.source = source
	err := p.claim()
	if err == nil {
		err = p.adaptation.Start()
	}
	switch {
	case err == nil:
		return nil
	case p.config.Required:
		err = fmt.Errorf("start NRI: %w", err)
	default:
		p.config.Log.Warn("NRI cannot be started, going on without plugins", "error", err)
		err = nil
	}
	p.adaptation.Stop()
	p.count.Store(0)
	return err
}

// claim looks whether the socket is another runtime's. The library would take it away.
func (p *Plugins) claim() error {
	if p.config.Socket == "" {
		return nil
	}
	conn, err := net.DialTimeout("unix", p.config.Socket, time.Second)
	if err == nil {
		return errors.Join(fmt.Errorf("NRI socket %s: another runtime serves it", p.config.Socket), conn.Close())
	}
	return nil
}

// Close ends the plugins that were launched and the socket. Others notice when criserver ends.
// It can be repeated, and also be called instead of Open.
func (p *Plugins) Close() {
	if p == nil {
		return
	}
	p.once.Do(func() { close(p.opened) })
	p.adaptation.Stop()
}

// Hold is a time in which no plugin is added.
type Hold struct {
	Any   bool // there is somebody to tell
	block *adaptation.PluginSyncBlock
}

// Hold begins one, which must be released.
func (p *Plugins) Hold() Hold {
	if p == nil {
		return Hold{}
	}
	<-p.opened
	block := p.adaptation.BlockPluginSync()
	return Hold{Any: p.count.Load() > 0, block: block}
}

// Release ends it.
func (h Hold) Release() { h.block.Unblock() }

// synchronize tells a new plugin of everything. What it wants changed then is done beside: it may need somebody who waits
// for a Hold.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := p.source.Told()
	updates, err := tell(ctx, toPods(pods), toContainers(containers))
	if err != nil {
		return err
	}
	if len(updates) > 0 {
		go p.source.Update(context.WithoutCancel(ctx), fromUpdates(updates))
	}
	return nil
}

// unsolicited is what a plugin wants changed by itself.
func (p *Plugins) unsolicited(ctx context.Context, updates []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	failed := p.source.Update(ctx, fromUpdates(updates))
	all := make([]*adaptation.ContainerUpdate, len(failed))
	for i, f := range failed {
		all[i] = f.asked
	}
	return all, nil
}

// counter is told how many plugins there are.
type counter struct{ *atomic.Int64 }

func (c counter) UpdatePluginCount(n int)                                                         { c.Store(int64(n)) }
func (counter) RecordPluginInvocation(string, string, error)                                      {}
func (counter) RecordPluginLatency(string, string, time.Duration)                                 {}
func (counter) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}

// logger brings the library's messages into criserver's log.
type logger struct{ log atomic.Pointer[slog.Logger] }

// library is its one logger.
var library = &logger{}

func init() { nrilog.Set(library) }

func (l *logger) say(ctx context.Context, level slog.Level, format string, args []any) {
	if log := l.log.Load(); log != nil && log.Enabled(ctx, level) {
		log.Log(ctx, level, "NRI: "+fmt.Sprintf(format, args...))
	}
}

func (l *logger) Debugf(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelDebug, format, args)
}

func (l *logger) Infof(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelInfo, format, args)
}

func (l *logger) Warnf(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelWarn, format, args)
}

func (l *logger) Errorf(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelError, format, args)
}
