// Command testcount reads the output of `go test -json` from files and prints what failed, with its output, which skips
// nobody has listed, and at last how many tests passed, failed and were skipped. It exits with 1 unless all is well.
//
//	go run ./hack/testcount [-junit FILE] [-must FILE] test/skips.txt bin/tests.json ...
//
// A line of the file of skips is the name of a test, as "package.Test/subtest" with the package's path in the module,
// and the reason; a * at the end of the name matches any rest. Lines that begin with # are comments. The file of -must has
// lines of the same form: of each at least one test must have passed, and the reason is printed if none has. -junit writes
// a JUnit report too.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

const module = "github.com/criserver/criserver/"

func main() {
	var c counter
	flag.StringVar(&c.junit, "junit", "", "write a JUnit report to this file")
	flag.StringVar(&c.must, "must", "", "file of tests of which some must have passed")
	flag.Usage = func() { fmt.Fprintln(os.Stderr, "usage: testcount [-junit FILE] [-must FILE] SKIPS JSON...") }
	flag.Parse()
	if flag.NArg() < 2 {
		flag.Usage()
		os.Exit(2)
	}
	c.skips, c.files = flag.Arg(0), flag.Args()[1:]
	ok, err := c.run(os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testcount:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// counter is what it is told to do. junit and must may be empty.
type counter struct {
	skips, junit, must string
	files              []string
}

func (c *counter) run(w io.Writer) (ok bool, err error) {
	listed, err := readList(c.skips)
	if err != nil {
		return false, err
	}
	var must []line
	if c.must != "" {
		if must, err = readList(c.must); err != nil {
			return false, err
		}
	}
	r := results{}
	for _, name := range c.files {
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
	if c.junit != "" {
		if err := r.writeJUnit(c.junit); err != nil {
			return false, err
		}
	}
	missing, err := r.missing(w, must)
	if err != nil {
		return false, err
	}
	ok, err = r.report(w, listed)
	return ok && missing == 0, err
}

// event is a line of go test -json; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64 // seconds
}

// result is what became of one test, or of one package where Test is empty.
type result struct {
	action  string  // "pass", "fail", "skip"; empty: it never ended
	elapsed float64 // seconds
	output  strings.Builder
}

// ended is what became of it; when the process died under it, it failed.
func (r *result) ended() string { return cmp.Or(r.action, "fail") }

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
			r[key].action, r[key].elapsed = e.Action, e.Elapsed
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

// missing prints the lines of which no test has passed, with their reasons, and counts them.
func (r results) missing(w io.Writer, must []line) (n int, err error) {
	for _, l := range must {
		passed := slices.ContainsFunc(slices.Collect(maps.Keys(r)), func(key string) bool { return r[key].action == "pass" && l.matches(key) })
		if !passed {
			n++
			_, err = fmt.Fprintf(w, "--- must run and pass, but has not: %s (%s)\n", l.name, l.reason)
		}
	}
	return n, err
}

func (r results) report(w io.Writer, listed []line) (ok bool, err error) {
	count, unlisted := map[string]int{}, 0
	for _, key := range slices.Sorted(maps.Keys(r)) {
		one := r[key]
		action := one.ended()
		if action == "fail" && one.output.Len() > 0 {
			_, err = fmt.Fprintf(w, "--- %s\n%s", key, one.output.String())
		}
		if !r.leaf(key) {
			continue
		}
		count[action]++
		if action == "skip" && !slices.ContainsFunc(listed, func(l line) bool { return l.matches(key) }) {
			unlisted++
			_, err = fmt.Fprintf(w, "--- skipped, but no list says why it may be: %s\n%s", key, one.output.String())
		}
		if err != nil {
			return false, err
		}
	}
	_, err = fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", count["pass"], count["fail"]+unlisted, count["skip"]-unlisted)
	return count["fail"]+unlisted == 0 && count["pass"] > 0, err
}

// line is one of a file of names.
type line struct{ name, reason string }

func (l line) matches(key string) bool {
	if prefix, any := strings.CutSuffix(l.name, "*"); any {
		return strings.HasPrefix(key, prefix)
	}
	return l.name == key
}

// readList reads a file of names and reasons.
func readList(name string) ([]line, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var all []line
	var bad []string
	for text := range strings.Lines(string(text)) {
		words := strings.Fields(text)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case len(words) == 1:
			bad = append(bad, words[0])
		default:
			all = append(all, line{words[0], strings.Join(words[1:], " ")})
		}
	}
	if bad != nil {
		return nil, errors.New(name + ": no reason is given for " + strings.Join(bad, ", "))
	}
	return all, nil
}
