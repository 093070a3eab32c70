package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
)

// GeneratedFile is the name of the configuration that UsePodCIDRs writes.
const GeneratedFile = "10-criserver-net.conflist"

// templateData is what a template may use; the names are those that containerd gave them.
type templateData struct {
	PodCIDR       string   // the first
	PodCIDRRanges []string // all
	Routes        []string // a default route for each address family
}

// UsePodCIDRs makes the operator's configuration of Config.Template and the node's pod CIDRs, which are not empty, and writes it
// into Config.ConfDir. It does nothing without a template, and where there is a configuration that somebody else has written.
// When it returns, the new configuration is in force. On error nothing has changed.
func (n *Network) UsePodCIDRs(cidrs []netip.Prefix) error {
	if n.conf.Template == "" {
		return nil
	}
	path := filepath.Join(n.conf.ConfDir, GeneratedFile)
	list, source, err := loadDir(n.conf.ConfDir)
	switch {
	case source != "" && source != path:
		return nil // also if it cannot be used: Status tells that
	case source == "" && err != nil:
		return err
	}
	data, err := n.generate(cidrs)
	if err != nil {
		return fmt.Errorf("network configuration template %s: %w", n.conf.Template, err)
	}
	if list != nil && bytes.Equal(list.Bytes, data) {
		return nil
	}
	if err := os.MkdirAll(n.conf.ConfDir, 0o755); err != nil {
		return err
	}
	if err := writeWhole(path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	n.reload()
	return nil
}

// generate executes the template. What could not be used is an error.
func (n *Network) generate(cidrs []netip.Prefix) ([]byte, error) {
	text, err := readBounded(n.conf.Template)
	if err != nil {
		return nil, err
	}
	t, err := template.New(filepath.Base(n.conf.Template)).Parse(string(text))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, dataOf(cidrs)); err != nil {
		return nil, err
	}
	if _, err := parseList(out.Bytes()); err != nil {
		return nil, fmt.Errorf("what it makes is no configuration: %w", err)
	}
	return out.Bytes(), nil
}

func dataOf(cidrs []netip.Prefix) templateData {
	var d templateData
	routes := map[bool]bool{}
	for _, c := range cidrs {
		d.PodCIDRRanges = append(d.PodCIDRRanges, c.String())
		routes[c.Addr().Is4()] = true
	}
	d.PodCIDR = d.PodCIDRRanges[0]
	if routes[true] {
		d.Routes = append(d.Routes, "0.0.0.0/0")
	}
	if routes[false] {
		d.Routes = append(d.Routes, "::/0")
	}
	return d
}

// writeWhole writes a file that whoever reads the directory sees whole or not at all.
func writeWhole(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	defer func() {
		if removed := os.Remove(f.Name()); err == nil && !errors.Is(removed, fs.ErrNotExist) {
			err = removed
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
