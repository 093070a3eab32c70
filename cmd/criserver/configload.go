package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

// flags are the values of the command line. A flag that was not given changes nothing.
type flags struct {
	set  *pflag.FlagSet
	file string

	address, root, state, cniConfDir, logLevel, logFormat string
	certsDirs, cniBinDirs                                 []string
}

func (f *flags) register(set *pflag.FlagSet) {
	f.set = set
	set.StringVar(&f.file, "config", defaultFile, "configuration `FILE`; the default one may be absent")
	set.StringVar(&f.address, "address", "", "serve CRI on this `SOCKET`: unix:///path")
	set.StringVar(&f.root, "root", "", "durable state `DIR`")
	set.StringVar(&f.state, "state", "", "runtime state `DIR`")
	set.StringArrayVar(&f.certsDirs, "certs-dir", nil, "`DIR` of hosts.toml directories; may be repeated")
	set.StringVar(&f.cniConfDir, "cni-conf-dir", "", "`DIR` of CNI configuration")
	set.StringArrayVar(&f.cniBinDirs, "cni-bin-dir", nil, "`DIR` of CNI plugins; may be repeated")
	set.StringVar(&f.logLevel, "log-level", "", "`LEVEL` of messages: debug, info, warn, error")
	set.StringVar(&f.logFormat, "log-format", "", "`FORMAT` of messages: text, json")
}

// apply overlays the flags that were given.
func (f *flags) apply(c *Config) {
	given := func(name string) bool { return f.set.Changed(name) }
	for _, v := range []struct {
		name     string
		from, to *string
	}{
		{"address", &f.address, &c.Address},
		{"root", &f.root, &c.Root},
		{"state", &f.state, &c.State},
		{"cni-conf-dir", &f.cniConfDir, &c.CNI.ConfDir},
		{"log-level", &f.logLevel, &c.Log.Level},
		{"log-format", &f.logFormat, &c.Log.Format},
	} {
		if given(v.name) {
			*v.to = *v.from
		}
	}
	if given("certs-dir") {
		c.CertsDirs = f.certsDirs
	}
	if given("cni-bin-dir") {
		c.CNI.BinDirs = f.cniBinDirs
	}
}

// load returns the effective configuration. Its error names every fault of the file and of the values.
func (f *flags) load() (Config, error) {
	c := defaultConfig()
	text, err := os.ReadFile(f.file)
	absent := errors.Is(err, fs.ErrNotExist) && !f.set.Changed("config")
	if err != nil && !absent {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	faults := parse(f.file, text, &c)
	f.apply(&c)
	faults = append(faults, validate(&c)...)
	if len(faults) > 0 {
		return c, fmt.Errorf("configuration is not valid:\n  %s", strings.Join(faults, "\n  "))
	}
	c.settle()
	return c, nil
}

// parse reads text over c and returns what is wrong with it.
func parse(file string, text []byte, c *Config) []string {
	var named struct {
		Handlers map[string]any `toml:"handlers"`
	}
	if toml.Unmarshal(text, &named) == nil { // else the other one says why
		for name := range named.Handlers {
			c.Handlers[name] = defaultHandlerConfig()
		}
	}
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		var faults []string
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			faults = append(faults, fmt.Sprintf("%s:%d: unknown key %q%s", file, line, dotted(e.Key()), suggestion(e.Key())))
		}
		return faults
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		where := ""
		if key := dotted(wrong.Key()); key != "" {
			where = key + ": "
		}
		return []string{fmt.Sprintf("%s:%d: %s%s", file, line, where, strings.TrimPrefix(wrong.Error(), "toml: "))}
	default:
		return []string{fmt.Sprintf("%s: %v", file, err)}
	}
}

func dotted(key toml.Key) string { return strings.Join(key, ".") }

// keys returns the full names of all keys that hold a value, in the order of Config.
func keys() []string { return keysOf("", reflect.TypeFor[Config]()) }

func keysOf(prefix string, t reflect.Type) []string {
	var out []string
	for f := range t.Fields() {
		name := prefix + f.Tag.Get("toml")
		switch f.Type.Kind() {
		case reflect.Struct:
			out = append(out, keysOf(name+".", f.Type)...)
		case reflect.Map:
			out = append(out, keysOf(name+"."+anyName+".", f.Type.Elem())...)
		default:
			out = append(out, name)
		}
	}
	return out
}

// anyName stands in keys for a name that the file chooses.
const anyName = "NAME"

// suggestion is " (did you mean ...?)" for a key that is near an existing one, or whose last part exists elsewhere.
func suggestion(key toml.Key) string {
	last, chosen := key[len(key)-1], ""
	if len(key) > 2 && (key[0] == "handlers" || key[0] == "registry_hosts") {
		chosen, key = key[1], append(toml.Key{key[0], anyName}, key[2:]...)
	}
	given := dotted(key)
	best, bestDistance := "", 4 // more changes than three make another word
	for _, known := range keys() {
		d := distance(given, known)
		if known[strings.LastIndex(known, ".")+1:] == last {
			d = min(d, 1)
		}
		if d < bestDistance {
			best, bestDistance = known, d
		}
	}
	if best == "" {
		return ""
	}
	if chosen != "" {
		best = strings.Replace(best, anyName, chosen, 1)
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance is how many bytes must be inserted, removed or replaced to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
