package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// options are what the command line says.
type options struct {
	endpoint   string
	image      string
	parent     string // cgroup parent of the pods
	pods       int
	containers int // of all pods together
	requests   int // of each kind and parallelism
	stats      bool
	parallel   []int
}

const (
	largestAnswer = 64 << 20
	cleanBound    = 10 * time.Minute
	ownMemory     = 1 << 30 // until then this program collects no garbage
)

func main() {
	o := options{parallel: []int{1, 8}}
	flag.StringVar(&o.endpoint, "endpoint", "unix:///run/criserver/criserver.sock", "socket of the server")
	flag.StringVar(&o.image, "image", "", "image of the containers, which must be present")
	flag.StringVar(&o.parent, "cgroup-parent", "/bench-cri", "cgroup parent of the pods")
	flag.IntVar(&o.pods, "pods", 20, "pods")
	flag.IntVar(&o.containers, "containers", 1000, "containers, in all pods together")
	flag.IntVar(&o.requests, "requests", 1000, "requests of each kind")
	flag.BoolVar(&o.stats, "stats", false, "start the containers and ask for statistics instead")
	flag.Func("parallel", "requests at the same time, comma-separated (1,8)", func(text string) (err error) {
		o.parallel, err = numbers(text)
		return err
	})
	flag.Parse()
	debug.SetGCPercent(-1) // its pauses would count as the server's
	debug.SetMemoryLimit(ownMemory)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "cri: %v\n", err)
		os.Exit(1)
	}
}

// numbers reads "1,8".
func numbers(text string) ([]int, error) {
	var all []int
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no number of requests", word)
		}
		all = append(all, n)
	}
	return all, nil
}

func run(ctx context.Context, o options) (err error) {
	if o.image == "" || o.pods < 1 || o.containers < 1 || o.requests < 1 {
		return errors.New("-image, and at least one pod, container and request, are needed")
	}
	conn, err := grpc.NewClient(o.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestAnswer)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	runtime := cri.NewRuntimeServiceClient(conn)
	version, err := runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	n := &node{runtime: runtime, options: o}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanBound)
		defer cancel()
		err = errors.Join(err, n.remove(clean))
	}()
	began := time.Now()
	if err := n.fill(ctx); err != nil {
		return err
	}
	fmt.Printf("%s %s: %d pods with %d containers, made in %.1f s. Times in ms, until the answer is there and until it is decoded.\n\n",
		version.GetRuntimeName(), version.GetRuntimeVersion(), len(n.pods), len(n.containers), time.Since(began).Seconds())
	return n.measure(ctx, conn)
}
