package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// module is what test events call packages after.
const module = "github.com/criserver/criserver/"

// spare is how long a guest may still need when its tests must have ended.
const spare = time.Minute

func runTests(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("test", flag.ExitOnError)
	timeout := flags.Duration("timeout", 30*time.Minute, "how long each guest may live")
	out := flags.String("out", "", "directory for a JUnit report and what else comes back of each flavour (default: in the cache)")
	short := flags.Bool("short", false, "only the tests that are marked with a + in the lists")
	collect := flags.Bool("collect", false, "do not judge the results: leave test events, must and skips of each flavour in -out for testcount")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(flags.Args())
	if err != nil {
		return err
	}
	repo, err := repository()
	if err != nil {
		return err
	}
	if *out == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		*out = filepath.Join(base, "criserver", "vm", "reports")
	}
	var failed []string
	for _, f := range chosen {
		r := testRun{flavour: f, repo: repo, reports: filepath.Join(*out, f.name)}
		if err := r.read(*short); err != nil {
			return err
		}
		if err := r.run(ctx, *timeout); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if *collect {
			continue
		}
		ok, err := r.judge(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if !ok {
			failed = append(failed, f.name)
		}
	}
	if failed != nil {
		return fmt.Errorf("tests failed in %s; reports are in %s", strings.Join(failed, ", "), *out)
	}
	return nil
}

// testRun is what is run in one guest. In its results a package is called after the flavour too, as in "minimal/ociruntime",
// so that they can be counted together with those of other places.
type testRun struct {
	flavour       flavour
	repo, reports string // directories
	suites        []suite
}

// suite is what is run of a package's tests.
type suite struct {
	pkg, pattern string
}

// read reads the flavour's lists, and writes those of what must run and of what may be skipped into the reports.
func (r *testRun) read(short bool) error {
	lists := filepath.Join(r.repo, "hack/vm/tests")
	list, err := os.ReadFile(filepath.Join(lists, r.flavour.name))
	if err != nil {
		return err
	}
	must := selected(string(list), short)
	r.suites = suitesOf(must)
	var skips []string // listed for all, for all guests and for the flavour
	for _, name := range []string{filepath.Join(r.repo, "test/skips.txt"), filepath.Join(lists, "skips"), filepath.Join(lists, r.flavour.name+".skips")} {
		text, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		skips = append(skips, selected(string(text), false)...)
	}
	if err := errors.Join(os.RemoveAll(r.reports), os.MkdirAll(r.reports, 0o755)); err != nil {
		return err
	}
	for name, lines := range map[string][]string{mustName: must, skipsName: skips} {
		var text strings.Builder
		for _, line := range lines {
			fmt.Fprintf(&text, "%s/%s\n", r.flavour.name, line)
		}
		if err := os.WriteFile(filepath.Join(r.reports, name), []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Files in the reports of a flavour, which testcount takes.
const (
	mustName  = "must.txt"
	skipsName = "skips.txt"
)

// run has a guest run the suites. Their events come into the reports, a file a package.
func (r *testRun) run(ctx context.Context, timeout time.Duration) error {
	g, err := newGuest(ctx, r.flavour, timeout)
	if err != nil {
		return err
	}
	defer g.remove()
	var packages []string
	for _, s := range r.suites {
		packages = append(packages, s.pkg)
	}
	if err := g.load(ctx, packages, r.command(timeout-spare)); err != nil {
		return err
	}
	var facts bytes.Buffer
	fmt.Printf("== %s: %s\n", r.flavour.name, r.flavour.about)
	if _, err := g.run(ctx, io.MultiWriter(os.Stdout, &facts)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.reports, "guest.txt"), facts.Bytes(), 0o644); err != nil {
		return err
	}
	return tell(ctx, r.reports, "tar", "-xif", g.results()) // one archive a boot
}

// selected returns the lines of a list that say something: "package.Test", with a * at the end for any rest, and why it is
// there. Those that are marked with a + come without it; short leaves others out.
func selected(list string, short bool) []string {
	var lines []string
	for line := range strings.Lines(list) {
		line, marked := strings.CutPrefix(strings.TrimSpace(line), "+")
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && (marked || !short) {
			lines = append(lines, line)
		}
	}
	return lines
}

// suitesOf makes of what is listed one suite for each package. What is listed is run.
func suitesOf(lines []string) []suite {
	patterns, order := map[string][]string{}, []string{}
	for _, line := range lines {
		name, _, _ := strings.Cut(line, " ")
		dot := strings.LastIndex(name, ".")
		pkg, test := name[:dot], name[dot+1:]
		if patterns[pkg] == nil {
			order = append(order, pkg)
		}
		test, _, _ = strings.Cut(test, "/")
		prefix, open := strings.CutSuffix(test, "*")
		pattern := "^" + regexp.QuoteMeta(prefix)
		if !open {
			pattern += "$"
		}
		if !slices.Contains(patterns[pkg], pattern) {
			patterns[pkg] = append(patterns[pkg], pattern)
		}
	}
	var suites []suite
	for _, pkg := range order {
		suites = append(suites, suite{pkg: pkg, pattern: strings.Join(patterns[pkg], "|")})
	}
	return suites
}

// command is the script that runs the suites in the guest, one after another, all within the time. Test events of each are
// a file of its results; a guest that is reset has one of each boot.
func (r *testRun) command(within time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "export driver=%s bound=%.0f\n. /usr/lib/vm/testing\n", r.flavour.driver, within.Seconds())
	for _, s := range r.suites {
		fmt.Fprintf(&b, "run_tests %s%s/%s %s '%s'\n", module, r.flavour.name, s.pkg, testDir(s.pkg), s.pattern)
	}
	return b.String()
}

// judge counts what the tests came to and writes the JUnit report.
func (r *testRun) judge(ctx context.Context) (ok bool, err error) {
	file := func(name string) string { return filepath.Join(r.reports, name) }
	args := []string{"run", "./hack/testcount", "-junit", file("junit.xml"), "-must", file(mustName), file(skipsName)}
	for _, s := range r.suites {
		events, err := filepath.Glob(file(testDir(s.pkg) + ".*.json")) // one a boot
		if err != nil {
			return false, err
		}
		args = append(args, events...)
	}
	count := exec.CommandContext(ctx, "go", args...)
	count.Dir, count.Stdout, count.Stderr = r.repo, os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := count.Run(); err != nil && !errors.As(err, &exit) {
		return false, err
	}
	return count.ProcessState.Success(), nil
}
