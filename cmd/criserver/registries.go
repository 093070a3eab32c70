package main

import "github.com/criserver/criserver/imageservice/remote"

// registries is what the image service is told of registries.
func (c *Config) registries() remote.Config { return remote.Config{CertsDirs: c.CertsDirs} }
