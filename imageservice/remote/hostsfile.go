package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxHostsFile bounds a hosts.toml file, in bytes.
const maxHostsFile = 1 << 20

// hostsEntry are the keys of an endpoint that have a meaning. What the values may be is for containerd's library to say.
type hostsEntry struct {
	Capabilities any `toml:"capabilities"`
	CA           any `toml:"ca"`
	Client       any `toml:"client"`
	SkipVerify   any `toml:"skip_verify"`
	Header       any `toml:"header"`
	OverridePath any `toml:"override_path"`
	DialTimeout  any `toml:"dial_timeout"`
}

// unknownKeys names those of a hosts.toml that the library would not look at, such as misspelt ones.
func unknownKeys(data []byte) error {
	var file struct {
		hostsEntry
		Server any                   `toml:"server"`
		Host   map[string]hostsEntry `toml:"host"`
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	err := dec.Decode(&file)
	var strict *toml.StrictMissingError
	if !errors.As(err, &strict) {
		return nil // what else is wrong the library tells
	}
	var keys []string
	for _, e := range strict.Errors {
		row, _ := e.Position()
		keys = append(keys, fmt.Sprintf("line %d: %s", row, strings.Join(e.Key(), ".")))
	}
	return fmt.Errorf("unknown keys (%s)", strings.Join(keys, "; "))
}

// CheckHosts reads every hosts.toml file below the directories and returns how many there are and what is wrong with them. A
// pull looks at one of them only, and does not mind unknown keys.
func CheckHosts(certsDirs []string) (files int, err error) {
	var faults []error
	for _, root := range certsDirs {
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, err)
		}
		for _, e := range entries {
			name := filepath.Join(root, e.Name(), "hosts.toml")
			data, err := readHosts(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			files++
			if err == nil {
				err = errors.Join(unknownKeys(data), tryHosts(filepath.Join(root, e.Name())))
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	return files, errors.Join(faults...)
}

func readHosts(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxHostsFile {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxHostsFile)
	}
	return os.ReadFile(name)
}

// tryHosts does with a directory what a pull does.
func tryHosts(dir string) error {
	s := &Session{registry: "registry.invalid", proxy: Config{}.proxies()}
	_, err := s.configure(func(string) (string, error) { return dir, nil })
	return err
}
