// Command testcount reads the output of `go test -json` from files and prints what failed, with its output, which skips
// nobody has listed, and at last how many tests passed, failed and were skipped. It exits with 1 unless all is well.
//
//	go run ./hack/testcount test/skips.txt bin/tests.json ...
//
// A line of the file of skips is the name of a test, as "package.Test/subtest" with the package's path in the module,
// and the reason; a * at the end of the name matches any rest. Lines that begin with # are comments.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

const module = "github.com/criserver/criserver/"

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: testcount SKIPS JSON...")
		os.Exit(2)
	}
	ok, err := run(os.Stdout, os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testcount:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(w io.Writer, skips string, files []string) (ok bool, err error) {
	listed, err := readSkips(skips)
	if err != nil {
		return false, err
	}
	r := results{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return false, err
		}
		err = r.read(f)
		_ = f.Close()
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
	}
	return r.report(w, listed)
}

// event is a line of go test -json; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// result is what became of one test, or of one package where Test is empty.
type result struct {
	action string // "pass", "fail", "skip"; empty: it never ended
	output strings.Builder
}

// results are by "package.Test", and "package." for the package itself.
type results map[string]*result

func (r results) read(f io.Reader) error {
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read event %q: %w", lines.Text(), err)
		}
		pkg, _, _ := strings.Cut(e.Package+e.ImportPath, " ") // a build names the package it is for in brackets
		key := strings.TrimPrefix(pkg, module) + "." + e.Test
		if r[key] == nil {
			r[key] = &result{}
		}
		switch e.Action {
		case "pass", "fail", "skip":
			r[key].action = e.Action
		case "build-fail":
			r[key].action = "fail"
		case "output", "build-output":
			r[key].output.WriteString(e.Output)
		}
	}
	return lines.Err()
}

// leaf says whether key is a test without subtests, or a package that failed without any test that did.
func (r results) leaf(key string) bool {
	isPackage := strings.HasSuffix(key, ".")
	for other, o := range r {
		if isPackage && other != key && strings.HasPrefix(other, key) && o.action != "pass" && o.action != "skip" {
			return false
		}
		if !isPackage && strings.HasPrefix(other, key+"/") {
			return false
		}
	}
	return !isPackage || r[key].action == "fail"
}

func (r results) report(w io.Writer, listed []string) (ok bool, err error) {
	count, unlisted := map[string]int{}, 0
	for _, key := range slices.Sorted(maps.Keys(r)) {
		one := r[key]
		action := one.action
		if action == "" {
			action = "fail" // the process died under it
		}
		if action == "fail" && one.output.Len() > 0 {
			_, err = fmt.Fprintf(w, "--- %s\n%s", key, one.output.String())
		}
		if !r.leaf(key) {
			continue
		}
		count[action]++
		if action == "skip" && !slices.ContainsFunc(listed, func(l string) bool { return matches(l, key) }) {
			unlisted++
			_, err = fmt.Fprintf(w, "--- skipped, but test/skips.txt does not say why it may be: %s\n%s", key, one.output.String())
		}
		if err != nil {
			return false, err
		}
	}
	_, err = fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", count["pass"], count["fail"]+unlisted, count["skip"]-unlisted)
	return count["fail"]+unlisted == 0 && count["pass"] > 0, err
}

func matches(listed, key string) bool {
	if prefix, any := strings.CutSuffix(listed, "*"); any {
		return strings.HasPrefix(key, prefix)
	}
	return listed == key
}

// readSkips returns the names in the file of skips.
func readSkips(name string) ([]string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var names, bad []string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case len(words) == 1:
			bad = append(bad, words[0])
		default:
			names = append(names, words[0])
		}
	}
	if bad != nil {
		return nil, errors.New(name + ": no reason is given for " + strings.Join(bad, ", "))
	}
	return names, nil
}
