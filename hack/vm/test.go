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
		ok, err := testFlavour(ctx, f, testPaths{repo: repo, reports: filepath.Join(*out, f.name)}, *timeout)
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

// testPaths are where a flavour's tests are listed and where its reports go.
type testPaths struct {
	repo, reports string
}

func (p testPaths) list(f flavour) string { return filepath.Join(p.repo, "hack/vm/tests", f.name) }

// testFlavour runs a flavour's tests and says whether all is well.
func testFlavour(ctx context.Context, f flavour, paths testPaths, timeout time.Duration) (ok bool, err error) {
	list, err := os.ReadFile(paths.list(f))
	if err != nil {
		return false, err
	}
	suites := selected(string(list))
	g, err := newGuest(ctx, f, timeout)
	if err != nil {
		return false, err
	}
	defer g.remove()
	var packages []string
	for _, s := range suites {
		packages = append(packages, s.pkg)
	}
	if err := g.load(ctx, packages, testCommand(f, suites, timeout-spare)); err != nil {
		return false, err
	}
	var facts bytes.Buffer
	fmt.Printf("== %s: %s\n", f.name, f.about)
	if _, err := g.run(ctx, io.MultiWriter(os.Stdout, &facts)); err != nil {
		return false, err
	}
	if err := errors.Join(os.RemoveAll(paths.reports), os.MkdirAll(paths.reports, 0o755)); err != nil {
		return false, err
	}
	if err := os.WriteFile(filepath.Join(paths.reports, "guest.txt"), facts.Bytes(), 0o644); err != nil {
		return false, err
	}
	if err := tell(ctx, paths.reports, "tar", "-xf", g.results()); err != nil {
		return false, err
	}
	return judge(ctx, f, paths, suites)
}

// suite is what is run of a package's tests.
type suite struct {
	pkg, pattern string
}

// selected reads a list of tests: "package.Test", with a * at the end for any rest, and why it is there. What is listed
// is run, and must pass.
func selected(list string) []suite {
	patterns, order := map[string][]string{}, []string{}
	for line := range strings.Lines(list) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		dot := strings.LastIndex(words[0], ".")
		pkg, test := words[0][:dot], words[0][dot+1:]
		if patterns[pkg] == nil {
			order = append(order, pkg)
		}
		test, _, _ = strings.Cut(test, "/")
		prefix, open := strings.CutSuffix(test, "*")
		pattern := "^" + regexp.QuoteMeta(prefix)
		if !open {
			pattern += "$"
		}
		patterns[pkg] = append(patterns[pkg], pattern)
	}
	var suites []suite
	for _, pkg := range order {
		suites = append(suites, suite{pkg: pkg, pattern: strings.Join(patterns[pkg], "|")})
	}
	return suites
}

// testCommand is the script that runs the suites in a guest, one after another, all within the time. Test events of each
// are a file of its results.
func testCommand(f flavour, suites []suite, within time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "export driver=%s bound=%.0f\n. /usr/lib/vm/testing\n", f.driver, within.Seconds())
	for _, s := range suites {
		fmt.Fprintf(&b, "run_tests %s%s %s '%s'\n", module, s.pkg, testDir(s.pkg), s.pattern)
	}
	return b.String()
}

// judge counts what the tests came to and writes the JUnit report. Skips may be listed for all, for all guests and for the
// flavour.
func judge(ctx context.Context, f flavour, paths testPaths, suites []suite) (ok bool, err error) {
	var skips []byte
	for _, name := range []string{filepath.Join(paths.repo, "test/skips.txt"), filepath.Join(filepath.Dir(paths.list(f)), "skips"), paths.list(f) + ".skips"} {
		text, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		skips = append(skips, text...)
	}
	listed := filepath.Join(paths.reports, "skips.txt")
	if err := os.WriteFile(listed, skips, 0o644); err != nil {
		return false, err
	}
	args := []string{"run", "./hack/testcount", "-junit", filepath.Join(paths.reports, "junit.xml"), "-must", paths.list(f), listed}
	for _, s := range suites {
		args = append(args, filepath.Join(paths.reports, testDir(s.pkg)+".json"))
	}
	count := exec.CommandContext(ctx, "go", args...)
	count.Dir, count.Stdout, count.Stderr = paths.repo, os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := count.Run(); err != nil && !errors.As(err, &exit) {
		return false, err
	}
	return count.ProcessState.Success(), nil
}
