package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/control"
	"github.com/criserver/criserver/cri"
	"github.com/criserver/criserver/cri/streaming"
	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/cdi"
	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/selinux"
	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/layer"
)

// parts are what does not need the pods of before.
type parts struct {
	recorder *stage.Recorder
	seLinux  *selinux.Host // nil: not used
	runtime  *ociruntime.Runtime
	driver   runtimev1.CgroupDriver
	layers   *layer.Store
	images   *imageservice.Service
	network  *cni.Network
}

// assemble builds the parts from the bottom up and connects them. It starts nothing that outlives its error.
// This file is the one place that knows all parts.
func assemble(config Config, log *slog.Logger) (_ *node, err error) {
	n := &node{config: config, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close(context.Background()))
		}
	}()
	p := parts{recorder: stage.NewRecorder(flightSize)}
	if p.seLinux, err = n.assembleSELinux(); err != nil {
		return nil, err
	}
	if p.runtime, p.driver, err = n.assembleRuntime(p.seLinux); err != nil {
		return nil, err
	}
	if p.layers, p.images, err = n.assembleImages(p.recorder); err != nil {
		return nil, err
	}
	if err := n.assembleMetrics(p.images.Metrics()); err != nil {
		return nil, err
	}
	if p.network, err = n.assembleNetwork(); err != nil {
		return nil, err
	}
	settings, err := config.rpcSettings()
	if err != nil {
		return nil, err
	}
	n.cri = cri.New(cri.Config{
		Version:      versionString(),
		CgroupDriver: p.driver,
		Features:     cri.Features{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: userNamespaces(), MountOptions: true},
		Recorder:     p.recorder,
		Log:          log,
		Settings:     settings,
	})
	if err := n.measure(append(p.network.Metrics(), n.cri.Metrics()...)...); err != nil {
		return nil, err
	}
	n.start = func(ctx context.Context) error { return n.serveParts(ctx, &p) }
	return n, nil
}

// serveParts brings back pods and answers requests from then on.
func (n *node) serveParts(ctx context.Context, p *parts) error {
	streams, err := n.assembleStreaming(ctx) // before pods: a start that fails changes nothing
	if err != nil {
		return err
	}
	pods, err := n.assemblePods(ctx, p)
	if err != nil {
		return errors.Join(err, streams.Close(ctx))
	}
	streams.Serve(pods)
	n.closers = append(n.closers, streams.Close) // runs before that of pods: commands end with their streams
	if err := n.serveControl(control.Config{Images: p.images, Written: pods.Written, Containers: imagesOf(pods)}); err != nil {
		return err
	}
	n.cri.Start(cri.Services{Pods: pods, Containers: pods, Resources: pods, Events: pods, Stats: pods, Images: p.images,
		Streams: streams, Network: rpcNetwork{p.network}})
	n.preload(p.images)
	return nil
}

// assemblePods makes what only pods use, and brings back those of before.
func (n *node) assemblePods(ctx context.Context, p *parts) (*sandbox.Service, error) {
	appArmor, err := n.assembleAppArmor(ctx)
	if err != nil {
		return nil, err
	}
	devices, err := n.assembleCDI()
	if err != nil {
		return nil, err
	}
	plugins, err := n.assembleNRI()
	if err != nil {
		return nil, err
	}
	c := &n.config
	pods, err := sandbox.New(ctx, sandbox.Config{
		StateDir: c.State, RootDir: c.Root, Settings: c.podSettings(),
		Runtime: sandbox.Embedded(p.runtime), Images: p.images, Network: p.network, Roots: p.layers.Roots, Layers: p.layers,
		CDI: devices, AppArmor: appArmor, SELinux: p.seLinux, Categories: c.Security.Categories,
		StatsPeriod: time.Duration(c.Stats.Period), LayerPeriod: time.Duration(c.Stats.LayerPeriod),
		UpperDir: p.layers.UpperDir, Written: p.layers.Written, LayerDir: layersDir(*c), Plugins: plugins, Recorder: p.recorder, Log: n.log,
	})
	if err != nil {
		return nil, fmt.Errorf("bring back pods: %w", err)
	}
	if err := n.measure(pods.Metrics()); err != nil {
		pods.Close(ctx)
		return nil, err
	}
	n.apply = func(c *Config) error { return apply(c, pods, p.images, devices, n.log) }
	n.closers = append(n.closers, func(ctx context.Context) error {
		pods.Close(ctx)
		if len(pods.ListPods()) > 0 {
			return nil
		}
		return p.network.RemoveDefault() // a node without pods is left as it was found
	})
	return pods, nil
}

func (n *node) assembleCDI() (*cdi.Registry, error) {
	if len(n.config.CDI.SpecDirs) == 0 {
		return nil, nil
	}
	return cdi.New(n.config.CDI.SpecDirs)
}

// podSettings are what pods and containers go by and a reload may change.
func (c *Config) podSettings() sandbox.Settings {
	return sandbox.Settings{Handlers: c.handlers(), BlockIO: c.BlockIO, LineMax: c.Container.LogLineMax, RejectAbsent: c.Container.RejectAbsent}
}

// rpcSettings are what the RPCs go by and a reload may change.
func (c *Config) rpcSettings() (cri.Settings, error) {
	effective, err := json.Marshal(struct {
		*Config
		RootDir  string `json:"rootDir"` // as containerd names them, for tools that look for them
		StateDir string `json:"stateDir"`
	}{c, c.Root, c.State})
	if err != nil {
		return cri.Settings{}, fmt.Errorf("encode configuration: %w", err)
	}
	return cri.Settings{Handlers: c.shownHandlers(), Effective: effective, Slow: time.Duration(c.Log.Slow)}, nil
}

// pauseParent is the cgroup of all pauses with pause_cgroup = "runtime". It stays as long as one of them does.
const pauseParent = "/criserver"

func (n *node) assembleRuntime(seLinux *selinux.Host) (*ociruntime.Runtime, runtimev1.CgroupDriver, error) {
	driver := runtimev1.CgroupDriver_CGROUPFS
	binary, err := findPause(n.config.Pause)
	if err != nil {
		return nil, driver, err
	}
	hierarchies, err := cgroup.Detect()
	if err != nil {
		return nil, driver, err
	}
	n.closers = append(n.closers, func(context.Context) error { return hierarchies.Close() })
	c := ociruntime.Config{PauseBinary: binary, WorkDir: n.config.State, Cgroups: hierarchies, Log: n.log}
	if seLinux != nil {
		if c.SharedLabel, err = seLinux.File(selinux.Options{}); err != nil {
			return nil, driver, err
		}
	}
	if n.config.PauseCgroup == "runtime" {
		c.PauseParent = pauseParent
	}
	if n.config.CgroupDriver == "systemd" || n.config.CgroupDriver == "auto" && cgroup.HostDriver() == cgroup.Systemd {
		bus, err := cgroup.ConnectSystemd(context.Background())
		if err != nil {
			return nil, driver, fmt.Errorf("cgroup_driver: %w", err)
		}
		n.closers = append(n.closers, func(context.Context) error { bus.Close(); return nil })
		c.Systemd, driver = bus, runtimev1.CgroupDriver_SYSTEMD
	}
	runtime, err := ociruntime.New(c)
	if err != nil {
		return nil, driver, err
	}
	n.closers = append(n.closers, func(context.Context) error { return runtime.Close() })
	return runtime, driver, nil
}

func layersDir(config Config) string { return filepath.Join(config.Root, "layers") }

func (n *node) assembleImages(recorder *stage.Recorder) (*layer.Store, *imageservice.Service, error) {
	format := layer.Format(n.config.Images.Store)
	if format == "auto" {
		format = layer.Auto
	}
	layers, err := layer.Open(layer.Config{Root: layersDir(n.config), Format: format, WritableLimit: n.config.Container.WritableLimit, Log: n.log})
	if err != nil {
		return nil, nil, fmt.Errorf("open layers: %w", err)
	}
	n.closers = append(n.closers, func(context.Context) error { return layers.Close() })
	n.log.Info("layers", "store", layers.Describe())
	verification, err := n.config.Images.Verify.verification(n.log)
	if err != nil {
		return nil, nil, err
	}
	images, err := imageservice.New(imageservice.Config{
		Dir: filepath.Join(n.config.Root, "images"), Layers: layers, Pinned: n.config.Images.Pinned, Bounds: n.config.Images.bounds(),
		Registry: n.config.registries(), Verify: verification, Recorder: recorder, Log: n.log,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open images: %w", err)
	}
	n.closers = append(n.closers, func(context.Context) error { return images.Close() })
	syncing, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); layers.Run(syncing) }()
	n.closers = append(n.closers, func(ctx context.Context) error {
		stop()
		<-done
		return layers.Sync(ctx) // what was pulled last need not be pulled again after a power loss
	})
	return layers, images, nil
}

// imagesOf gives the image of each container, and those that are its volumes.
func imagesOf(pods *sandbox.Service) func() []string {
	return func() (ids []string) {
		for _, c := range pods.ListContainers() {
			ids = append(append(ids, c.ImageID), c.ImageVolumes...)
		}
		return ids
	}
}

// preload imports what lies in the preload directory, in the background: pods that are there do not wait for it.
func (n *node) preload(images *imageservice.Service) {
	dir := n.config.Images.Preload
	if dir == "" {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); images.Preload(ctx, dir) }()
	n.closers = append(n.closers, func(context.Context) error {
		stop()
		<-done
		return nil
	})
}

func (n *node) assembleStreaming(ctx context.Context) (*streaming.Server, error) {
	c := n.config.Streaming
	return streaming.Listen(ctx, streaming.Config{
		Address:     net.JoinHostPort(c.Address, strconv.Itoa(c.Port)),
		IdleTimeout: time.Duration(c.IdleTimeout), CreationTimeout: time.Duration(c.CreationTimeout),
		CertFile: c.TLSCert, KeyFile: c.TLSKey, Log: n.log,
	})
}

// networkConfig is what package cni is to be given.
func networkConfig(config Config, log *slog.Logger) (cni.Config, error) {
	c := cni.Config{ConfDir: config.CNI.ConfDir, BinDirs: pluginDirs(config.CNI), Template: config.CNI.ConfTemplate, Log: log}
	if config.Network.Default != "on" {
		return c, nil
	}
	c.Default = &cni.DefaultNetwork{Bridge: config.Network.Bridge, DataDir: filepath.Join(config.State, "addresses")}
	for _, s := range config.Network.Subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return c, fmt.Errorf("network.subnets: %w", err)
		}
		c.Default.Subnets = append(c.Default.Subnets, p)
	}
	return c, nil
}

func (n *node) assembleNetwork() (*cni.Network, error) {
	c, err := networkConfig(n.config, n.log)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.config.State, 0o711); err != nil {
		return nil, err
	}
	network, err := cni.New(c)
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	n.closers = append(n.closers, func(context.Context) error { return network.Close() })
	return network, nil
}
