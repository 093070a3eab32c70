package main

import (
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/criserver/criserver/sandbox/nri"
)

// NRI configures plugins of the node resource interface.
type NRI struct {
	Enable              string       `toml:"enable" comment:"auto, on or off. auto: without plugins where NRI cannot be started; on: criserver does not start then."`
	SocketPath          string       `toml:"socket_path" comment:"Where plugins connect. Empty: /var/run/nri/nri.sock, or nri.sock in state if root is not the default."`
	PluginPath          string       `toml:"plugin_path" comment:"Directory of plugins that criserver launches, named NN-name."`
	PluginConfigPath    string       `toml:"plugin_config_path" comment:"Directory of their configuration, NN-name.conf or name.conf."`
	RegistrationTimeout Duration     `toml:"plugin_registration_timeout" comment:"How long a plugin may take to register."`
	RequestTimeout      Duration     `toml:"plugin_request_timeout" comment:"How long a plugin may take to answer. One that takes longer is disconnected."`
	DisableConnections  bool         `toml:"disable_connections" comment:"Only plugins that criserver launches."`
	DefaultValidator    NRIValidator `toml:"default_validator" comment:"Refuses containers whose adjustments this node does not want."`
}

// NRIValidator configures NRI's own validator.
type NRIValidator struct {
	Enable                                bool     `toml:"enable" comment:"Validate. criserver does not start if it cannot."`
	RejectOCIHookAdjustment               bool     `toml:"reject_oci_hook_adjustment" comment:"No plugin adds OCI hooks."`
	RejectRuntimeDefaultSeccompAdjustment bool     `toml:"reject_runtime_default_seccomp_adjustment" comment:"No plugin changes the runtime's default seccomp profile."`
	RejectUnconfinedSeccompAdjustment     bool     `toml:"reject_unconfined_seccomp_adjustment" comment:"No plugin adds a seccomp profile to an unconfined container."`
	RejectCustomSeccompAdjustment         bool     `toml:"reject_custom_seccomp_adjustment" comment:"No plugin changes a Localhost seccomp profile."`
	RejectNamespaceAdjustment             bool     `toml:"reject_namespace_adjustment" comment:"No plugin changes namespaces."`
	RejectSysctlAdjustment                bool     `toml:"reject_sysctl_adjustment" comment:"No plugin changes sysctls."`
	RequiredPlugins                       []string `toml:"required_plugins" comment:"Without these no container is created."`
	TolerateMissingAnnotation             string   `toml:"tolerate_missing_plugins_annotation" comment:"Annotation of pods that may do without them, with the value true."`
}

func defaultNRI() NRI {
	return NRI{Enable: "auto", PluginPath: nri.DefaultPluginDir, PluginConfigPath: nri.DefaultPluginConfigDir,
		RegistrationTimeout: Duration(nri.DefaultRegistrationTimeout), RequestTimeout: Duration(nri.DefaultRequestTimeout),
		DefaultValidator: NRIValidator{RequiredPlugins: []string{}}}
}

func (c *NRI) check(f *faults) {
	f.oneOf("nri.enable", c.Enable, "auto", "on", "off")
	f.absoluteIfAny("nri.socket_path", c.SocketPath)
	f.socketPath("nri.socket_path", c.SocketPath)
	f.absolute("nri.plugin_path", c.PluginPath)
	f.absolute("nri.plugin_config_path", c.PluginConfigPath)
	f.positive("nri.plugin_registration_timeout", c.RegistrationTimeout)
	f.positive("nri.plugin_request_timeout", c.RequestTimeout)
}

// assembleNRI returns nil if NRI is off.
func (n *node) assembleNRI() (*nri.Plugins, error) {
	c := n.config.NRI
	if c.Enable == "off" {
		return nil, nil
	}
	config := nri.Config{Version: versionString(), Socket: c.SocketPath, PluginDir: c.PluginPath, PluginConfigDir: c.PluginConfigPath,
		RegistrationTimeout: time.Duration(c.RegistrationTimeout), RequestTimeout: time.Duration(c.RequestTimeout),
		Required: c.Enable == "on" || c.DefaultValidator.Enable, Log: n.log}
	if c.DisableConnections {
		config.Socket = ""
	}
	if c.DefaultValidator.Enable {
		v := nri.Validator(c.DefaultValidator)
		config.Validator = &v
	}
	logrus.SetOutput(io.Discard) // ttrpc's messages of plugins that vanish; NRI says it too
	return nri.New(config)
}
