package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// errChecks ends `criserver check` on a machine where criserver cannot work.
var errChecks = errors.New("criserver cannot work on this machine")

// verdict is what a check comes to.
type verdict int

const (
	good     verdict = iota
	degraded         // criserver works, at a cost
	missing          // pods cannot run
)

func (v verdict) String() string { return [...]string{"ok", "degraded", "missing"}[v] }

// finding is the answer of one check. cost and mend are for verdicts other than good.
type finding struct {
	verdict verdict
	found   string // what there is
	cost    string // what criserver does without, or what fails
	mend    string
}

// check is one row of the table.
type check struct {
	what string
	look func(Config) finding
}

// checks are made from what everything needs to what few pods do; those of kernel features come after the second.
var checks = []check{
	{"user", checkUser},
	{"kernel", checkKernel},
	{"erofs", checkErofs},
	{"idmapped mounts", checkIDMapped},
	{"cgroups", checkCgroups},
	{"mount propagation", checkPropagation},
	{"open files", checkFiles},
	{"pause binary", checkPause},
	{"root directory", checkRoot},
	{"container roots", checkContainerRoots},
	{"state directory", checkState},
	{"socket", checkSocket},
	{"registry hosts", checkCerts},
	{"registry credentials", checkCredentials},
	{"pod network", checkNetwork},
	{"packet filter", checkFilter},
	{"AppArmor", checkAppArmor},
	{"SELinux", checkSELinux},
}

func newCheck(flags *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Look at the kernel and the machine: what is missing, what that costs, how to mend it",
		Long: `Check prints one line for each thing that criserver uses. It exits with 1 if one is missing that no pod can do
without, and changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.load()
			if err != nil {
				return err
			}
			return runChecks(cmd.OutOrStdout(), slices.Concat(checks[:2], featureChecks(), checks[2:]), config)
		},
	}
}

// runChecks prints the table and returns errChecks if something is missing.
func runChecks(w io.Writer, list []check, config Config) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	worst := good
	for _, c := range list {
		f := c.look(config)
		worst = max(worst, f.verdict)
		line := f.found
		if f.verdict != good {
			line += "; " + f.cost + "; to mend: " + f.mend
		}
		if _, err := fmt.Fprintf(table, "%s\t%s\t%s\n", f.verdict, c.what, strings.TrimPrefix(line, "; ")); err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if worst == missing {
		return errChecks
	}
	return nil
}
