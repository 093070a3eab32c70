// Command criserver is a Kubernetes node runtime: it serves CRI v1 on a unix socket and runs the containers itself.
//
// This package reads the configuration, builds the parts, connects them, serves and shuts down. It has no other logic:
// what a pod, an image or a network is, is for the packages that it connects. See assemble.go for how.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	err := newRoot().Execute()
	if err == nil {
		return
	}
	if !errors.Is(err, errChecks) { // its table has said it
		fmt.Fprintf(os.Stderr, "criserver: %v\n", err)
	}
	if ended := (containerError{}); errors.As(err, &ended) {
		os.Exit(int(ended.code))
	}
	if coded := (codeError{}); errors.As(err, &coded) {
		os.Exit(coded.code)
	}
	os.Exit(1)
}

// newRoot returns the command line.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "criserver",
		Short:         "A Kubernetes container runtime that runs containers itself",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	flags := &flags{}
	flags.register(root.PersistentFlags())
	root.AddCommand(newServe(flags), newConfig(flags), newCheck(flags), newVersion(), newImages(flags), newDebug())
	return root
}
