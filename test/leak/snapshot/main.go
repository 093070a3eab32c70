// Command snapshot remembers the state of the system in a file and compares with it later:
//
//	go run ./test/leak/snapshot write before.json -dir /var/lib/criserver -dir /run/criserver
//	... the suite ...
//	go run ./test/leak/snapshot compare before.json
//
// compare waits until nothing differs, at most -wait, prints one line a difference and exits with status 1 if there
// are any, 2 if it could not look. It looks at what write looked at: the options are kept in the file.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/criserver/criserver/test/leak"
)

// saved is the file.
type saved struct {
	Dirs, Names, Ignore []string
	Match               string
	State               leak.State
}

type list []string

func (l *list) String() string     { return fmt.Sprint(*l) }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	left, err := run(os.Args[1:], os.Stdout)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "snapshot:", err)
		os.Exit(2)
	case left > 0:
		os.Exit(1)
	}
}

const usage = "usage: snapshot write FILE [-dir DIR]... [-process NAME]... [-match RE] [-ignore RE]... | compare FILE [-wait D]"

// run returns how many things differ.
func run(args []string, out io.Writer) (left int, err error) {
	if len(args) < 2 {
		return 0, errors.New(usage)
	}
	verb, path := args[0], args[1]
	var s saved
	flags := flag.NewFlagSet(verb, flag.ContinueOnError)
	wait := flags.Duration("wait", 30*time.Second, "how long what ends may take")
	if verb == "write" {
		flags.Var((*list)(&s.Dirs), "dir", "compare the files in this directory")
		flags.Var((*list)(&s.Names), "process", "look for processes of this name, besides criserver and pause")
		flags.Var((*list)(&s.Ignore), "ignore", "leave out lines that match")
		flags.StringVar(&s.Match, "match", "", "of what everybody on the machine shares only lines that match")
	}
	if err := flags.Parse(args[2:]); err != nil {
		return 0, err
	}
	switch verb {
	case "write":
		return 0, write(path, &s)
	case "compare":
		return compare(path, *wait, out)
	}
	return 0, errors.New(usage)
}

// options leaves out what belongs to this process alone.
func (s *saved) options() []leak.Option {
	opts := []leak.Option{leak.Without(leak.Descriptor, leak.Goroutine), leak.Files(s.Dirs...), leak.Processes(s.Names...)}
	if s.Match != "" {
		opts = append(opts, leak.Match(s.Match))
	}
	for _, expr := range s.Ignore {
		opts = append(opts, leak.Ignore(expr))
	}
	return opts
}

func write(path string, s *saved) (err error) {
	if s.State, err = leak.Snapshot(s.options()...); err != nil {
		return err
	}
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o600)
}

func compare(path string, wait time.Duration, out io.Writer) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var s saved
	if err := json.Unmarshal(data, &s); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	left, err := leak.Settle(s.State, append(s.options(), leak.Within(wait))...)
	for _, d := range left {
		fmt.Fprintln(out, d)
	}
	return len(left), err
}
