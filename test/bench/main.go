package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// part is one thing that is measured.
type part struct {
	name  string
	run   func(context.Context, *bench) error
	bound time.Duration // 0: partBound
}

var parts = []part{
	{name: "start", run: measureStart}, {name: "exec", run: measureExec}, {name: "mounts", run: measureMounts}, {name: "unpack", run: measureUnpack}, {name: "pull", run: measurePull, bound: pullBound}, {name: "roots", run: measureRoots}, {name: "layers", run: measureManyLayers}, {name: "logs", run: measureLogs},
	{name: "cri", run: measureLife}, {name: "bridge", run: measureBridge}, {name: "sync", run: measureSync}, {name: "lists", run: measureLists}, {name: "stats", run: measureStats}, {name: "memory", run: measureMemory},
}

// options are what the command line says.
type options struct {
	quick      bool
	times      int
	only       string
	runc       string
	crun       string
	containerd string
	crio       string
	conmon     string
	pinns      string
	plugins    string
	criserver  string
	beside     string
	pause      string
	pods       int
	verbose    bool
}

// partBound is how long one part may take.
const partBound = 10 * time.Minute

// pullBound is longer: peers take long to unpack many files.
const pullBound = 15 * time.Minute

func main() {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "a tenth of the rounds: to see that it works")
	flag.IntVar(&o.times, "times", 1, "how many times as many rounds of cri, bridge and sync: against noise, where there is time")
	flag.StringVar(&o.only, "only", "", "comma-separated parts: "+partNames())
	flag.StringVar(&o.runc, "runc", "runc", "runc, on PATH or with a path")
	flag.StringVar(&o.crun, "crun", "", "crun and arguments before its own; empty: what fetch-crun fetched, else that on PATH")
	flag.StringVar(&o.containerd, "containerd", "containerd", "containerd, on PATH or with a path; its shim and ctr beside it")
	flag.StringVar(&o.crio, "crio", "crio", "CRI-O, on PATH or with a path; it runs crun")
	flag.StringVar(&o.conmon, "conmon", "conmon", "conmon of CRI-O, on PATH or with a path")
	flag.StringVar(&o.pinns, "pinns", "pinns", "pinns of CRI-O, on PATH or with a path")
	flag.StringVar(&o.plugins, "plugins", "bin/cni", "directory of the CNI plugins that all daemons run")
	flag.StringVar(&o.criserver, "criserver", "bin/criserver", "criserver")
	flag.StringVar(&o.beside, "beside", "", "another build of criserver, with its pause beside it, that is measured as a peer")
	flag.StringVar(&o.pause, "pause", "bin/pause", "pause")
	flag.IntVar(&o.pods, "pods", 100, "pods of which statistics are measured")
	flag.BoolVar(&o.verbose, "v", false, "show what daemons say on standard error")
	flag.Parse()
	if err := chosen(o.only); err != nil {
		fail(err)
	}
	if os.Getuid() != 0 {
		fail(errors.New("containers need root"))
	}
	if os.Getenv(insideEnv) == "" {
		os.Exit(reexec()) // in namespaces of its own
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "bench: %v\n", err)
	os.Exit(1)
}

func partNames() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

func chosen(only string) error {
	for name := range strings.SplitSeq(only, ",") {
		if name != "" && !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("-only %s: the parts are %s", name, partNames())
		}
	}
	return nil
}

// run runs the chosen parts. One that fails does not keep the others from being measured.
func run(ctx context.Context, o options) (err error) {
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	fmt.Print(describeMachine(b))
	for _, p := range parts {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), p.name) {
			continue
		}
		began := time.Now()
		partCtx, cancel := context.WithTimeout(ctx, cmp.Or(p.bound, partBound))
		partErr := p.run(partCtx, b)
		cancel()
		partErr = errors.Join(partErr, b.cleanPart())
		if partErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", p.name, partErr))
			fmt.Printf("\nPart %s failed: %v\n", p.name, partErr)
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %.0f s\n", p.name, time.Since(began).Seconds())
		if ctx.Err() != nil {
			break
		}
	}
	b.printRatios()
	return err
}
