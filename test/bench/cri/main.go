package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/bench/lists"
)

const largestAnswer = 64 << 20

func main() {
	o := lists.Options{Parallel: []int{1, 8}}
	var endpoint string
	flag.StringVar(&endpoint, "endpoint", "unix:///run/criserver/criserver.sock", "socket of the server")
	flag.StringVar(&o.Image, "image", "", "image of the containers, which must be present")
	flag.StringVar(&o.Parent, "cgroup-parent", "/bench-cri", "cgroup parent of the pods")
	flag.IntVar(&o.Pods, "pods", 20, "pods")
	flag.IntVar(&o.Containers, "containers", 1000, "containers, in all pods together")
	flag.IntVar(&o.Requests, "requests", 1000, "requests of each kind")
	flag.BoolVar(&o.Stats, "stats", false, "start the containers and ask for statistics instead")
	flag.Func("parallel", "requests at the same time, comma-separated (1,8)", func(text string) (err error) {
		o.Parallel, err = numbers(text)
		return err
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := run(ctx, endpoint, o)
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

func run(ctx context.Context, endpoint string, o lists.Options) (err error) {
	if o.Image == "" || o.Pods < 1 || o.Containers < 1 || o.Requests < 1 {
		return errors.New("-image, and at least one pod, container and request, are needed")
	}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestAnswer)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	version, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	r, err := lists.Measure(ctx, conn, o)
	if err != nil {
		return err
	}
	fmt.Printf("%s %s: %d pods with %d containers, made in %.1f s. Times in ms, until the answer is there and until it is decoded.\n\n",
		version.GetRuntimeName(), version.GetRuntimeVersion(), r.Pods, r.Containers, r.Made.Seconds())
	fmt.Print("| request | parallel | p50 | p99 | decoded p50 | p99 | bytes | requests/s |\n|---|---|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		fmt.Printf("| %s | %d | %s | %s | %s | %s | %d | %.0f |\n", row.Request, row.Parallel, ms(row.Answered.P50), ms(row.Answered.P99),
			ms(row.Decoded.P50), ms(row.Decoded.P99), row.Bytes, row.RequestsASecond)
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }
