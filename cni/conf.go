package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// maxConfFile bounds a configuration file: 1 MiB.
const maxConfFile = 1 << 20

// loadDir reads the first configuration in lexical order. It returns nil without an error if there is none; a file
// that comes first but cannot be used is an error and not skipped, because it may just be being written and the next
// one be the network of yesterday.
func loadDir(dir string) (list *libcni.NetworkConfigList, path string, err error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the configuration directory: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch filepath.Ext(path) {
		case ".conflist", ".conf", ".json":
		default:
			continue
		}
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			continue
		} else if errors.Is(err, fs.ErrNotExist) && entry.Type().IsRegular() {
			continue // removed after the directory was read
		}
		list, err := loadFile(path)
		if err != nil {
			return nil, path, fmt.Errorf("%s: %w", path, err)
		}
		return list, path, nil
	}
	return nil, "", nil
}

// loadFile reads one configuration list, or one plugin's configuration, which makes a list of one.
func loadFile(path string) (*libcni.NetworkConfigList, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	var list *libcni.NetworkConfigList
	if filepath.Ext(path) == ".conflist" {
		list, err = libcni.NetworkConfFromBytes(data)
		if err == nil && !list.LoadOnlyInlinedPlugins {
			list, err = inlinePlugins(list, filepath.Dir(path))
		}
	} else {
		list, err = listOfOne(data)
	}
	if err != nil {
		return nil, err
	}
	return list, checkList(list)
}

func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if st.Size() > maxConfFile {
		return nil, fmt.Errorf("%d bytes, more than %d", st.Size(), maxConfFile)
	}
	return os.ReadFile(path)
}

// listOfOne makes a list of the configuration of one plugin, whose name and version become the list's.
func listOfOne(data []byte) (*libcni.NetworkConfigList, error) {
	plugin, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%w (a list of plugins belongs into a .conflist file)", err)
	}
	list, err := json.Marshal(map[string]any{
		"name":       plugin.Network.Name,
		"cniVersion": plugin.Network.CNIVersion,
		"plugins":    []json.RawMessage{data},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(list)
}

// inlinePlugins adds the plugins that lie in files of <dir>/<network name> (CNI 1.1), so that the bytes of the list
// are all that a later DEL needs.
func inlinePlugins(list *libcni.NetworkConfigList, dir string) (*libcni.NetworkConfigList, error) {
	if strings.ContainsRune(list.Name, os.PathSeparator) {
		return list, nil // checkList refuses that name
	}
	more, err := libcni.NetworkPluginConfsFromFiles(dir, list.Name)
	if err != nil || len(more) == 0 {
		return list, err
	}
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	for _, p := range append(list.Plugins, more...) {
		plugins = append(plugins, p.Bytes)
	}
	if whole["plugins"], err = json.Marshal(plugins); err != nil {
		return nil, err
	}
	whole["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

// checkList finds what would fail only at the first pod.
func checkList(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("network name %q: %w", list.Name, err)
	}
	if len(list.Plugins) == 0 {
		return errors.New("no plugins")
	}
	if list.CNIVersion == "" { // what the specification says of a missing version
		list.CNIVersion = "0.1.0"
	}
	if newer, err := version.GreaterThan(list.CNIVersion, version.Current()); err != nil {
		return fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
	} else if newer {
		return fmt.Errorf("cniVersion %q: newer than %s, the newest that is known", list.CNIVersion, version.Current())
	}
	return nil
}

// signature changes when anything in dir that loadDir reads may have changed: the directory itself, its files and
// those of its folders. Symbolic links are followed.
func signature(dir string) string {
	var b strings.Builder
	describe(&b, dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return b.String()
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		describe(&b, path)
		if !entry.IsDir() {
			continue
		}
		inner, err := os.ReadDir(path)
		if err != nil {
			continue
		}
		for _, e := range inner {
			describe(&b, filepath.Join(path, e.Name()))
		}
	}
	return b.String()
}
