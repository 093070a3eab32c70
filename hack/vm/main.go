// Command vm boots Debian guests with qemu and runs commands and tests in them: what needs cgroup v2, systemd, a security
// module or another kernel than this machine's.
//
//	go run ./hack/vm list
//	go run ./hack/vm build [-force] [FLAVOUR...]
//	go run ./hack/vm run [-timeout D] [-with PACKAGE] [-results TAR] FLAVOUR -- COMMAND...
//	go run ./hack/vm test [-short] [-collect] [-timeout D] [-out DIR] [FLAVOUR...]
//
// build makes what the flavours are made of out of Debian's packages: qemu, kernels, root file systems. They are kept in
// the user's cache directory under a digest of how they are made, so build is only needed for -force, which fetches newer
// packages and removes what is of no use any more; run and test make what is missing.
//
// run boots a guest and runs COMMAND in it by sh, with the programs of the project in /payload/bin, prints what it prints
// and exits with its status. What it leaves in /results becomes TAR (of a guest that is reset, an archive a boot: tar -xi). Each -with adds a package's tests as
// /payload/tests/PACKAGE/test, with dashes for slashes.
//
// test runs in each flavour the tests that tests/FLAVOUR lists, with -short those alone that are marked with a +, as `make test`
// does; test/skips.txt, tests/skips and tests/FLAVOUR.skips say which of them may be skipped there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	err := run(ctx, os.Args[1:])
	var status exitStatus
	switch {
	case errors.As(err, &status):
		os.Exit(int(status))
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "usage: vm list | build [-force] [FLAVOUR...] | run [FLAGS] FLAVOUR -- COMMAND... | test [FLAGS] [FLAVOUR...]")
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

// exitStatus is that of a command in a guest, passed on.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	switch name, args := args[0], args[1:]; name {
	case "list":
		for _, name := range slices.Sorted(maps.Keys(flavours)) {
			fmt.Printf("%-18s %s\n", name, flavours[name].about)
		}
		return nil
	case "build":
		return runBuild(ctx, args)
	case "run":
		return runCommand(ctx, args)
	case "test":
		return runTests(ctx, args)
	}
	return errUsage
}

func runBuild(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ExitOnError)
	force := flags.Bool("force", false, "make again what is there")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(flags.Args())
	if err != nil {
		return err
	}
	c, err := openCache(ctx)
	if err != nil {
		return err
	}
	if *force {
		if err := c.forget(chosen); err != nil {
			return err
		}
	}
	for _, f := range chosen {
		if _, err := c.machine(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

func runCommand(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("run", flag.ExitOnError)
	timeout := flags.Duration("timeout", 10*time.Minute, "how long the guest may live")
	results := flags.String("results", "", "file for a tar archive of the guest's /results")
	var packages []string
	flags.Func("with", "package whose tests are brought along, such as ociruntime/cgroup; may be repeated", func(name string) error {
		packages = append(packages, name)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	rest := flags.Args()
	if len(rest) < 3 || rest[1] != "--" {
		return errUsage
	}
	chosen, err := choose(rest[:1])
	if err != nil {
		return err
	}
	g, err := newGuest(ctx, chosen[0], *timeout)
	if err != nil {
		return err
	}
	defer g.remove()
	if err := g.load(ctx, packages, strings.Join(rest[2:], " ")+"\n"); err != nil {
		return err
	}
	status, err := g.run(ctx, os.Stdout)
	if err != nil {
		return err
	}
	if *results != "" {
		if err := os.Rename(g.results(), *results); err != nil {
			return fmt.Errorf("keep the results: %w", err)
		}
	}
	if status != 0 {
		return exitStatus(status)
	}
	return nil
}

// choose returns the flavours with these names, or all.
func choose(names []string) ([]flavour, error) {
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(flavours))
	}
	var chosen []flavour
	for _, name := range names {
		f, known := flavours[name]
		if !known {
			return nil, fmt.Errorf("there is no flavour %s; there are %s", name, strings.Join(slices.Sorted(maps.Keys(flavours)), ", "))
		}
		f.name = name
		chosen = append(chosen, f)
	}
	return chosen, nil
}

// repository is the root of the source tree.
func repository() (string, error) {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.Join(errors.New("no go.mod here or above"), err)
}
